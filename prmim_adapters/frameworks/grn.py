# SPDX-License-Identifier: Apache-2.0
"""Global response normalization under masking: three definitions, dense-masked and packed.

GRN divides the norm of each channel by the mean norm over channels. Once positions are masked, the
positions that enter the norm are a choice, and published code makes three different ones:

``batch``
    The active positions of the whole batch: the original FCMAE pre-training (``MinkowskiGRN``).
    It depends on who else is in the batch of one device.
``image``
    The active positions of each image: the fine-tuning GRN applied to the visible part alone,
    independent of the batch.
``image_with_inactive``
    All positions of each image: mmpretrain's sparse ConvNeXt, in which an inactive position holds
    the constant ``act(bias)`` of the first pointwise layer.

On an image without masked positions the last two agree with GRN as the classifier computes it.
"""

from __future__ import annotations

import torch
from mmpretrain.models.utils import GRN, SparseHelper
from torch import Tensor

GRN_SCOPES = ('batch', 'image', 'image_with_inactive')


class SparseGRN(GRN):
    """GRN on dense maps whose active positions are those of ``SparseHelper``.

    Parameters and state_dict keys are those of mmpretrain's ``GRN``.

    Args:
        in_channels (int): Channels of the input.
        scope (str): One of ``GRN_SCOPES``.
        eps (float): Added to the mean norm.

    Raises:
        ValueError: ``scope`` is unknown.
    """

    def __init__(self, in_channels: int, scope: str, eps: float = 1e-6) -> None:
        super().__init__(in_channels, eps)
        if scope not in GRN_SCOPES:
            raise ValueError(f'unknown GRN scope {scope!r}; choose one of {GRN_SCOPES}')
        self.scope = scope

    def forward(self, x: Tensor, data_format: str = 'channel_first') -> Tensor:
        """Normalize a dense map (B, C, H, W), or (B, H, W, C) if ``data_format='channel_last'``."""
        if self.scope == 'image_with_inactive':
            return super().forward(x, data_format)
        if data_format == 'channel_first':
            return self(x.permute(0, 2, 3, 1), 'channel_last').permute(0, 3, 1, 2)
        active = SparseHelper._get_active_map_or_index(H=x.shape[1]).permute(0, 2, 3, 1)
        dims = (0, 1, 2) if self.scope == 'batch' else (1, 2)
        norm = torch.norm(x * active, p=2, dim=dims, keepdim=True)
        response = norm / (norm.mean(dim=-1, keepdim=True) + self.eps)
        return self.gamma * (x * response) + self.beta + x

    def extra_repr(self) -> str:
        """The scope, for ``print(model)``."""
        return f'{self.in_channels}, scope={self.scope!r}'


def packed_grn(
    grn: GRN,
    tokens: Tensor,
    scope: str,
    inactive: Tensor,
    num_inactive: int,
) -> Tensor:
    """GRN of packed active tokens, equal to ``SparseGRN`` at the active positions of the dense map.

    Saves two maps for the backward pass where mmpretrain's GRN saves three: the affine part is one
    scale per channel.

    Args:
        grn (GRN): Module whose ``gamma``, ``beta`` and ``eps`` are used.
        tokens (Tensor): Active tokens (B, N, C).
        scope (str): One of ``GRN_SCOPES``.
        inactive (Tensor): Value (C,) that every inactive position of the dense map holds.
        num_inactive (int): Inactive positions per image.

    Returns:
        Tensor: (B, N, C).
    """
    dims = (0, 1) if scope == 'batch' else (1,)
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    norm = torch.linalg.vector_norm(tokens, dim=dims, keepdim=True, dtype=dtype)
    if scope == 'image_with_inactive' and num_inactive:
        constant = (num_inactive**0.5 * inactive.to(dtype).abs()).expand_as(norm)
        norm = torch.linalg.vector_norm(torch.stack((norm, constant)), dim=0)
    response = norm / (norm.mean(dim=-1, keepdim=True) + grn.eps)
    scale = 1 + grn.gamma * response
    return torch.addcmul(grn.beta.to(tokens.dtype), tokens, scale.to(tokens.dtype))

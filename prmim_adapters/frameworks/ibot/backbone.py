# SPDX-License-Identifier: Apache-2.0
"""iBOT's backbone: a ViT whose patch tokens can be replaced by a mask token.

Source: arXiv 2111.07832, section 3.1. Positions are absolute and resized for crops of another
size, so one network serves global and local crops.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from mmpretrain.models import VisionTransformer
from mmpretrain.models.utils import resize_pos_embed
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..pretrained import loaded_last

Grid = tuple[int, int]


class MaskedTokens(NamedTuple):
    """What the encoder makes of N masked images.

    Attributes:
        cls: (N, C) class tokens.
        patches: (R, C) features of the masked tokens that carry loss, of all images.
        rows: (R,) int64, image * L + position of each of them.
        weight: (N, L) weight of each token in the loss, 0 where there is none.
        log: scalars to log beside the losses.
    """

    cls: Tensor
    patches: Tensor
    rows: Tensor
    weight: Tensor
    log: dict[str, Tensor]


@MODELS.register_module()
class IBOTViT(VisionTransformer):
    """Vision Transformer for iBOT.

    Args:
        **kwargs: those of ``VisionTransformer``. ViT-S is ``arch='deit-small'``, ViT-B ``'b'``.
            The output is the last layer's, of all tokens: ``out_type`` and ``out_indices`` are
            fixed.

    Raises:
        ValueError: ``with_cls_token=False``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(out_type='raw', out_indices=-1, **kwargs)
        if not self.with_cls_token:
            raise ValueError('IBOTViT: with_cls_token=False, but iBOT distils the class token')
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.embed_dims))

    def init_weights(self) -> None:
        """Truncated normal of 0.02, zero biases and mask token, as the original.

        Then the checkpoint is loaded that ``init_cfg`` names, if it names one.
        """
        with loaded_last(self):
            super().init_weights()
            self._initialize()

    def _initialize(self) -> None:
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        nn.init.zeros_(self.mask_token)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor] | MaskedTokens:
        """Encode images, masked or whole.

        Args:
            x: (B, 3, H, W).
            mask: (B, L) bool, True = replaced by the mask token. None = whole images, as
                ``VisionTransformer`` encodes them.

        Returns:
            Of whole images one tensor (B, 1 + L, C) in a tuple, class token first; of masked ones
            the tokens that the losses read.
        """
        return super().forward(x) if mask is None else self.encode_masked(x, mask)

    def encode_masked(self, x: Tensor, mask: Tensor) -> MaskedTokens:
        """See :meth:`forward`."""
        tokens = self.encode(self.embed(x, mask))
        rows = mask.flatten().nonzero()[:, 0]
        patches = tokens[:, 1:].flatten(0, 1)[rows]
        return MaskedTokens(tokens[:, 0], patches, rows, mask.float(), {})

    def embed(self, x: Tensor, mask: Tensor) -> Tensor:
        """Images (B, 3, H, W), mask (B, L) to the tokens (B, 1 + L, C) that the first layer takes.

        Raises:
            ValueError: the mask is not on the patch grid.
        """
        tokens, grid = self.patch_embed(x)
        if mask.shape != tokens.shape[:2]:
            raise ValueError(
                f'IBOTViT: masks {tuple(mask.shape)} for {len(x)} images of {grid[0]}x{grid[1]} '
                f'patches: expected {tuple(tokens.shape[:2])}. Set the input_size of the mask '
                'generator to the patch grid'
            )
        tokens = torch.where(mask.unsqueeze(-1), self.mask_token.to(tokens.dtype), tokens)
        tokens = torch.cat((self.cls_token.expand(len(tokens), -1, -1), tokens), dim=1)
        return self.pre_norm(self.drop_after_pos(tokens + self.positions(grid)))

    def positions(self, grid: Grid) -> Tensor:
        """Position table (1, 1 + h * w, C) for a grid of (h, w) patches."""
        return resize_pos_embed(
            self.pos_embed, self.patch_resolution, grid, self.interpolate_mode, 1
        )

    def encode(self, tokens: Tensor) -> Tensor:
        """All layers and the final norm: (B, n, C) to (B, n, C), any n."""
        for layer in self.layers:
            tokens = layer(tokens)
        return self.ln1(tokens) if self.final_norm else tokens

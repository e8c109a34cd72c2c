# SPDX-License-Identifier: Apache-2.0
"""Activation checkpointing of the heavy network: its blocks are computed again in backward.

mmpretrain's own word for it is ``with_cp``. Its Swin and ConvNeXt blocks have that option; its ViT
layers get it here, from subclasses that only recompute.
"""

from __future__ import annotations

from typing import Any

from mmpretrain.models.backbones.beit import BEiTTransformerEncoderLayer
from mmpretrain.models.backbones.hivit import BlockWithRPE
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from mmpretrain.models.necks.cae_neck import CAETransformerRegressorLayer
from mmpretrain.models.necks.milan_neck import PromptTransformerEncoderLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..adapters.base import attachment_of
from ..adapters.between import between


class RecomputedEncoderLayer(TransformerEncoderLayer):
    """A layer of ViT that keeps its input only."""

    with_cp = True

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return checkpoint(super().forward, x, use_reentrant=False)


class RecomputedBEiTEncoderLayer(BEiTTransformerEncoderLayer):
    """A layer of BEiT, and of SimMIM on a ViT, that keeps its input only."""

    with_cp = True

    def forward(self, x: Tensor, rel_pos_bias: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return checkpoint(super().forward, x, rel_pos_bias, use_reentrant=False)


class RecomputedPromptLayer(PromptTransformerEncoderLayer):
    """A layer of MILAN's decoder that keeps its inputs only."""

    with_cp = True

    def forward(self, x: Tensor, visible_tokens: Tensor, ids_restore: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        inputs = x, visible_tokens, ids_restore
        return checkpoint(super().forward, *inputs, use_reentrant=False)


class RecomputedRegressorLayer(CAETransformerRegressorLayer):
    """A layer of CAE's regressor that keeps its inputs only."""

    with_cp = True

    def forward(self, x_q: Tensor, x_kv: Tensor, pos_q: Tensor, pos_k: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return checkpoint(super().forward, x_q, x_kv, pos_q, pos_k, use_reentrant=False)


class RecomputedHiViTBlock(BlockWithRPE):
    """A block of HiViT, and of iTPN's pyramid, that keeps its input only."""

    with_cp = True

    def forward(self, x: Tensor, rpe_index: Any = None, mask: Tensor | None = None) -> Tensor:
        """(B, N, ..., C) -> (B, N, ..., C)."""
        return checkpoint(super().forward, x, rpe_index, mask, use_reentrant=False)


_RECOMPUTED: dict[type, type] = {
    TransformerEncoderLayer: RecomputedEncoderLayer,
    BEiTTransformerEncoderLayer: RecomputedBEiTEncoderLayer,
    PromptTransformerEncoderLayer: RecomputedPromptLayer,
    CAETransformerRegressorLayer: RecomputedRegressorLayer,
    BlockWithRPE: RecomputedHiViTBlock,
}


def checkpoint_heavy_network(model: nn.Module) -> None:
    """Let the blocks of an attached model's heavy network be computed again in backward.

    Raises:
        ValueError: the heavy network has no block that can be.
    """
    host = model.get_submodule(attachment_of(model).seams.host)
    found = [_recompute(module) for module in host.modules()]
    if not any(found):
        raise ValueError(
            f'with_cp=True: {type(host).__name__}, the heavy network of {type(model).__name__}, has '
            'no block that can be computed again: neither one with the option with_cp nor one of '
            f'{", ".join(cls.__name__ for cls in _RECOMPUTED)}; leave with_cp out'
        )


def _recompute(module: Any) -> bool:
    """Change one module; whether it is such a block."""
    found = type(module)
    base = next((cls for cls in found.__mro__ if cls in _RECOMPUTED), None)
    if base is not None:
        recomputed = _RECOMPUTED[base]
        module.__class__ = recomputed if found is base else between(found, base, recomputed)
    elif hasattr(module, 'with_cp'):
        module.with_cp = True
    else:
        return False
    return True

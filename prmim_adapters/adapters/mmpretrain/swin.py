# SPDX-License-Identifier: Apache-2.0
"""mmpretrain's Swin as ``packed/swin.py`` runs it: its blocks, shift, padding and patch merging.

Shift and ``pad_small_map`` follow mmpretrain's ``ShiftWindowMSA`` (models/utils/attention.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmpretrain.models.utils import ShiftWindowMSA
from mmpretrain.models.utils.attention import WindowMSA
from torch import Tensor

from ...core.partition import Grid
from ...packed.swin import Stage, SwinBlock, unit_side
from ...packed.units import Units
from ...packed.window_attention import WindowAttention


def check_packable(backbone: Any) -> None:
    """Refuse a Swin that cannot run packed.

    Raises:
        ValueError: another attention, patch merging or output than SimMIM's configs have.
    """
    last = backbone.num_layers - 1
    if tuple(backbone.out_indices) != (last,):
        raise ValueError(
            f'out_indices={tuple(backbone.out_indices)}: thrown tokens are reconstructed from the '
            f'last stage; set out_indices=({last},)'
        )
    for stage in backbone.stages:
        for block in stage.blocks:
            if type(block.attn.w_msa) is not WindowMSA:
                raise ValueError(
                    f'window attention {type(block.attn.w_msa).__name__}: only WindowMSA can run '
                    'on packed tokens'
                )
        merging = stage.downsample
        if merging is not None:
            sampler = merging.sampler
            found = (sampler.kernel_size, sampler.stride, sampler.padding, sampler.dilation)
            if found != ((2, 2), (2, 2), (0, 0), (1, 1)):
                raise ValueError(
                    f'patch merging with kernel, stride, padding, dilation = {found}: only 2x2 '
                    'blocks, stride 2, no padding stay inside a unit'
                )


def embed_units(backbone: Any, images: Tensor, units: Units) -> Tensor:
    """Patch embedding of some units of images (B, 3, H, W): packed tokens (B, N, C)."""
    tokens, _ = backbone.patch_embed(units.cut(images))
    return tokens.reshape(images.shape[0], -1, tokens.shape[-1])


def stages(backbone: Any, grid: Grid) -> Iterator[Stage]:
    """The stages of a ``SimMIMSwinTransformer`` on a map of ``grid`` units."""
    side = unit_side(backbone.num_layers)
    for depth, stage in enumerate(backbone.stages):
        size = grid[0] * side >> depth, grid[1] * side >> depth
        yield [_describe(block, size) for block in stage.blocks], _merge(stage.downsample)


def _describe(block: Any, size: Grid) -> SwinBlock:
    attention = block.attn
    msa = attention.w_msa

    def update(x: Tensor, attended: Tensor) -> Tensor:
        x = x + attention.drop(msa.proj_drop(msa.proj(attended)))
        return block.ffn(block.norm2(x), identity=x)

    return SwinBlock(
        qkv=lambda x: msa.qkv(block.norm1(x)),
        attention=WindowAttention.of(msa),
        update=update,
        window=attention.window_size,
        shift=_effective_shift(attention, size),
        recompute=block.with_cp,
    )


def _merge(merging: Any | None) -> Any:
    """The ``PatchMerging`` of mmcv, channel-major like its ``nn.Unfold``: channel, row, column."""
    if merging is None:
        return None

    def merge(x: Tensor) -> Tensor:
        x = x.movedim(-1, -3).flatten(-3)
        return merging.reduction(merging.norm(x) if merging.norm else x)

    return merge


def _effective_shift(attention: ShiftWindowMSA, size: Grid) -> int:
    """The shift on a map of this size: upstream drops it where one window spans the map."""
    smallest = min(size)
    if smallest < attention.window_size and not attention.pad_small_map:
        raise ValueError(
            f'the {size[0]}x{size[1]} map is smaller than the window {attention.window_size}: set '
            'pad_small_map=True or decrease window_size'
        )
    if smallest == attention.window_size and not attention.pad_small_map:
        return 0
    return attention.shift_size

# SPDX-License-Identifier: Apache-2.0
"""Swin on present units only: what mmpretrain's Swin computes, without the thrown tokens.

A *unit* is the patch of image under one token of the last stage: ``2 ** (stages - 1)`` tokens on a
side in the first stage (8), half as many after every patch merging. A unit is present or thrown
as a whole, so tokens stay packed as (B, U * side * side, C), unit after unit and row-major inside
each, through all stages: LayerNorm, QKV, projection, MLP and patch merging (whose 2x2 blocks never
cross a unit) see present tokens only. Together they are 98 % of the multiply-adds.

Attention alone is dense, in windows (see ``windows.py``). The dense copies and the attention matrix
are recomputed in backward, so stored activations are proportional to present tokens as well.

The result is exactly the dense network with thrown keys masked. Shift and ``pad_small_map`` follow
mmpretrain's ``ShiftWindowMSA`` [0].

[0] Liu et al., Swin Transformer, ICCV 2021; mmpretrain/models/utils/attention.py
"""

from __future__ import annotations

from typing import Any

import torch
from mmpretrain.models.utils import ShiftWindowMSA
from mmpretrain.models.utils.attention import WindowMSA
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..core.partition import Grid
from .windows import Windows, attend, place, tiles, unit_side, window_layout


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


def embed_units(backbone: Any, images: Tensor, units: Tensor, grid: Grid) -> Tensor:
    """Patch embedding of some units.

    Args:
        backbone: a SimMIMSwinTransformer.
        images: (B, 3, H, W).
        units: (B, U) int64.
        grid: units in (height, width).

    Returns:
        (B, U * side * side, C) packed tokens.
    """
    image = torch.arange(images.shape[0], device=images.device)[:, None]
    tokens, _ = backbone.patch_embed(tiles(images, grid)[image, units].flatten(0, 1))
    return tokens.reshape(images.shape[0], -1, tokens.shape[-1])


def packed_stages(backbone: Any, x: Tensor, units: Tensor, grid: Grid) -> Tensor:
    """All stages on packed tokens.

    Args:
        backbone: a SimMIMSwinTransformer.
        x: (B, U * side * side, C) packed first-stage tokens of the units.
        units: (B, U) int64, the present units, distinct within an image.
        grid: units in (height, width).

    Returns:
        (B, U, C_last), the last stage's output and norm, in the order of ``units``.
    """
    side = unit_side(backbone.num_layers)
    for stage in backbone.stages:
        placed: dict[tuple[int, int], Windows] = {}  # two at most: shifted and not
        for block in stage.blocks:
            key = block.attn.window_size, _effective_shift(block.attn, grid, side)
            if key not in placed:
                placed[key] = place(window_layout(grid, side, *key, x.device), units)
            x = packed_block(block, x, placed[key])
        if stage.downsample is not None:
            x = packed_merging(stage.downsample, x, side)
            side //= 2
    return getattr(backbone, f'norm{backbone.num_layers - 1}')(x)


def packed_block(block: Any, x: Tensor, windows: Windows) -> Tensor:
    """A ``SwinBlock`` on packed tokens (B, N, C)."""
    recompute = torch.is_grad_enabled() and not block.with_cp

    def inner(x: Tensor) -> Tensor:
        x = x + packed_attention(block.attn, block.norm1(x), windows, recompute)
        return block.ffn(block.norm2(x), identity=x)

    if block.with_cp and x.requires_grad:
        return checkpoint(inner, x, use_reentrant=False)
    return inner(x)


def packed_attention(
    attention: ShiftWindowMSA, x: Tensor, windows: Windows, recompute: bool
) -> Tensor:
    """A ``ShiftWindowMSA`` on packed tokens (B, N, C).

    ``recompute`` stores the packed QKV only, and makes the windows again in backward.
    """
    msa = attention.w_msa
    qkv = msa.qkv(x)
    if recompute:
        random = msa.training and msa.attn_drop.p > 0
        attended = checkpoint(
            attend, msa, qkv, windows, use_reentrant=False, preserve_rng_state=random
        )
    else:
        attended = attend(msa, qkv, windows)
    return attention.drop(msa.proj_drop(msa.proj(attended)))


def packed_merging(merging: Any, x: Tensor, side: int) -> Tensor:
    """The ``PatchMerging`` of mmcv on packed tokens (B, U * side * side, C), ``side`` even."""
    half = side // 2
    x = x.unflatten(1, (-1, half, 2, half, 2))  # B, U, rows, ky, columns, kx, C
    x = x.permute(0, 1, 2, 4, 6, 3, 5)  # channel-major like nn.Unfold: C, ky, kx
    x = x.flatten(4).flatten(1, 3)
    return merging.reduction(merging.norm(x) if merging.norm else x)


def _effective_shift(attention: ShiftWindowMSA, grid: Grid, side: int) -> int:
    """The shift on a map of this size: upstream drops it where one window spans the map."""
    smallest = min(grid) * side
    if smallest < attention.window_size and not attention.pad_small_map:
        raise ValueError(
            f'the {grid[0] * side}x{grid[1] * side} map is smaller than the window '
            f'{attention.window_size}: set pad_small_map=True or decrease window_size'
        )
    if smallest == attention.window_size and not attention.pad_small_map:
        return 0
    return attention.shift_size

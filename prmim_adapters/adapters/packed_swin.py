# SPDX-License-Identifier: Apache-2.0
"""Swin on present units only: what mmpretrain's Swin computes, without the thrown tokens.

A *unit* is the patch of image under one token of the last stage: ``2 ** (stages - 1)`` tokens on a
side in the first stage (8), half as many after every patch merging. A unit is present or thrown
as a whole, so tokens stay packed as (B, U * side * side, C), unit after unit and row-major inside
each, through all stages: LayerNorm, QKV, projection, MLP and patch merging (whose 2x2 blocks never
cross a unit) see present tokens only. Together they are 98 % of the multiply-adds.

Attention alone is dense: packed QKV are copied into the (shifted, padded) windows of the map, keys
at thrown positions are masked, and the outputs are copied back. That is exactly the dense network
with thrown keys masked; a window without any present token computes finite numbers that nobody
reads. The dense copies and the attention matrix are recomputed in backward, so stored activations
are proportional to present tokens as well.

The shift, padding and region rules are those of mmpretrain's ``ShiftWindowMSA`` [0], including
``pad_small_map``: padded positions are *not* thrown, they are keys and values equal to the QKV
bias, as upstream.

[0] Liu et al., Swin Transformer, ICCV 2021; mmpretrain/models/utils/attention.py
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from mmpretrain.models.utils import ShiftWindowMSA
from mmpretrain.models.utils.attention import WindowMSA
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Grid = tuple[int, int]

#: Added to the scores of thrown keys. Finite: a row of -inf has no softmax, and windows without a
#: present token have only such rows. exp() of it is 0 in fp32, bf16 and fp16.
ABSENT = -1e4


@dataclass(frozen=True)
class WindowLayout:
    """Where the tokens of every unit lie in the windows of one attention layer.

    Attributes:
        slots: (units, side * side) int64; window * area + place in the window.
        region: (windows, 1, area, area) float32, upstream's mask of a shifted map, or None.
        padding: (windows * area,) bool, True where the map is padded, or None.
        area: tokens of a window.
    """

    slots: Tensor
    region: Tensor | None
    padding: Tensor | None
    area: int
    num_slots: int


@dataclass(frozen=True)
class Windows:
    """A :class:`WindowLayout` applied to the present units of one batch.

    Attributes:
        rows: (B * N,) int64, the row of each packed token among the B * num_slots slots.
        mask: (B, windows, 1, 1 or area, area) float32, added to the scores.
        layout: the layout.
    """

    rows: Tensor
    mask: Tensor
    layout: WindowLayout


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


def unit_side(backbone: Any) -> int:
    """Side of a unit in first-stage tokens, 8 for four stages."""
    return 2 ** (backbone.num_layers - 1)


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


def tiles(image: Tensor, grid: Grid) -> Tensor:
    """Cut (B, C, H, W) into (B, h * w, C, H / h, W / w); grid (h, w)."""
    image = image.unflatten(2, (grid[0], -1)).unflatten(4, (grid[1], -1))
    return image.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


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
    side = unit_side(backbone)
    for stage in backbone.stages:
        windows: dict[int, Windows] = {}
        for block in stage.blocks:
            shift = _effective_shift(block.attn, grid, side)
            if shift not in windows:
                window = block.attn.window_size
                layout = window_layout(grid, side, window, shift, x.device)
                windows[shift] = _place(layout, units)
            x = packed_block(block, x, windows[shift])
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
            _attend, msa, qkv, windows, use_reentrant=False, preserve_rng_state=random
        )
    else:
        attended = _attend(msa, qkv, windows)
    return attention.drop(msa.proj_drop(msa.proj(attended)))


def packed_merging(merging: Any, x: Tensor, side: int) -> Tensor:
    """The ``PatchMerging`` of mmcv on packed tokens (B, U * side * side, C), ``side`` even."""
    half = side // 2
    x = x.unflatten(1, (-1, half, 2, half, 2))  # B, U, rows, ky, columns, kx, C
    x = x.permute(0, 1, 2, 4, 6, 3, 5)  # channel-major like nn.Unfold: C, ky, kx
    x = x.flatten(4).flatten(1, 3)
    return merging.reduction(merging.norm(x) if merging.norm else x)


def _attend(msa: WindowMSA, qkv: Tensor, windows: Windows) -> Tensor:
    """Window attention of packed qkv (B, N, 3C) -> (B, N, C)."""
    batch, heads, area = qkv.shape[0], msa.num_heads, windows.layout.area
    dense = _empty_windows(msa, qkv, windows.layout)
    dense = dense.index_copy(0, windows.rows, qkv.flatten(0, 1))
    q, k, v = dense.view(-1, area, 3, heads, msa.embed_dims // heads).permute(2, 0, 3, 1, 4)
    bias = msa.relative_position_bias_table[msa.relative_position_index.flatten()]
    bias = bias.view(area, area, heads).permute(2, 0, 1)
    scores = (q * msa.scale) @ k.transpose(-2, -1) + bias
    scores = scores.unflatten(0, (batch, -1)) + windows.mask.to(scores.dtype)
    weights = msa.attn_drop(msa.softmax(scores.flatten(0, 1)))
    out = (weights @ v).transpose(1, 2).reshape(-1, msa.embed_dims)
    return out.index_select(0, windows.rows).view(batch, -1, msa.embed_dims)


def _empty_windows(msa: WindowMSA, qkv: Tensor, layout: WindowLayout) -> Tensor:
    """(B * num_slots, 3C): zeros; at padded positions what QKV makes of a zero token."""
    batch, channels = qkv.shape[0], qkv.shape[-1]
    if layout.padding is None or msa.qkv.bias is None:
        return qkv.new_zeros(batch * layout.num_slots, channels)
    filler = layout.padding[:, None] * msa.qkv.bias
    return filler.to(qkv.dtype).repeat(batch, 1)


def _place(layout: WindowLayout, units: Tensor) -> Windows:
    batch = units.shape[0]
    image = torch.arange(batch, device=units.device)[:, None, None] * layout.num_slots
    rows = (layout.slots[units] + image).flatten()
    mask = torch.full((batch * layout.num_slots,), ABSENT, device=units.device)
    mask = mask.index_fill(0, rows, 0.0).view(batch, -1)
    if layout.padding is not None:
        mask = mask.masked_fill(layout.padding, 0.0)
    mask = mask.view(batch, -1, 1, 1, layout.area)
    return Windows(rows, mask if layout.region is None else mask + layout.region, layout)


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


@lru_cache(maxsize=64)
def window_layout(
    grid: Grid, side: int, window: int, shift: int, device: torch.device
) -> WindowLayout:
    """The layout of one attention layer; cached, as all steps share it.

    Args:
        grid: units in (height, width).
        side: tokens on a side of a unit in this stage.
        window: tokens on a side of a window.
        shift: cyclic shift towards the top left, in tokens.
        device: of the tensors.
    """
    with torch.inference_mode(False):  # a cached inference tensor could not be used in training
        height, width = grid[0] * side, grid[1] * side
        rows, columns = -(-height // window), -(-width // window)
        position = torch.arange(rows * columns * window**2, device=device)
        position = position.view(rows * window, columns * window)

        def by_window(map_: Tensor) -> Tensor:
            map_ = map_.roll((-shift, -shift), (0, 1))
            return map_.view(rows, window, columns, window).transpose(1, 2).flatten()

        slots = torch.empty_like(position).flatten()
        slots[by_window(position)] = torch.arange(slots.numel(), device=device)
        slots = slots.view_as(position)[:height, :width]
        slots = slots.reshape(grid[0], side, grid[1], side).transpose(1, 2).reshape(-1, side**2)

        padding = torch.ones_like(position, dtype=torch.bool)
        padding[:height, :width] = False
        region = ShiftWindowMSA.get_attn_mask(tuple(position.shape), window, shift, device)
        return WindowLayout(
            slots=slots,
            region=None if region is None else region[:, None],
            padding=by_window(padding) if position.shape != (height, width) else None,
            area=window**2,
            num_slots=position.numel(),
        )

# SPDX-License-Identifier: Apache-2.0
"""Farthest point sampling as one Triton kernel: a program per image, all steps in registers.

The same integers in the same order as the reference in :mod:`.sampling`, so the same tokens, bit
for bit. Imported only when masks are on a CUDA device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    available_ptr,  # (B, L) int8: masked tokens
    nearest_ptr,  # (B, L) int64: squared distance to the nearest present token
    noise_ptr,  # (B, L) int64: breaks ties
    count_ptr,  # (B,) int64: tokens to keep
    kept_ptr,  # (B, L) int8, written
    length,
    width,
    noise_bits: tl.constexpr,
    block: tl.constexpr,  # power of two >= L
):
    image = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, block)
    inside = place < length
    here = image * length + place
    available = tl.load(available_ptr + here, mask=inside, other=0) != 0
    nearest = tl.load(nearest_ptr + here, mask=inside, other=0)
    noise = tl.load(noise_ptr + here, mask=inside, other=0)
    count = tl.load(count_ptr + image)
    row = place // width
    column = place % width
    kept = place < 0
    for _ in range(count):
        score = tl.where(available, (nearest << noise_bits) + noise, -1)
        score = tl.where(inside, score, -2)
        best = tl.max(score, axis=0)
        chosen = tl.min(tl.where(score == best, place, block), axis=0)  # the first of equals
        kept = kept | (place == chosen)
        available = available & (place != chosen)
        down = row - chosen // width
        right = column - chosen % width
        nearest = tl.minimum(nearest, (down * down + right * right).to(tl.int64))
    tl.store(kept_ptr + here, kept.to(tl.int8), mask=inside)


def farthest(
    mask: Tensor, nearest: Tensor, count: Tensor, noise: Tensor, width: int, noise_bits: int
) -> Tensor:
    """Choose the kept tokens of every image.

    Args:
        mask: (B, L) bool, True = masked.
        nearest: (B, L) int64, squared distance of every token to the nearest present one.
        count: (B, 1) int64, tokens to keep, at most the masked ones.
        noise: (B, L) int64, non-negative, below ``2 ** noise_bits``.
        width: of the grid, in tokens.
        noise_bits: by which a distance outweighs the noise.

    Returns:
        (B, L) bool.
    """
    images, length = mask.shape
    kept = mask.new_empty(mask.shape, dtype=torch.int8)  # contiguous, whatever the mask is
    block = triton.next_power_of_2(length)
    with torch.cuda.device_of(mask):  # Triton launches on the current device
        _kernel[(images,)](
            mask.to(torch.int8).contiguous(),
            nearest.contiguous(),
            noise.contiguous(),
            count.flatten().contiguous(),
            kept,
            length,
            width,
            noise_bits=noise_bits,
            block=block,
            num_warps=min(max(block // 128, 1), 8),
        )
    return kept.bool()

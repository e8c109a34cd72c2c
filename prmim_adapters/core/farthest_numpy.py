# SPDX-License-Identifier: Apache-2.0
"""Farthest point sampling on a CPU: all points of one distance in a few rounds.

Equal to the reference in :mod:`.sampling` bit for bit. While the largest distance of a candidate
to the present points is D, each next point is the candidate at D with the largest noise, and takes
only candidates nearer to it than D out of the choice. What is chosen at D is therefore the set
that a greedy walk over the candidates at D finds, and that needs no walk [0]: a candidate whose
noise is larger than that of every candidate nearer than D is in the set whatever comes before.

Work is proportional to the tokens and the kept ones, not to their product.

[0] Blelloch et al., Greedy Sequential Maximal Independent Set and Matching are Parallel on
    Average, SPAA 2012.
"""

from __future__ import annotations

from math import isqrt

import numpy as np
import torch
from torch import Tensor

from .partition import Grid

#: Squared distance above which points are few, and are chosen one by one.
FAR = 64


@torch.no_grad()
def farthest(mask: Tensor, nearest: Tensor, count: Tensor, noise: Tensor, grid: Grid) -> Tensor:
    """Choose the kept tokens of every image.

    Args:
        mask: (B, L) bool, True = masked.
        nearest: (B, L) int64, squared distance of every token to the nearest present one.
        count: (B, 1) int64, tokens to keep, at most the masked ones.
        noise: (B, L) int64, breaks ties; of equal ones the first.
        grid: (H, W).

    Returns:
        (B, L) bool.
    """
    # Squared distances, 0 where there is nothing to choose (any more).
    near = torch.where(mask, nearest, 0).to(torch.int32).view(-1, *grid).numpy()
    left = count.flatten().numpy().copy()
    order = noise.numpy() * mask.shape[1] - np.arange(mask.shape[1])
    order = (order - order.min(initial=0)).reshape(near.shape)
    kept = np.zeros(near.shape, dtype=bool)
    near[left == 0] = 0
    _one_by_one(near, order, left, kept)
    _by_distance(near, order, left, kept)
    return torch.from_numpy(kept).view_as(mask)


def _one_by_one(near: np.ndarray, order: np.ndarray, left: np.ndarray, kept: np.ndarray) -> None:
    """Choose while the largest distance is above ``FAR``; arrays (B, H, W), changed in place."""
    images, height, width = near.shape
    image, rows, columns = np.arange(images), np.arange(height), np.arange(width)
    while near.max(initial=0) > FAR:
        top = near.max(axis=(1, 2), keepdims=True)
        place = np.where(near == top, order, -1).reshape(images, -1).argmax(axis=1)
        row, column = place // width, place % width
        kept[image, row, column] |= left > 0
        down, right = (rows - row[:, None]) ** 2, (columns - column[:, None]) ** 2
        np.minimum(near, down[:, :, None] + right[:, None], out=near, casting='same_kind')
        left -= left > 0
        near[left == 0] = 0


def _by_distance(near: np.ndarray, order: np.ndarray, left: np.ndarray, kept: np.ndarray) -> None:
    """Choose the rest, one distance of all images after the other."""
    height, width = near.shape[1:]
    top = int(near.max(initial=0))
    margin = isqrt(top)
    inner = (slice(None), slice(margin, margin + height), slice(margin, margin + width))
    pad = (0, 0), (margin, margin), (margin, margin)
    near, order = np.pad(near, pad), np.pad(order, pad)
    taken = np.zeros(near.size, dtype=bool)
    square, shift = _disc(margin, near.shape[2])
    nearest, rivals = near.reshape(-1), np.full(near.size, -1)
    order, size = order.reshape(-1), near.shape[1] * near.shape[2]
    while top:
        inside = square < top
        square, shift = square[inside], shift[inside]
        chosen = _independent(np.flatnonzero(nearest == top), order, shift[:-1], rivals)
        chosen, found = _first(chosen, order, chosen // size, left)
        taken[chosen] = True
        left -= found
        # Of several values for one position the last is assigned: the smallest, as sorted.
        reach = shift[:, None] + chosen
        nearest[reach] = np.minimum(nearest[reach], square[:, None])
        near[left == 0] = 0
        top = int(nearest.max())
    kept |= taken.reshape(near.shape)[inner]


def _disc(radius: int, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances up to a radius, the largest first, and steps in a map of ``row`` columns."""
    line = np.arange(-radius, radius + 1)
    square = (line[:, None] ** 2 + line**2).flatten()
    order = np.argsort(-square, kind='stable')
    return square[order].astype(np.int32), (line[:, None] * row + line).flatten()[order]


def _independent(
    candidates: np.ndarray, order: np.ndarray, around: np.ndarray, rivals: np.ndarray
) -> np.ndarray:
    """What a greedy walk from the largest ``order`` chooses, no two within ``around``.

    Args:
        candidates: (n,) positions.
        order: of every position.
        around: (m,) steps to the positions that exclude each other.
        rivals: -1 at every position; the same when done.
    """
    if not len(around):
        return candidates
    chosen = []
    rivals[candidates] = order[candidates]
    while len(candidates):
        wins = rivals[candidates] > rivals[candidates[:, None] + around].max(axis=1)
        winners = candidates[wins]
        chosen.append(winners)
        rivals[winners] = -1
        rivals[winners[:, None] + around] = -1
        candidates = candidates[rivals[candidates] >= 0]
    return np.concatenate(chosen)


def _first(
    chosen: np.ndarray, order: np.ndarray, image: np.ndarray, left: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """At most ``left`` (B,) of the chosen ones of each image, the first in the walk; how many."""
    found = np.bincount(image, minlength=len(left))
    if (found <= left).all():
        return chosen, found
    walk = image * (order.max() + 1) - order[chosen]
    taken = np.minimum(found, left)
    last = np.sort(walk)[found.cumsum() - found + taken - 1]  # unused where none is taken
    return chosen[walk <= last[image]], taken

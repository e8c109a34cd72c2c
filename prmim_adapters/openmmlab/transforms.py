# SPDX-License-Identifier: Apache-2.0
"""Multi-crop views with masks, and iBOT's masks of random ratio."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmpretrain.datasets.transforms import MultiView
from mmpretrain.registry import TRANSFORMS

from ..core.options import check_choice


@TRANSFORMS.register_module()
class MaskedMultiView(MultiView):
    """``MultiView`` that keeps the mask of each view that makes one.

    The masks are stacked to one array, which is what ``PackInputs`` and ``default_collate`` take.

    Required keys: img. Modified keys: img, a list of V views. Added keys: mask (G, h, w) bool, of
    the G views with a mask generator, in their order.

    Args:
        transforms (list[list[dict]]): One pipeline for each kind of view.
        num_views (int | list[int]): Number of views of each kind.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Make all views of one image."""
        views = [pipeline(copy.deepcopy(results)) for pipeline in self.transforms]
        results['img'] = [view['img'] for view in views]
        masks = [view['mask'] for view in views if 'mask' in view]
        if masks:
            results['mask'] = np.stack(masks)
        return results


@TRANSFORMS.register_module()
class RandomRatioMask(BaseTransform):
    """A mask whose ratio is drawn anew for each view, as in iBOT (arXiv 2111.07832, section 3.2).

    One of ``mask_ratio`` is chosen, and a uniform deviation of up to its ``variance`` added. The
    published masks, ratio 0 or 0.3 +- 0.2 in blocks, leave half of the views whole; their counts
    differ from view to view (ragged). A single ratio without variance and ``shape='random'``
    masks the same number of tokens in every view.

    Added keys: mask (h, w) bool, True = masked.

    Args:
        input_size: patches per side of the view, or (h, w).
        mask_ratio: the ratios to choose from, in [0, 1]; 'random' masks ``int(ratio * h * w)``
            tokens, 'block' at most that many, and as many as its blocks fit.
        variance: largest deviation from each of them, one for all or one each.
        shape: 'block', the blocks of BEiT (arXiv 2106.08254, algorithm 1), or 'random',
            independent tokens.
        aspect: smallest ratio of height to width of a block; the largest is its inverse.

    Raises:
        ValueError: a ratio leaves [0, 1], or an argument is not as above.
    """

    def __init__(
        self,
        input_size: int | tuple[int, int],
        mask_ratio: float | Sequence[float] = (0.0, 0.3),
        variance: float | Sequence[float] = (0.0, 0.2),
        shape: str = 'block',
        aspect: float = 0.3,
    ) -> None:
        height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
        ratios = [mask_ratio] if isinstance(mask_ratio, (int, float)) else list(mask_ratio)
        if isinstance(variance, (int, float)):
            variance = [variance] * len(ratios)
        if len(variance) != len(ratios):
            raise ValueError(
                f'variance={tuple(variance)} for mask_ratio={tuple(ratios)}: give one for all, or '
                'one each'
            )
        for ratio, deviation in zip(ratios, variance, strict=True):
            if not 0 <= ratio - deviation <= ratio + deviation <= 1:
                raise ValueError(
                    f'mask_ratio={ratio} with variance={deviation}: ratio - variance and '
                    'ratio + variance must be between 0 and 1'
                )
        check_choice('shape', shape, ('block', 'random'))
        self.height, self.width = height, width
        self.ranges = [(r - d, r + d) for r, d in zip(ratios, variance, strict=True)]
        self.shape = shape
        self.log_aspect = (math.log(aspect), -math.log(aspect))

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add a mask."""
        low, high = self.ranges[np.random.randint(len(self.ranges))]
        budget = np.random.uniform(low, high) * self.height * self.width
        results['mask'] = self._random(budget) if self.shape == 'random' else self._block(budget)
        return results

    def _random(self, budget: float) -> np.ndarray:
        # Half a thousandth guards ratios such as 0.7 * 10 * 10 = 69.999...
        masked = np.arange(self.height * self.width) < int(budget + 5e-4)
        return np.random.permutation(masked).reshape(self.height, self.width)

    def _block(self, budget: float) -> np.ndarray:
        """Union of blocks of at most ``budget`` tokens; ends when no block fits in ten tries."""
        mask = np.zeros((self.height, self.width), dtype=bool)
        count = 0
        while count < budget and self._add_block(mask, budget - count):
            count = int(mask.sum())
        return mask

    def _add_block(self, mask: np.ndarray, budget: float) -> bool:
        """Add one block of at most ``budget`` new tokens in place; False if none fitted."""
        smallest = (min(mask.shape) // 3) ** 2
        for _ in range(10):
            area = np.random.uniform(*sorted((smallest, budget)))
            aspect = math.exp(np.random.uniform(*self.log_aspect))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= self.height or width >= self.width:
                continue
            top = np.random.randint(self.height - height + 1)
            left = np.random.randint(self.width - width + 1)
            block = mask[top : top + height, left : left + width]
            if 0 < block.size - block.sum() <= budget:
                block[:] = True
                return True
        return False

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(input_size={self.height, self.width}, ranges={self.ranges}, '
            f'shape={self.shape!r})'
        )

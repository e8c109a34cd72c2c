# SPDX-License-Identifier: Apache-2.0
"""Sampling, partition and aggregation: alone, as they grow, and as a share of a step."""

from __future__ import annotations

from typing import Any

import light_stages
import torch

from .context import Context


def measure(context: Context, config: str, images: int) -> dict[str, Any]:
    """What ``benchmarks/light_stages.py`` measures, at the size of the step that it is a share of."""
    device, path = torch.device(context.device), context.config(config)
    repeats = 1 if context.dry else 15
    images, sizes = (2, (1,)) if context.dry else (images, (8, 256))  # 8 as in the CPU's table
    width = 32 if context.dry else 512
    result = {'clock': 'wall', 'stages': None, 'sampling_by_size': None, 'share': None}
    parts = {
        'stages': lambda: light_stages.stages(images, 14, width, device, repeats),
        'sampling_by_size': lambda: [
            row for size in sizes for row in light_stages.sampling_by_size(size, device, repeats)
        ],
        'share': lambda: light_stages.share_of_step(
            path, images, device, repeats, 'fp32' if context.dry else 'bf16'
        ),
    }
    for name, part in parts.items():
        result[name] = part()
        context.keep(result)
    return result

# SPDX-License-Identifier: Apache-2.0
"""Images of another size than the model's: an error that names both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..core.partition import Grid


@contextmanager
def both_sizes_named(model: nn.Module, inputs: Any) -> Iterator[None]:
    """Whatever fails inside is said to be the size of the images where that is not the model's.

    Args:
        model: framework, attached or not.
        inputs: (B, C, H, W), or a list of such views, of which the first counts.

    Raises:
        ValueError: the sizes differ, and the block failed.
    """
    try:
        yield
    except Exception as error:
        first = inputs if isinstance(inputs, Tensor) else inputs[0]
        expected = _size_of(model)
        found = tuple(getattr(first, 'shape', ())[-2:])
        if expected is None or len(found) != 2 or found == expected:
            raise
        raise ValueError(
            f'the training pipeline gives images of {found[0]} x {found[1]} pixels, the model takes '
            f'{expected[0]} x {expected[1]}: set the crop of the pipeline to that size, or img_size '
            '(and what depends on it) in the model'
        ) from error


def _size_of(model: Any) -> Grid | None:
    """(H, W) in pixels of the images that the model says it takes."""
    for owner in (getattr(model, 'backbone', model), model):
        for name in ('img_size', 'input_size'):
            size = getattr(owner, name, None)
            if isinstance(size, int):
                return size, size
            if isinstance(size, (tuple, list)):
                return size[0], size[1]
    return None

# SPDX-License-Identifier: Apache-2.0
"""Batches that do not fit the model: an error that names what the pipeline gives and what to set."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..adapters import ADAPTERS
from ..core.partition import Grid


@contextmanager
def misfit_named(model: nn.Module, inputs: Any) -> Iterator[None]:
    """Whatever fails inside is put down to the batch where that is not of the model's kind.

    Args:
        model: framework, attached or not.
        inputs: (B, C, H, W), or a list of such views, of which the first counts.

    Raises:
        ValueError: the block failed, and the batch has views, no mask, or a size that the model
            does not take.
    """
    try:
        yield
    except Exception as error:
        reason = (
            _other_views(model, inputs, error)
            or _no_mask(model, error)
            or _other_size(model, inputs)
        )
        if reason is None:
            raise
        raise ValueError(f'the training pipeline {reason}') from error


def _other_views(model: Any, inputs: Any, error: Exception) -> str | None:
    if isinstance(inputs, Tensor):
        given, too_few = 'one view', _takes_list(model)
    else:
        given, too_few = f'a list of {len(inputs)} views', isinstance(error, IndexError)
    if too_few:
        return (
            f'gives {given} of each image, and {_name(model)} takes more: use '
            'RandomResizedCropAndInterpolationWithTwoPic for BEiT, CAE and iTPN, MaskedMultiView '
            'for iBOT'
        )
    as_tensor = isinstance(error, AttributeError | TypeError) and 'list' in str(error)
    if isinstance(inputs, Tensor) or not as_tensor:
        return None
    return (
        f'gives {given} of each image, and {_name(model)} takes the image itself: remove '
        'MultiView, or what else makes views'
    )


def _takes_list(model: Any) -> bool:
    """Whether the framework says so of the first argument of its ``loss``."""
    parameters = inspect.signature(getattr(model, 'loss', lambda: None)).parameters
    return 'inputs' in parameters and 'list[' in str(parameters['inputs'].annotation).lower()


def _no_mask(model: Any, error: Exception) -> str | None:
    if not isinstance(error, AttributeError) or error.name != 'mask':
        return None
    if not isinstance(error.obj, BaseDataElement):
        return None
    return (
        f'makes no mask, and {_name(model)} takes its masks from there: add a mask generator before '
        'PackInputs (SimMIMMaskGenerator, BEiTMaskGenerator; MaskedMultiView for iBOT)'
    )


def _name(model: nn.Module) -> str:
    """Of the framework, whose class may have changed."""
    return (ADAPTERS.find(type(model)) or type(model).__name__).rpartition('.')[2]


def _other_size(model: Any, inputs: Any) -> str | None:
    first = inputs if isinstance(inputs, Tensor) else inputs[0]
    expected, found = _size_of(model), tuple(getattr(first, 'shape', ())[-2:])
    if expected is None or len(found) != 2 or found == expected:
        return None
    return (
        f'gives images of {found[0]} x {found[1]} pixels, the model takes {expected[0]} x '
        f'{expected[1]}: set the crop of the pipeline to that size, or img_size (and what depends '
        'on it) in the model'
    )


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

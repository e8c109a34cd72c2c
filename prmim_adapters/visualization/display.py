# SPDX-License-Identifier: Apache-2.0
"""How a model's input becomes a picture: which channels are red, green, blue, and how bright.

The order of the channels depends on the step that reads files, on steps that turn them round, and
on the data preprocessor. It is measured rather than inferred: images of one colour go the whole way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.config import Config
from PIL import Image
from torch import Tensor

from ..openmmlab.models import input_channels
from .load import load_images

_COLOURS = [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255)]
_SIDE = 64


@dataclass(frozen=True)
class Display:
    """From images as the model sees them, (B, C, H, W), to red, green, blue in [0, 1].

    Attributes:
        channels: which of the C are red, green and blue.
        levels: (C,) values of black and of white; None: every image's own range in each channel.
    """

    channels: tuple[int, ...]
    levels: tuple[Tensor, Tensor] | None = None

    @property
    def note(self) -> str:
        """What a viewer should know; '' for colours and brightness as in the file."""
        if self.levels is not None:
            return ''
        shown = ', '.join(map(str, self.channels))
        return (
            f'Channels {shown} are shown as red, green and blue (--channels), each in the range '
            'that it has in the image.'
        )

    def fitted(self, inputs: Tensor) -> Display:
        """With levels: those of the inputs (B, C, H, W), where they are not known."""
        if self.levels is not None:
            return self
        shape = (*inputs.shape[:2], 1, 1)
        flat = inputs.flatten(2)
        return replace(self, levels=(flat.amin(2).view(shape), flat.amax(2).view(shape)))

    def __call__(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 3, H, W)."""
        assert self.levels is not None, 'fitted() comes first'
        black, white = (level.to(inputs) for level in self.levels)
        span = torch.where(white == black, torch.ones_like(white), white - black)
        return ((inputs - black) / span).clamp(0, 1)[:, list(self.channels)]


def display_of(config: Config, model: Any, channels: Sequence[int] | None = None) -> Display:
    """How to show images that the config's pipeline reads and the model is fed.

    Args:
        config: of the training.
        model: built from it.
        channels: three channels to show as red, green and blue, counted from 0. By default those
            that images of these colours light up; the first three where the pipeline reads no
            pictures, but files of bands.

    Raises:
        ValueError: the model has no such channel.
    """
    count = input_channels(model)
    if channels is not None and not all(0 <= channel < count for channel in channels):
        raise ValueError(f'--channels {tuple(channels)}: the model takes channels 0 to {count - 1}')
    response = _response(config, model, count)
    if response is None:
        return Display(tuple(channels or default_channels(count)))
    black, white = response[0], response[1]
    span = torch.where(white == black, torch.full_like(white, torch.inf), white - black)
    lit = ((response[2:] - black) / span).argmax(dim=1).tolist()
    found = lit if len(set(lit)) in (1, 3) else default_channels(count)
    shape = (count, 1, 1)
    return Display(tuple(channels or found), (black.view(shape), white.view(shape)))


def default_channels(count: int) -> tuple[int, ...]:
    """The first three of the channels, the last one again where there are fewer."""
    return tuple(min(channel, count - 1) for channel in range(3))


@torch.no_grad()
def _response(config: Config, model: Any, count: int) -> Tensor | None:
    """(5, C): what the model is fed for images of the colours; None if the pipeline reads none."""
    mode = {4: 'RGBA'}.get(count, 'RGB')
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / f'{index}.png' for index in range(len(_COLOURS))]
        for path, colour in zip(paths, _COLOURS, strict=True):
            Image.new('RGB', (_SIDE, _SIDE), colour).convert(mode).save(path)
        try:
            batch = model.data_preprocessor(load_images(config, model, paths), False)
        except Exception:  # of a step that reads files of another kind
            return None
    inputs = batch['inputs']
    inputs = inputs[0] if isinstance(inputs, (list, tuple)) else inputs
    return inputs.flatten(2).mean(2) if inputs.shape[1] == count else None

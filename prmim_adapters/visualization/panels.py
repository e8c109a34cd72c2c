# SPDX-License-Identifier: Apache-2.0
"""Pictures of an :class:`~prmim_adapters.visualization.observe.Observation`."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .observe import KEPT, THROWN, VISIBLE, Observation

#: RGB; blue and orange stay apart for colour-blind readers.
HIDDEN = (0.80, 0.80, 0.80)
COLOURS = {KEPT: (0.12, 0.40, 0.72), THROWN: (0.96, 0.66, 0.25)}
_GAP = 6


def panels(observation: Observation, side: int = 192) -> Image.Image:
    """One row per image: original, what the encoder sees, kept and thrown, reconstruction.

    Args:
        observation: of :func:`~prmim_adapters.visualization.observe.observe`.
        side: height of a panel in pixels.

    Returns:
        An RGB picture. Patches that the model does not predict stay grey; the last column is
        left out where the model predicts features.
    """
    columns = {
        'original': observation.images,
        'visible': _hide(observation, (KEPT, THROWN)),
        'kept / thrown': _role_map(observation),
    }
    if observation.reconstruction is not None:
        columns['reconstruction'] = _fill_unknown(observation.reconstruction)
    rows = [
        [_to_image(pixels[index], side) for pixels in columns.values()]
        for index in range(len(observation.images))
    ]
    return _table(list(columns), rows)


def _pixel_roles(observation: Observation) -> Tensor:
    """(B, 1, H, W) roles at every pixel."""
    roles = observation.roles[:, None].float()
    return F.interpolate(roles, size=observation.images.shape[-2:], mode='nearest').long()


def _hide(observation: Observation, hidden: tuple[int, ...]) -> Tensor:
    roles = _pixel_roles(observation)
    grey = observation.images.new_tensor(HIDDEN)[:, None, None]
    shown = observation.images
    for role in hidden:
        shown = (roles == role) * grey + (roles != role) * shown
    return shown


def _role_map(observation: Observation) -> Tensor:
    roles = _pixel_roles(observation)
    faded = 1 - 0.55 * (1 - observation.images)
    shown = (roles == VISIBLE) * faded
    for role, colour in COLOURS.items():
        shown = shown + (roles == role) * observation.images.new_tensor(colour)[:, None, None]
    return _grid_lines(shown, observation.roles.shape[1:])


def _grid_lines(pixels: Tensor, grid: tuple[int, ...]) -> Tensor:
    height, width = pixels.shape[2] // grid[0], pixels.shape[3] // grid[1]
    pixels = pixels.clone()
    pixels[:, :, ::height] = 1
    pixels[:, :, :, ::width] = 1
    return pixels


def _fill_unknown(pixels: Tensor) -> Tensor:
    return pixels.where(~pixels.isnan(), pixels.new_tensor(HIDDEN)[:, None, None])


def _to_image(pixels: Tensor, side: int) -> Image.Image:
    array = (pixels.permute(1, 2, 0).float().cpu().numpy() * 255).round().astype(np.uint8)
    image = Image.fromarray(array)
    width = round(image.width * side / image.height)
    return image.resize((width, side), Image.Resampling.NEAREST)


def _table(titles: list[str], rows: list[list[Image.Image]]) -> Image.Image:
    size, top = rows[0][0].size, 22
    step = (size[0] + _GAP, size[1] + _GAP)
    sheet = Image.new(
        'RGB', (step[0] * len(titles) + _GAP, step[1] * len(rows) + _GAP + top), 'white'
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    for column, title in enumerate(titles):
        left = _GAP + column * step[0]
        draw.text((left, 4), title, fill='black', font=font)
        for row, images in enumerate(rows):
            sheet.paste(images[column], (left, top + _GAP + row * step[1]))
    return sheet

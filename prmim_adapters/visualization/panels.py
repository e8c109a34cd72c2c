# SPDX-License-Identifier: Apache-2.0
"""Pictures of an :class:`~prmim_adapters.visualization.observe.Observation`, with their legend."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .observe import KEPT, THROWN, VISIBLE, Observation

#: RGB; blue and orange stay apart for colour-blind readers.
HIDDEN = (0.80, 0.80, 0.80)
COLOURS = {KEPT: (0.12, 0.40, 0.72), THROWN: (0.96, 0.66, 0.25)}
#: Error map: no error, to the largest one that it tells apart (half of the range from black to white).
ERRORS = ((1.0, 1.0, 1.0), (0.70, 0.05, 0.10))
LARGEST_ERROR = 0.5
_GAP, _TOP, _LEGEND = 6, 22, 26


def panels(observation: Observation, side: int = 192) -> Image.Image:
    """One row per image: original, visible, kept and thrown, reconstruction, error; a legend below.

    Masked patches that the model does not predict stay grey in every panel.

    Args:
        observation: of :func:`~prmim_adapters.visualization.observe.observe`.
        side: height of a panel in pixels.

    Returns:
        An RGB picture. The last two columns are left out where the model predicts features.
    """
    columns = {
        'original': observation.images,
        'visible': _hide(observation, (KEPT, THROWN)),
        'kept / thrown': _role_map(observation),
    }
    legend = {'masked': HIDDEN, 'kept': COLOURS[KEPT], 'thrown': COLOURS[THROWN]}
    if observation.reconstruction is not None:
        columns['reconstruction'] = _fill_unknown(observation.reconstruction)
        columns['error'] = _error_map(observation)
        legend |= {'no error': ERRORS[0], f'{LARGEST_ERROR:.0%} of the range or more': ERRORS[1]}
    rows = [
        [_to_image(pixels[index], side) for pixels in columns.values()]
        for index in range(len(observation.images))
    ]
    return _table(list(columns), rows, legend)


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


def _error_map(observation: Observation) -> Tensor:
    """Mean absolute error over the channels, (B, 3, H, W), of the predicted patches."""
    assert observation.reconstruction is not None, 'only with a reconstruction'
    error = (observation.reconstruction - observation.images).abs().mean(1, keepdim=True)
    share = (error / LARGEST_ERROR).clamp(max=1)
    low, high = (error.new_tensor(colour)[:, None, None] for colour in ERRORS)
    shown = torch.lerp(low, high, share.nan_to_num())
    return _fill_unknown(shown.masked_fill(error.isnan(), torch.nan))


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


def _table(
    titles: list[str],
    rows: list[list[Image.Image]],
    legend: dict[str, tuple[float, float, float]],
) -> Image.Image:
    """Pictures under titles, and under them what the colours mean, in as many lines as it takes."""
    step = (rows[0][0].width + _GAP, rows[0][0].height + _GAP)
    width, height = step[0] * len(titles) + _GAP, step[1] * len(rows) + _GAP + _TOP
    font = ImageFont.load_default(size=14)
    places = _legend_places([_LEGEND + font.getlength(text) for text in legend], width)
    lines = 1 + max(line for line, _ in places)
    sheet = Image.new('RGB', (width, height + lines * _LEGEND), 'white')
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        left = _GAP + column * step[0]
        draw.text((left, 4), title, fill='black', font=font)
        for row, images in enumerate(rows):
            sheet.paste(images[column], (left, _TOP + _GAP + row * step[1]))
    for (text, colour), (line, left) in zip(legend.items(), places, strict=True):
        top = height + line * _LEGEND
        box = (left, top + 2, left + 16, top + 18)
        draw.rectangle(box, tuple(round(255 * value) for value in colour), outline='black')
        draw.text((left + 21, top + 2), text, fill='black', font=font)
    return sheet


def _legend_places(widths: list[float], available: int) -> list[tuple[int, int]]:
    """Line and left edge of each entry; a line breaks where the next one would not fit."""
    places, line, left = [], 0, _GAP
    for width in widths:
        if left > _GAP and left + width > available:
            line, left = line + 1, _GAP
        places.append((line, left))
        left += round(width) + 2 * _GAP
    return places

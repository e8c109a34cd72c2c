# SPDX-License-Identifier: Apache-2.0
"""``prmim show CONFIG CHECKPOINT IMAGES...``: pictures of what a model kept, threw and rebuilt."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import shown_without_traceback
from ..progress import step
from ._options import check_checkpoint, check_output, check_picture, force_
from ._terminal import say, working


@click.command('show', short_help='Pictures: masked, kept, thrown, rebuilt.')
@click.argument('config')
@click.argument('checkpoint')
@click.argument('images', nargs=-1, required=True, type=click.Path(exists=True))
@click.option(
    '--out', default='reconstruction.png', show_default=True, metavar='FILE',
    help='Picture to write.',
)  # fmt: skip
@force_
@click.option('--seed', default=0, show_default=True, help='Of the masks.')
@click.option(
    '--side', default=192, show_default=True, type=click.IntRange(min=1),
    help='Height of a panel in pixels.',
)  # fmt: skip
@click.option(
    '--limit', default=16, show_default=True, type=click.IntRange(min=1),
    help='Most images to draw of each folder, spread over it.',
)  # fmt: skip
@click.option(
    '--throw-ratio', type=float, default=None, metavar='RATIO',
    help="In place of the config's (weights stay).",
)  # fmt: skip
@click.option(
    '--channels', type=int, nargs=3, default=None,
    help='Channels to show as red, green and blue, counted from 0.',
)  # fmt: skip
def show(
    config: str,
    checkpoint: str,
    images: tuple[str, ...],
    out: str,
    force: bool,
    seed: int,
    side: int,
    limit: int,
    throw_ratio: float | None,
    channels: tuple[int, int, int] | None,
) -> None:
    """Draw original, visible patches, kept and thrown patches, reconstruction and error of IMAGES.

    IMAGES are files and folders of files. CONFIG is a pre-training config of type PRMIM and
    CHECKPOINT one of its checkpoints, a file or URL. A model that predicts features instead of
    pixels has no reconstruction to show.
    """
    check_picture('--out', out)
    check_checkpoint(checkpoint)
    with shown_without_traceback(config), working(f'loading {config}'):
        from ..openmmlab.models import load_config
        from ..visualization import (
            display_of,
            image_files,
            load_images,
            load_model,
            observe,
            panels,
        )

        files = image_files(images, limit)
        check_output(out, [config, checkpoint, *map(str, files)], force)
        settings = load_config(config)
        if throw_ratio is not None:
            settings.model.throw_ratio = throw_ratio
        model = load_model(settings, checkpoint)
        step(f'looking at {len(files)} images')
        display = display_of(settings, model, channels)
        observation = observe(model, load_images(settings, model, files, seed), seed, display)
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        panels(observation, side).save(out)
    say(f'{len(files)} images -> {out}')
    if display.note:
        say(display.note)
    if observation.reconstruction is None:
        say('The model predicts features, not pixels: there is no reconstruction to show.')
    elif observation.normalised:
        say(
            'The target is normalised: predictions are shown with the mean and variance of the true '
            'pixels, which the model does not know.'
        )

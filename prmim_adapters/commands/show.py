# SPDX-License-Identifier: Apache-2.0
"""``prmim show CONFIG CKPT IMAGES...``: pictures of what a model kept, threw and rebuilt."""

from __future__ import annotations

from pathlib import Path

import click

from ._output import check_output


@click.command('show')
@click.argument('config')
@click.argument('checkpoint')
@click.argument('images', nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option('--out', default='reconstruction.png', show_default=True, help='Picture to write.')
@click.option('--seed', default=0, show_default=True, help='Of the masks.')
@click.option(
    '--side', default=192, show_default=True, type=click.IntRange(min=1),
    help='Height of a panel in pixels.',
)  # fmt: skip
@click.option(
    '--throw-ratio', type=float, default=None, help="In place of the config's (weights stay)."
)
@click.option(
    '--channels', type=int, nargs=3, default=None,
    help='Channels to show as red, green and blue, counted from 0.',
)  # fmt: skip
def show(
    config: str,
    checkpoint: str,
    images: tuple[str, ...],
    out: str,
    seed: int,
    side: int,
    throw_ratio: float | None,
    channels: tuple[int, int, int] | None,
) -> None:
    """Draw original, visible patches, kept and thrown patches, and reconstruction of IMAGES.

    CONFIG is a pre-training config of type PRMIM and CHECKPOINT one of its checkpoints. A model
    that predicts features instead of pixels has no reconstruction to show.
    """
    from PIL import Image

    from ..errors import shown_without_traceback
    from ..openmmlab.models import load_config
    from ..visualization import display_of, load_images, load_model, observe, panels

    if Path(out).suffix.lower() not in Image.registered_extensions():
        raise click.UsageError(f'--out is {out!r}: give a picture, as reconstruction.png')
    check_output(out, [config, checkpoint, *images])
    with shown_without_traceback():
        settings = load_config(config)
        if throw_ratio is not None:
            settings.model.throw_ratio = throw_ratio
        model = load_model(settings, checkpoint)
        display = display_of(settings, model, channels)
        observation = observe(model, load_images(settings, model, images, seed), seed, display)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    panels(observation, side).save(out)
    click.echo(f'{len(images)} images -> {out}')
    if display.note:
        click.echo(display.note)
    if observation.reconstruction is None:
        click.echo('The model predicts features, not pixels: there is no reconstruction to show.')
    elif observation.per_patch:
        click.echo(
            'The target is normalised per patch: predictions are shown with the mean and variance '
            'of the true patches, which the model does not know.'
        )

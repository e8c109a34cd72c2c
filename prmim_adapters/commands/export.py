# SPDX-License-Identifier: Apache-2.0
"""``prmim export CKPT OUT``: the encoder for timm, or bare weights for mmpretrain."""

from __future__ import annotations

import json

import click

from ._output import check_output


@click.command('export')
@click.argument('checkpoint', type=click.Path(exists=True, dir_okay=False))
@click.argument('out', type=click.Path(dir_okay=False))
@click.option('--config', default=None, help='Training config; by default the one in CHECKPOINT.')
@click.option(
    '--encoder', default='backbone', show_default=True, help='Dotted name of the encoder.'
)
@click.option('--force', is_flag=True, help='Replace OUT if it exists; never CHECKPOINT.')
@click.option('--json', 'as_json', is_flag=True, help='Print what was written as JSON.')
def export(
    checkpoint: str, out: str, config: str | None, encoder: str, force: bool, as_json: bool
) -> None:
    """Write what others need of CHECKPOINT to OUT.

    OUT.safetensors: the encoder under timm's names. The features of both models are compared
    first, and nothing is written if they differ.

    OUT.pth: all weights under mmpretrain's names, without optimizer and log history.
    """
    from ..errors import shown_without_traceback
    from ..export import export_encoder, export_weights

    if not out.endswith(('.pth', '.safetensors')):
        raise click.UsageError(f'OUT is {out!r}: give a .safetensors (timm) or .pth (mmpretrain)')
    check_output(out, [checkpoint, *([config] if config else [])], force)
    with shown_without_traceback():
        if out.endswith('.pth'):
            report = dict(tensors=export_weights(checkpoint, out))
        else:
            report = export_encoder(checkpoint, out, config, encoder)
    if as_json:
        click.echo(json.dumps(report))
    elif out.endswith('.pth'):
        click.echo(f'{out}: {report["tensors"]} tensors')
    else:
        click.echo(
            f'{out}: timm {report["timm"]}, {report["tensors"]} tensors, '
            f'{report["parameters"] / 1e6:.2f} M parameters; features differ by at most '
            f'{report["difference"]:.1e} of the largest'
        )

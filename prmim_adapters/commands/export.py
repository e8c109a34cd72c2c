# SPDX-License-Identifier: Apache-2.0
"""``prmim export CHECKPOINT OUT``: what timm, transformers or mmpretrain take of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..errors import shown_without_traceback
from ._options import check_output, force_, refuse_given
from ._terminal import say, working


@click.command('export', short_help='Encoder for timm, transformers or mmpretrain.')
@click.argument('checkpoint', type=click.Path(exists=True, dir_okay=False))
@click.argument('out', type=click.Path())
@click.option('--config', default=None, help='Training config; by default the one in CHECKPOINT.')
@click.option(
    '--encoder', default='backbone', show_default=True, help='Dotted name of the encoder.'
)
@force_
@click.option('--json', 'as_json', is_flag=True, help='Print what was written as JSON.')
def export(
    checkpoint: str, out: str, config: str | None, encoder: str, force: bool, as_json: bool
) -> None:
    """Write what others need of CHECKPOINT to OUT, whose ending says for whom.

    OUT.safetensors: the encoder under timm's names, and a model card OUT.md.

    OUT without an ending: a folder for transformers' from_pretrained, model card included.

    OUT.pth: all weights under mmpretrain's names, without optimizer and log history.

    For timm and transformers the features of both models are compared first, and nothing is
    written if they differ.
    """
    ending = Path(out).suffix
    if ending not in ('', '.pth', '.safetensors'):
        raise click.UsageError(
            f'OUT is {out!r}: give a .safetensors (timm) or .pth (mmpretrain), or a folder '
            '(transformers), whose name has no dot'
        )
    if ending == '.pth':
        refuse_given(('config', 'encoder'), f'is for an encoder: {out} takes all weights')
    inputs = [checkpoint, *([config] if config else [])]
    for path in [out, *([str(Path(out).with_suffix('.md'))] if ending == '.safetensors' else [])]:
        check_output(path, inputs, force)
    with shown_without_traceback(checkpoint), working(f'reading {checkpoint}'):
        from ..export import export_encoder, export_folder, export_weights

        if ending == '.pth':
            report = dict(tensors=export_weights(checkpoint, out))
        elif ending == '.safetensors':
            report = export_encoder(checkpoint, out, config, encoder)
        else:
            report = export_folder(checkpoint, out, config, encoder)
    if as_json:
        click.echo(json.dumps(report))
    elif ending == '.pth':
        click.echo(f'{out}: {report["tensors"]} tensors')
    else:
        library = 'timm' if ending else 'transformers'
        say(
            f'{out}: {library} {report[library]}, {report["tensors"]} tensors, '
            f'{report["parameters"] / 1e6:.2f} M parameters; features differ by at most '
            f'{report["difference"]:.1e} of the largest'
        )

# SPDX-License-Identifier: Apache-2.0
"""``prmim patch FOLDER``: the lines that an original repository's training script gains."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import Mistake
from ..tables import Table
from ._terminal import print_tables


@click.command('patch', short_help='Insert the line into an original repository.')
@click.argument('folder', type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option('--check', is_flag=True, help='Change nothing; say what would be done.')
@click.option('--undo', is_flag=True, help='Take the lines out again.')
def patch(folder: Path, check: bool, undo: bool) -> None:
    """Add partial reconstruction to the pre-training script of the checkout in FOLDER.

    FOLDER is facebookresearch/mae, microsoft/SimMIM, facebookresearch/ConvNeXt-V2 or
    bytedance/ibot at the commit that this package is tested against. Three lines are inserted;
    nothing is replaced. The script then knows --throw_ratio, --sampler and --aggregator, and
    reads PRMIM_THROW_RATIO, PRMIM_SAMPLER and PRMIM_AGGREGATOR from the environment.
    """
    from ..upstream import patching

    if check and undo:
        raise click.UsageError('--check and --undo exclude each other')
    try:
        repository = patching.identify(folder)
        for path in patching.changed_seams(folder, repository):
            click.echo(
                f'warning: {folder / path} differs from commit {repository.commit[:7]}, which the '
                'adapter is tested with',
                err=True,
            )
        if check:
            state = 'patched' if patching.is_patched(folder, repository) else 'can be patched'
        elif undo:
            patching.undo(folder, repository)
            state = 'restored'
        else:
            patching.apply(folder, repository)
            state = 'patched'
    except patching.PatchError as error:
        raise Mistake(str(error)) from error
    row = [str(folder / repository.script), repository.name, repository.licence, state]
    print_tables([Table(['script', 'repository', 'licence', 'state'], [row], words=True)])

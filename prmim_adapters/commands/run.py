# SPDX-License-Identifier: Apache-2.0
"""``prmim run SCRIPT``: an original repository's script on a current stack."""

from __future__ import annotations

import click

from ..errors import Mistake
from ..tables import Table
from ._terminal import print_tables


def _list_shims(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from ..upstream.shims import SHIMS

        rows = [[name, (shim.__doc__ or '').splitlines()[0]] for name, shim in SHIMS.items()]
        print_tables([Table(['shim', 'supplies'], rows, words=True)])
        context.exit()


@click.command(
    'run',
    short_help='Run an original script on a current stack.',
    context_settings=dict(allow_interspersed_args=False),
)
@click.option('--without', multiple=True, metavar='SHIM', help='Leave out a shim; may be repeated.')
@click.option(
    '--list-shims',
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_shims,
    help='Say what the shims supply.',
)
@click.argument('script', type=click.Path(exists=True, dir_okay=False))
@click.argument('arguments', nargs=-1, type=click.UNPROCESSED)
def run(without: tuple[str, ...], script: str, arguments: tuple[str, ...]) -> None:
    """Run SCRIPT of mae, SimMIM, ConvNeXt-V2 or ibot, patched or not, with its ARGUMENTS.

    Those repositories were written for timm 0.3 to 0.4, torch 1.7 to 1.9 and numpy 1.x. What a
    current stack lacks is supplied in this process by small shims; no file changes. On several
    GPUs: torchrun --nproc_per_node 8 -m prmim_adapters.upstream SCRIPT ARGUMENTS
    """
    from ..upstream.launcher import UnknownShimError, run_script

    try:
        run_script(script, arguments, without)
    except UnknownShimError as error:
        raise Mistake(str(error)) from error

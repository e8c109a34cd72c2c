# SPDX-License-Identifier: Apache-2.0
"""Everything that wants a GPU, in one call: the most important first, each result kept at once.

    python benchmarks/gpu.py --minutes 9 --out gpu_results
    python benchmarks/gpu.py --minutes 9 --out gpu_results --resume     # what is not done yet
    python benchmarks/gpu.py --dry-run --out dry_run                    # all stages on the CPU, tiny

docs/gpu.md is the recipe, from a bare machine to the tables of the README.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import click
from gpu_stages.plan import STAGES, find
from gpu_stages.runner import Run


@click.command()
@click.option('--minutes', default=9.0, show_default=True, type=click.FloatRange(min=0))
@click.option('--out', default='gpu_results', show_default=True, type=click.Path(path_type=Path))
@click.option('--resume', is_flag=True, help='Leave out the stages that are done in --out.')
@click.option('--only', multiple=True, metavar='STAGE', help='Run this stage; may be repeated.')
@click.option('--list', 'show', is_flag=True, help='List the stages, in order, and end.')
@click.option('--dry-run', is_flag=True, help='All stages on the CPU, with tiny sizes.')
@click.option('--commit', help='Of the checkout, for the record, where git cannot say.')
def main(
    minutes: float, out: Path, resume: bool, only: tuple[str, ...], show: bool, dry_run: bool,
    commit: str | None,
) -> None:  # fmt: skip
    """Measure this project on one CUDA card, within --minutes.

    A stage that no longer fits is skipped with a word. Every stage writes OUT/<stage>.json the
    moment it ends; OUT/run.json says how each one ended. Ends with code 1 if a stage failed.
    """
    if show:
        for stage in STAGES:
            click.echo(f'{stage.name:<18}{stage.title}')
        return
    try:
        stages = find(list(only))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if not dry_run:
        check_device()
    prepare(dry_run)
    say = lambda line: click.echo(line)  # noqa: E731
    run = Run(stages, out.resolve(), minutes, dry_run, resume, commit, say)
    sys.exit(not run())


def check_device() -> None:
    """Refuse a machine without a CUDA device, before anything is measured."""
    import torch

    if not torch.cuda.is_available():
        raise click.ClickException(
            'no CUDA device: run this on a machine with one, or rehearse it with --dry-run'
        )


def prepare(dry_run: bool) -> None:
    """The environment of the process that measures."""
    warnings.simplefilter('ignore')
    os.environ.setdefault('PYTHONWARNINGS', 'ignore')
    package = str(Path(__file__).parents[1])  # a checkout need not be installed
    os.environ['PYTHONPATH'] = os.pathsep.join(
        [package, *filter(None, [os.environ.get('PYTHONPATH')])]
    )
    sys.path.append(package)
    if dry_run:
        os.environ['TRITON_INTERPRET'] = '1'
        os.environ['CUDA_VISIBLE_DEVICES'] = ''


if __name__ == '__main__':
    main()

# SPDX-License-Identifier: Apache-2.0
"""``prmim sweep SPEC``: train, evaluate and compare a matrix of frameworks, arms, ratios, seeds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import Mistake
from ._options import formats, refuse_given
from ._terminal import print_tables

if TYPE_CHECKING:
    from ..sweep.collected import Sweep
    from ..sweep.runner import Engine
    from ..sweep.spec import Spec


@click.command('sweep', short_help='Train and compare a matrix of variants.')
@click.argument('spec', type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    '--out',
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help='Folder of the results.  [default: work_dirs/sweeps/<name of SPEC>]',
)
@click.option(
    '--jobs', default=1, show_default=True, type=click.IntRange(min=1), help='Points run at a time.'
)
@click.option('--devices', default=None, help='CUDA devices to share among the jobs: 0,1,2,3.')
@click.option(
    '--engine',
    type=click.Choice(['local', 'slurm']),
    default='local',
    show_default=True,
    help='Where points run: on this machine, or as an array job of Slurm.',
)
@click.option(
    '--slurm',
    'slurm_options',
    multiple=True,
    metavar='KEY=VALUE',
    help="Option of sbatch for --engine slurm, as time=24:00:00, which is needed, a point's limit.",
)
@click.option(
    '--detach',
    is_flag=True,
    help='With --engine slurm: end when the jobs are queued. Otherwise Ctrl-C cancels them.',
)
@click.option(
    '--launcher',
    type=click.Choice(['none', 'pytorch', 'slurm']),
    default='none',
    show_default=True,
    help="mim's launcher, for each point.",
)
@click.option(
    '--gpus',
    default=1,
    show_default=True,
    type=click.IntRange(min=0),
    help='GPUs of each point; 0: a job without any.',
)
@click.option('--gpus-per-node', type=int, default=None, help='Slurm only.')
@click.option('--cpus-per-task', type=int, default=None, help='Slurm only.')
@click.option('--partition', default=None, help='Slurm only.')
@click.option('--srun-args', default=None, help='Slurm only.')
@click.option('--status', is_flag=True, help='Train nothing; say how far every point is.')
@click.option('--report-only', is_flag=True, help='Train nothing; report what is there.')
@formats
def sweep(
    spec: Path,
    out: Path | None,
    status: bool,
    report_only: bool,
    as_json: bool,
    as_markdown: bool,
    **options: Any,
) -> None:
    """Run the points of SPEC that have no result yet, then write report.md and plots.

    An interrupted sweep continues where it stopped, and finds the jobs of Slurm that it left. A
    failed point does not stop the others; the command then ends with code 1, and the next call tries
    the point again.
    """
    from rich.console import Console

    from ..sweep import load_spec
    from ..sweep.collected import collect
    from ..sweep.results import ChangedSettingsError
    from ..sweep.runner import run_sweep
    from ..sweep.slurm_queue import SlurmError

    failures: dict[str, str] = {}
    if status and report_only:
        raise click.UsageError('--status and --report-only exclude each other')
    if out is None:
        if not spec.stem.strip('.'):
            raise click.UsageError(f'{spec} names no folder for the results: give one by --out')
        out = Path('work_dirs/sweeps') / spec.stem
    try:
        loaded = load_spec(spec)
        if status:
            _print_status(loaded, out, as_json, as_markdown)
            return
        if not report_only:
            failures = run_sweep(loaded, out, _engine(**options), Console(stderr=True))
        found = collect(loaded, out)
        _print_report(found, out, spec.stem, as_json)
    except (ChangedSettingsError, SlurmError, OSError, ValueError) as error:  # SpecErrors as well
        text = str(error)
        raise Mistake(text if str(spec) in text else f'{spec}: {text}') from error
    # A point's failure is in its folder too, unless it could not be written there.
    failures = {name: reason.splitlines()[-1] for name, reason in failures.items()}
    for name, reason in (failures | found.failures).items():
        click.echo(f'failed: {name}: {reason}', err=True)
    if failures or found.failures:
        raise click.exceptions.Exit(1)


def _engine(
    engine: str,
    jobs: int,
    devices: str | None,
    slurm_options: tuple[str, ...],
    detach: bool,
    **launch: Any,
) -> Engine:
    """The engine that the options describe.

    Raises:
        ValueError: an option of one engine with the other, or a value that it does not take.
    """
    from ..sweep.local import LocalEngine
    from ..sweep.point import Launch
    from ..sweep.slurm import SlurmEngine

    if engine == 'local':
        if slurm_options or detach:
            raise ValueError('--slurm and --detach are for --engine slurm')
        if launch['launcher'] != 'slurm':
            names = ('gpus_per_node', 'cpus_per_task', 'partition', 'srun_args')
            refuse_given(names, 'is for Slurm: --engine slurm or --launcher slurm')
        return LocalEngine(Launch(**launch), jobs, devices.split(',') if devices else None)
    if devices:
        raise ValueError('--devices is for --engine local: Slurm gives each job its GPUs')
    pairs = [option.partition('=') for option in slurm_options]
    for key, equals, _ in pairs:
        if not key or not equals:
            raise ValueError(f'--slurm {key}: expected KEY=VALUE, as time=24:00:00')
    given = {key.lstrip('-'): value for key, _, value in pairs}
    return SlurmEngine(Launch(**launch), jobs, given, detach)


def _print_status(spec: Spec, out: Path, as_json: bool, as_markdown: bool) -> None:
    from ..sweep.slurm_queue import SlurmError, SlurmQueue
    from ..sweep.status import states, table

    try:
        entries = states(spec, out, SlurmQueue(out))
    except SlurmError as error:
        click.echo(f'jobs are left out: {error}', err=True)
        entries = states(spec, out)
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in entries], indent=2))
    else:
        print_tables([table(entries)], as_markdown)


def _print_report(found: Sweep, out: Path, title: str, as_json: bool) -> None:
    """Write report.md and plots; print their paths, or the state of every point."""
    from ..sweep.files import inside
    from ..sweep.plots import write_plots
    from ..sweep.report import markdown

    out.mkdir(parents=True, exist_ok=True)
    report = inside(out, 'report.md')
    report.write_text(markdown(found, title), encoding='utf-8')
    pictures = write_plots(found, out)
    if as_json:
        points = found.spec.points()
        finished = [point.name for point in points if point.seed in found.results[point.cell]]
        state = dict(finished=finished, failed=found.failures, missing=found.missing)
        click.echo(json.dumps(state, indent=2))
    else:
        for path in (report, *pictures):
            click.echo(path)

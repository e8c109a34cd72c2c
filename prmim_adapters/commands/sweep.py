# SPDX-License-Identifier: Apache-2.0
"""``prmim sweep SPEC``: train, evaluate and compare a matrix of frameworks, arms, ratios, seeds."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command('sweep')
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
    '--launcher',
    type=click.Choice(['none', 'pytorch', 'slurm']),
    default='none',
    show_default=True,
    help="mim's launcher, for each point.",
)
@click.option(
    '--gpus', default=1, show_default=True, type=click.IntRange(min=1), help='GPUs of each point.'
)
@click.option('--gpus-per-node', type=int, default=None, help='Slurm only.')
@click.option('--cpus-per-task', type=int, default=None, help='Slurm only.')
@click.option('--partition', default=None, help='Slurm only.')
@click.option('--srun-args', default=None, help='Slurm only.')
@click.option('--report-only', is_flag=True, help='Train nothing; report what is there.')
@click.option('--json', 'as_json', is_flag=True, help='Print the state of every point as JSON.')
def sweep(
    spec: Path,
    out: Path | None,
    jobs: int,
    devices: str | None,
    launcher: str,
    gpus: int,
    gpus_per_node: int | None,
    cpus_per_task: int | None,
    partition: str | None,
    srun_args: str | None,
    report_only: bool,
    as_json: bool,
) -> None:
    """Run the points of SPEC that have no result yet, then write report.md and plots.

    An interrupted sweep continues where it stopped. A failed point does not stop the others; the
    command then ends with code 1, and the next call tries the point again.
    """
    from rich.console import Console

    from ..sweep import SpecError, load_spec
    from ..sweep.collected import collect
    from ..sweep.local import LocalEngine
    from ..sweep.plots import write_plots
    from ..sweep.point import Launch
    from ..sweep.report import markdown
    from ..sweep.results import ChangedSettingsError
    from ..sweep.runner import run_sweep

    failures: dict[str, str] = {}
    out = out or Path('work_dirs/sweeps') / spec.stem
    launch = Launch(launcher, gpus, gpus_per_node, cpus_per_task, partition, srun_args)
    try:
        loaded = load_spec(spec)
        if not report_only:
            chosen = devices.split(',') if devices else None
            engine = LocalEngine(launch, jobs, chosen)
            failures = run_sweep(loaded, out, engine, Console(stderr=True))
        found = collect(loaded, out)
    except (SpecError, ChangedSettingsError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    out.mkdir(parents=True, exist_ok=True)
    (out / 'report.md').write_text(markdown(found, spec.stem))
    pictures = write_plots(found, out)
    if as_json:
        finished = [
            point.name for point in loaded.points() if point.seed in found.results[point.cell]
        ]
        state = dict(finished=finished, failed=found.failures, missing=found.missing)
        click.echo(json.dumps(state, indent=2))
    else:
        for path in (out / 'report.md', *pictures):
            click.echo(path)
    # A point's failure is in its folder too, unless it could not be written there.
    failures = {name: reason.splitlines()[-1] for name, reason in failures.items()}
    for name, reason in (failures | found.failures).items():
        click.echo(f'failed: {name}: {reason}', err=True)
    if failures or found.failures:
        raise click.exceptions.Exit(1)

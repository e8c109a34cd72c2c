# SPDX-License-Identifier: Apache-2.0
"""Step time and peak memory of MAE, plain partial reconstruction, PR-MIM and a peer, in one run.

    python benchmarks/step.py configs/mmpretrain/mae_prmim_vitb.py --threads 2 --batch-size 8

Writes ``benchmarks/results/step_<config>_<device>_<precision>_<attention>.json``, from which
``benchmarks/tables.py`` makes the README's table.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import click
from cross_decoder import cross_subject
from mmpretrain.models import MAE
from mmpretrain.registry import MODELS

from prmim_adapters.accounting.bench import Settings, config_batch, config_subjects, measure
from prmim_adapters.accounting.throughput import Timing
from prmim_adapters.openmmlab.models import framework_settings, load_config
from prmim_adapters.openmmlab.types import resolved

RESULTS = Path(__file__).parent / 'results'


@click.command()
@click.argument('config')
@click.option('--throw-ratio', 'ratio', default=0.5, show_default=True)
@click.option('--batch-size', default=8, show_default=True)
@click.option('--steps', default=10, show_default=True)
@click.option('--warmup', default=2, show_default=True)
@click.option('--device', default=None)
@click.option('--precision', default='fp32', type=click.Choice(['fp32', 'bf16']))
@click.option('--attention', default='fused', type=click.Choice(['fused', 'explicit']))
@click.option('--compile', 'compiled', is_flag=True)
@click.option('--threads', default=None, type=int)
@click.option('--peer/--no-peer', default=True, help='MAE: cross-attention decoder as well.')
@click.option('--memory/--no-memory', default=True)
def main(
    config: str, ratio: float, batch_size: int, steps: int, warmup: int, device: str | None,
    precision: str, attention: str, compiled: bool, threads: int | None, peer: bool, memory: bool,
) -> None:  # fmt: skip
    timing = Timing(steps, warmup, precision, compiled, attention)
    settings = Settings(batch_size, device, timing, threads, memory=memory)
    loaded = load_config(config)
    subjects = config_subjects(config, [ratio])
    if peer and resolved(framework_settings(loaded), MODELS) is MAE:
        subjects.append(cross_subject(config))
    name, optimizer = Path(config).stem, loaded.optim_wrapper.optimizer.to_dict()
    report = measure(name, subjects, partial(config_batch, config, batch_size), settings, optimizer)
    parts = ['step', name, settings.kind, precision, attention] + ['compiled'] * compiled
    parts.append(f'b{batch_size}')
    path = RESULTS / ('_'.join(parts) + '.json')
    path.write_text(json.dumps(report.to_dict(), indent=2) + '\n')
    print(f'{report.markdown()}\n\n{path}')


if __name__ == '__main__':
    main()

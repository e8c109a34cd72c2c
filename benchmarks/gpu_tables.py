# SPDX-License-Identifier: Apache-2.0
"""Tables of what ``benchmarks/gpu.py`` measured, from ``benchmarks/results/gpu/*.json``."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from gpu_stages.plan import STAGES
from result_files import MISSING, load, table

FIGURES: list[tuple[str, str, Callable[[dict[str, Any]], float | None], float]] = [
    ('MAE ViT-B/16: step, of MAE', 'mae', lambda r: time_of(r, 'PR-MIM 0.5'), 0.74),
    (
        'MAE ViT-B/16: step, of plain partial',
        'mae',
        lambda r: time_of(r, 'PR-MIM 0.5', 'plain partial 0.5'),
        1.02,
    ),
    ('MAE ViT-B/16: peak memory', 'mae', lambda r: memory_of(r, 'PR-MIM 0.5'), 0.72),
    (
        'MAE ViT-B/16, explicit attention: peak memory',
        'mae_explicit',
        lambda r: memory_of(r, 'PR-MIM 0.5'),
        0.64,
    ),
    ('SimMIM ViT-B/16: step', 'simmim_vit', lambda r: time_of(r, 'PR-MIM 0.5'), 0.55),
    ('SimMIM ViT-B/16: peak memory', 'simmim_vit', lambda r: memory_of(r, 'PR-MIM 0.5'), 0.58),
    ('SimMIM Swin-B: step', 'simmim_swin', lambda r: time_of(r, 'PR-MIM 0.5'), 0.62),
    ('partition + aggregation, of the step', 'light', lambda r: r['share']['share'], 0.01),
]
"""What is measured, the stage, where in its result, and what it should be at most."""


def gpu_figures() -> str:
    """Measured: what PR-MIM at 0.5 should reach on one card in bf16."""
    rows = []
    for what, stage, value, most in FIGURES:
        result = load(f'gpu/{stage}')
        found = None if result is None else value(result)
        rows.append([what, f'{most:g}', MISSING if found is None else f'{found:.3f}'])
    return table(['of the framework, unless said', 'at most', 'measured'], rows)


def gpu_steps() -> str:
    """Measured: step time and peak memory of every stage of steps against the framework's."""
    head = ['', 'batch', 'thrown', 'framework, ms', 'images/s']
    head += ['plain partial, time', 'PR-MIM, time', 'plain partial, memory', 'PR-MIM, memory']
    head += ['beside them: time, memory']
    rows = []
    for stage in STAGES:
        if stage.task == 'gpu_stages.steps.bench':
            result = load(f'gpu/{stage.name}')
            for ratio in stage.options.get('ratios', (0.5,)):
                rows.append([stage.title, *_step_cells(result, stage.options['batch'], ratio)])
    return table(head, rows)


def _step_cells(result: dict[str, Any] | None, batch: int, ratio: float) -> list[str]:
    if result is None:
        return [str(batch), f'{ratio:g}', *[MISSING] * 7]
    base = result['measured'][0]
    names = [f'{name} {ratio:g}' for name in ('plain partial', 'PR-MIM')]
    others = [
        f'{entry["label"]}: {_cell(entry["time_ratio"])}, {_cell(entry["memory_ratio"])}'
        for entry in result['measured'][1:]
        if not entry['label'].startswith(('plain partial', 'PR-MIM'))
    ]
    return [
        str(batch),
        f'{ratio:g}',
        f'{base["median_seconds"] * 1e3:.1f}',
        f'{base["images_per_second"]:.0f}',
        *(_variant_cell(result, name, value) for value in (time_of, memory_of) for name in names),
        '; '.join(others) or '-',
    ]


def gpu_largest() -> str:
    """Measured: the largest batch that fits, framework and PR-MIM."""
    rows = []
    for stage in STAGES:
        if stage.task == 'gpu_stages.steps.largest':
            result = load(f'gpu/{stage.name}')
            if result is None:
                rows.append([stage.title, *[MISSING] * 4])
                continue
            sizes = [str(found['batch_size']) for found in result['found']]
            memory = f'{result["capacity"] / 1e9:.0f} GB'
            rows.append([stage.title, memory, *sizes, f'{result["found"][-1]["ratio"]:.2f}'])
    return table(['', 'memory', 'framework', 'PR-MIM, 0.5 thrown', 'ratio'], rows)


def entry_of(result: dict[str, Any], label: str) -> dict[str, Any] | None:
    """What was measured of one subject; None if it was not there."""
    found = [entry for entry in result['measured'] if entry['label'] == label]
    return found[0] if found else None


def time_of(result: dict[str, Any], label: str, base: str = 'framework') -> float | None:
    """Median of the ratios within a round."""
    ours, theirs = entry_of(result, label), entry_of(result, base)
    if ours is None or theirs is None:
        return None
    rounds = zip(ours['times']['seconds'], theirs['times']['seconds'], strict=True)
    return median(a / b for a, b in rounds)


def memory_of(result: dict[str, Any], label: str) -> float | None:
    """Peak memory, or where only they were counted, saved activations, against the framework's."""
    ours, base = entry_of(result, label), result['measured'][0]
    if ours is None:
        return None
    saved = [(entry['memory'] or {}).get('saved') for entry in (ours, base)]
    if ours['memory_ratio'] is None and all(saved):
        return saved[0] / saved[1]
    return ours['memory_ratio']


def _variant_cell(result: dict[str, Any], label: str, value: Callable[..., float | None]) -> str:
    """A dash where there is no such variant: some losses weigh every masked token."""
    return _cell(value(result, label)) if entry_of(result, label) else '-'


def _cell(value: float | None) -> str:
    return MISSING if value is None else f'{value:.3f}'

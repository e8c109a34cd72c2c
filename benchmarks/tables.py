# SPDX-License-Identifier: Apache-2.0
"""Markdown tables from ``benchmarks/results/*.json``, for README.md and docs/ to include.

    python benchmarks/tables.py          # writes benchmarks/results/*.md
    python benchmarks/tables.py --check  # exits 1 if a table is not what its JSON says

A measurement without a result file has no row, and a device without one no column.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evidence_tables
from gpu_tables import entry_of, gpu_figures, gpu_largest, gpu_steps
from result_files import MISSING, RESULTS, load, table

SAVINGS = Path(__file__).parents[1] / 'prmim_adapters' / 'accounting' / 'savings.json'

STEPS = [
    ('MAE ViT-B/16, CPU, fp32', 'step_mae_prmim_vitb_cpu_fp32_fused_b8'),
    ('MAE ViT-B/16, CPU, fp32', 'step_mae_prmim_vitb_cpu_fp32_fused_b16'),
    ('SimMIM ViT-B/16, CPU, fp32', 'step_simmim_prmim_vitb_cpu_fp32_fused_b4'),
    ('SimMIM ViT-B/16, CPU, fp32', 'step_simmim_prmim_vitb_cpu_fp32_fused_b8'),
    ('MAE ViT-B/16, GPU, bf16', 'gpu/mae'),
    ('MAE ViT-B/16, GPU, bf16, explicit attention', 'gpu/mae_explicit'),
    ('MAE ViT-B/16, GPU, bf16, torch.compile', 'gpu/mae_compiled'),
    ('SimMIM ViT-B/16, GPU, bf16', 'gpu/simmim_vit'),
    ('SimMIM Swin-B at 192, GPU, bf16', 'gpu/simmim_swin'),
    ('SimMIM Swin-B at 192, GPU, bf16', 'gpu/simmim_swin_512'),
]
"""Rows of the table of measured steps: title and result file."""

TO = '\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}'
"""Between two figures: they stay in one line of a narrow column."""


def main() -> None:
    check = '--check' in sys.argv[1:]
    wrong = []
    made = {RESULTS / f'{name}.md': make() for name, make in TABLES.items()}
    made[SAVINGS] = savings()
    for path, text in made.items():
        if check and (not path.exists() or path.read_text() != text):
            wrong.append(f'{path} is not what its JSON says: run python benchmarks/tables.py')
        if not check:
            path.write_text(text)
    print('\n'.join(wrong) or f'{len(made)} tables {"agree" if check else "written"}')
    sys.exit(bool(wrong))


def costs() -> str:
    """Counted: the framework's figure, what it is with PR-MIM, and the change; most saved first."""
    head = ['config', 'ratio', 'forward GMACs', 'training GMACs', 'activations MB, fused']
    head += ['activations MB, explicit', 'light stage, of forward']
    found = (load('costs') or {}).items()
    return table(head, [_cost_row(*entry) for entry in sorted(found, key=_training_saved)])


def _training_saved(entry: tuple[str, Any]) -> float:
    return -entry[1]['costs'][-1]['saving']['training']


def _cost_row(name: str, report: dict[str, Any]) -> list[str]:
    framework, ours = report['costs'][0], report['costs'][-1]

    def change(key: str, unit: float, digits: int) -> str:
        before, after = framework[key], ours[key]
        return (
            f'{before / unit:.{digits}f}{TO}{after / unit:.{digits}f} ({after / before - 1:+.1%})'
        )

    return [
        f'`{name}`',
        f'{ours["throw_ratio"]:g}',
        change('forward', 1e9, 3),
        change('training', 1e9, 2),
        change('activations_fused', 1e6, 1),
        change('activations_explicit', 1e6, 1),
        f'+{ours["aggregation"] / framework["forward"]:.2%}',
    ]


def declared() -> str:
    """Counted: frameworks whose adapter is a declaration, half of all tokens thrown."""
    head = [
        'model',
        'forward GMACs',
        'change',
        'of it the light stage',
        'counted against closed form',
        'training GMACs',
        'change',
    ]
    rows = [
        [
            name,
            f'{found["forward"] / 1e9:.1f}{TO}{found["forward_with"] / 1e9:.1f}',
            f'{-found["saving"]:+.1%}',
            f'+{found["light_stage"] / found["forward"]:.2%}',
            f'{found["closed_form_error"]:+.2%}',
            f'{found["training"] / 1e9:.1f}{TO}{found["training_with"] / 1e9:.1f}',
            f'{-found["training_saving"]:+.1%}',
        ]
        for name, found in (load('declared') or {}).items()
    ]
    return table(head, rows)


def savings() -> str:
    """What ``prmim list`` shows: framework to the saving of the first config that has it."""
    found: dict[str, Any] = {}
    for name, report in (load('costs') or {}).items():
        ours = report['costs'][-1]
        found.setdefault(
            report['framework'],
            {
                'config': name,
                'throw_ratio': ours['throw_ratio'],
                'forward': round(ours['saving']['forward'], 4),
                'training': round(ours['saving']['training'], 4),
                'activations': round(ours['saving']['activations_fused'], 4),
            },
        )
    for name, counted in (load('declared') or {}).items():
        found.setdefault(
            counted['framework'],
            {
                'config': name,
                'throw_ratio': counted['throw_ratio'],
                'forward': round(counted['saving'], 4),
                'training': round(counted['training_saving'], 4),
            },
        )
    return json.dumps(found, indent=2) + '\n'


def steps() -> str:
    """Measured: step time and peak memory against the framework's; the least time first."""
    head = ['', 'batch', 'framework, ms', 'plain partial, time', 'PR-MIM, time', 'peer, time']
    head += ['plain partial, memory', 'PR-MIM, memory', 'where']
    found = [(title, load(name)) for title, name in STEPS]
    measured = [(title, result) for title, result in found if result is not None]
    return table(head, [step_row(*entry) for entry in sorted(measured, key=_step_time)])


def _step_time(entry: tuple[str, dict]) -> float:
    return (entry_of(entry[1], 'PR-MIM 0.5') or {}).get('time_ratio') or 0.0


def step_row(title: str, result: dict) -> list[str]:
    """One row; a dash where there is nothing to measure."""
    peer = [e['label'] for e in result['measured'] if e['label'].startswith('cross-attention')]
    plain, ours, peer = 'plain partial 0.5', 'PR-MIM 0.5', (peer or [''])[0]
    where, on_cpu = result['environment'], result['settings']['device'] == 'cpu'
    on_cpu = on_cpu or not where.get('cuda')
    return [
        title,
        str(result['settings']['batch_size']),
        f'{result["measured"][0]["median_seconds"] * 1e3:.0f}',
        *(_time(result, label) for label in (plain, ours, peer)),
        *(_memory(result, label) for label in (plain, ours)),
        f'{where["device"]}' + (f', {where["threads"]} threads' if on_cpu else ''),
    ]


def _time(result: dict, label: str) -> str:
    """Median of the ratios within a round, and their quartiles."""
    entry = entry_of(result, label)
    if entry is None:
        return '-'
    pairs = zip(entry['times']['seconds'], result['measured'][0]['times']['seconds'], strict=True)
    low, _, high = statistics.quantiles([ours / theirs for ours, theirs in pairs], n=4)
    return f'{entry["time_ratio"]:.2f} ({low:.2f} to {high:.2f})'


def _memory(result: dict, label: str) -> str:
    entry, framework = entry_of(result, label), result['measured'][0]
    if entry is None:
        return '-'
    saved = [(e['memory'] or {}).get('saved') for e in (entry, framework)]
    beside = f' (activations {saved[0] / saved[1]:.2f})' if all(saved) else ''
    return f'{entry["memory_ratio"]:.2f}{beside}'


def light_stages() -> str:
    """Measured: the light stages of one step at MAE ViT-B/16's decoder size."""
    found = [load(name) for name in ('light_stages_cpu', 'gpu/light')]
    names = [key for key in (found[0] or {'stages': {}})['stages'] if _is_stage(key)]
    columns = [(device, f) for device, f in zip(('CPU', 'GPU'), found, strict=True) if f]
    rows = [[name, *(f'{f["stages"][name]:.2f}' for _, f in columns)] for name in names]
    shares = [f.get('share') for _, f in columns]
    rows.append(
        ['partition + aggregation, share of a step']
        + [MISSING if share is None else f'{share["share"]:.2%}' for share in shares]
    )
    sizes = [
        f'{device} ({f["stages"]["images"]} images, {f["environment"]["device"]}, '
        f'{f["environment"]["threads"]} thread(s), {f["clock"]} time)'
        for device, f in columns
    ]
    return table(['ms', *sizes], rows)


def _is_stage(key: str) -> bool:
    return key.startswith(('sampler', 'aggregator', 'partition'))


def sampling() -> str:
    """Measured: farthest point sampling by size."""
    head = ['images', 'grid', 'masked', 'kept', 'ms, CPU', 'ms, CPU, step by step']
    on_gpu = {
        (row['images'], row['tokens'], row['kept']): f'{row["ms"]:.2f}'
        for row in (load('gpu/light') or {'sampling_by_size': []})['sampling_by_size']
    }
    rows = [
        [
            str(row['images']),
            f'{height} x {width}',
            str(row['masked']),
            str(row['kept']),
            f'{row["by_distance"]:.2f}',
            f'{row["step_by_step"]:.1f}',
            *([on_gpu.get((row['images'], height * width, row['kept']), MISSING)] * bool(on_gpu)),
        ]
        for row in (load('sampling_cpu') or {'rows': []})['rows']
        for height, width in [row['grid']]
    ]
    return table(head + ['ms, GPU'] * bool(on_gpu), rows)


def ibot_ragged() -> str:
    """Measured: one layer of iBOT's student on ragged sequences, relative to whole crops."""
    head = ['', 'tokens', 'CPU time', 'kernels', 'kernels, with stochastic depth']
    plain, dropping = (load('ibot_ragged') or {'rows': [None, None]})['rows']
    if plain is None:
        return table(head, [])
    whole = next(iter(plain['ways'].values()))['ms']
    return table(
        head,
        [
            [
                name,
                f'{plain["share_of_tokens"] if index else 1:.3g}',
                f'{way["ms"] / whole:.2f}',
                f'{way["kernels"]:,}',
                f'{dropping["ways"][name]["kernels"]:,}',
            ]
            for index, (name, way) in enumerate(plain['ways'].items())
        ],
    )


def ibot_cifar10() -> str:
    """Measured: kNN accuracy of a small iBOT, of class token / average over patches."""

    def pair(found: dict[str, float]) -> str:
        return f'{found["cls"]:.1f} / {found["patches"]:.1f}'

    head = ['', 'seed', 'kNN, untrained', 'kNN, student', 'kNN, teacher']
    head += ['teacher entropy, class', 'teacher entropy, patches', 'CPU seconds']
    found = load('ibot_cifar10') or {'runs': []}
    rows = [
        [
            f'PR-MIM, {run["throw_ratio"]:g} thrown' if run['throw_ratio'] else 'iBOT',
            str(run['seed']),
            *(pair(run[f'knn_{key}']) for key in ('untrained', 'student', 'teacher')),
            *(f'{run[key]:.2f}' for key in ('teacher_entropy', 'teacher_patch_entropy')),
            f'{run["cpu_seconds"]:.0f}',
        ]
        for run in sorted(found['runs'], key=lambda run: run['throw_ratio'])
    ]
    return table(head, rows or [[MISSING] * len(head)])


TABLES: dict[str, Callable[[], str]] = {
    'costs': costs,
    'declared': declared,
    'steps': steps,
    'gpu_figures': gpu_figures,
    'gpu_steps': gpu_steps,
    'gpu_largest': gpu_largest,
    'light_stages': light_stages,
    'sampling': sampling,
    'ibot_ragged': ibot_ragged,
    'ibot_cifar10': ibot_cifar10,
    **evidence_tables.TABLES,
}


if __name__ == '__main__':
    main()

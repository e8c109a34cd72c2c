# SPDX-License-Identifier: Apache-2.0
"""Markdown tables from ``benchmarks/results/*.json``, for README.md and docs/ to include.

    python benchmarks/tables.py          # writes benchmarks/results/*.md
    python benchmarks/tables.py --check  # exits 1 if a table is not what its JSON says

What has no result file yet reads ``not measured``.
"""

from __future__ import annotations

import json
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
    ('SimMIM ViT-B/16, GPU, bf16', 'gpu/simmim_vit'),
    ('SimMIM Swin-B at 192, GPU, bf16', 'gpu/simmim_swin'),
]
"""Rows of the table of measured steps: title and result file."""


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
    """Counted: the framework's figure, what it is with PR-MIM, and the change."""
    head = ['config', 'ratio', 'forward GMACs', 'training GMACs', 'activations MB, fused']
    head += ['activations MB, explicit', 'light stage, of forward']
    rows = []
    for name, report in (load('costs') or {}).items():
        framework, ours = report['costs'][0], report['costs'][-1]

        def change(key: str, unit: float, digits: int, a: dict = framework, b: dict = ours) -> str:
            share = b[key] / a[key] - 1
            return f'{a[key] / unit:.{digits}f} → {b[key] / unit:.{digits}f} ({share:+.1%})'

        rows.append(
            [
                f'`{name}`',
                f'{ours["throw_ratio"]:g}',
                change('forward', 1e9, 3),
                change('training', 1e9, 2),
                change('activations_fused', 1e6, 1),
                change('activations_explicit', 1e6, 1),
                f'+{ours["aggregation"] / framework["forward"]:.2%}',
            ]
        )
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
    return json.dumps(found, indent=2) + '\n'


def steps() -> str:
    """Measured: step time and peak memory against the framework's."""
    head = ['', 'batch', 'framework, ms', 'plain partial, time', 'PR-MIM, time']
    head += ['cross-attention decoder, time', 'plain partial, memory', 'PR-MIM, memory', 'where']
    return table(head, [step_row(title, load(name)) for title, name in STEPS])


def step_row(title: str, result: dict | None) -> list[str]:
    if result is None:
        return [title, *[MISSING] * 8]
    peer = [e['label'] for e in result['measured'] if e['label'].startswith('cross-attention')]
    plain, ours, peer = 'plain partial 0.5', 'PR-MIM 0.5', (peer or [''])[0]

    def ratio(label: str, key: str) -> str:
        entry = entry_of(result, label) or {}
        value, processor = entry.get(key), entry.get('processor_ratio')
        if value is None:
            return MISSING
        saved = [(e['memory'] or {}).get('saved') for e in (entry, result['measured'][0])]
        beside = ''
        if key == 'time_ratio' and processor is not None:
            beside = f' (CPU time {processor:.3f})'
        elif key == 'memory_ratio' and all(saved):
            beside = f' (saved activations {saved[0] / saved[1]:.3f})'
        return f'{value:.3f}{beside}'

    where, on_cpu = result['environment'], result['settings']['device'] == 'cpu'
    on_cpu = on_cpu or not where.get('cuda')
    return [
        title,
        str(result['settings']['batch_size']),
        f'{result["measured"][0]["median_seconds"] * 1e3:.0f}',
        *(ratio(label, 'time_ratio') for label in (plain, ours, peer)),
        *(ratio(label, 'memory_ratio') for label in (plain, ours)),
        f'{where["device"]}' + (f', {where["threads"]} threads' if on_cpu else ''),
    ]


def light_stages() -> str:
    """Measured: the light stages of one step at MAE ViT-B/16's decoder size."""
    found = [load(name) for name in ('light_stages_cpu', 'gpu/light')]
    names = [key for key in (found[0] or {'stages': {}})['stages'] if _is_stage(key)]
    rows = [
        [name, *(MISSING if f is None else f'{f["stages"][name]:.2f}' for f in found)]
        for name in names
    ]
    shares = [(f or {}).get('share') for f in found]
    rows.append(
        ['partition + aggregation, share of a step']
        + [MISSING if share is None else f'{share["share"]:.2%}' for share in shares]
    )
    sizes = [
        f' ({f["stages"]["images"]} images, {f["environment"]["device"]}, '
        f'{f["environment"]["threads"]} thread(s), {f["clock"]} time)'
        if f
        else ''
        for f in found
    ]
    return table(['ms', f'CPU{sizes[0]}', f'GPU{sizes[1]}'], rows)


def _is_stage(key: str) -> bool:
    return key.startswith(('sampler', 'aggregator', 'partition'))


def sampling() -> str:
    """Measured: farthest point sampling by size."""
    head = ['images', 'grid', 'masked', 'kept', 'ms, CPU', 'ms, CPU, step by step', 'ms, GPU']
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
            on_gpu.get((row['images'], height * width, row['kept']), MISSING),
        ]
        for row in (load('sampling_cpu') or {'rows': []})['rows']
        for height, width in [row['grid']]
    ]
    return table(head, rows)


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

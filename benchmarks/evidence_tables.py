# SPDX-License-Identifier: Apache-2.0
"""Tables of accuracy for :mod:`tables`, from the results committed in ``docs/evidence``."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean

from result_files import MISSING, load, table

from prmim_adapters.sweep.statistics import against_arm, against_framework, paired_difference

EVIDENCE = Path(__file__).parents[1] / 'docs' / 'evidence'

STUDIES = {'first study': 'cifar10_mae_cpu', 'fresh seeds': 'cifar10_mae_cpu_finetune'}
"""Two sweeps of the same runs on different seeds: column to folder in docs/evidence."""

Accuracies = dict[str, dict[str, dict[int, float]]]
"""Arm to metric to seed to accuracy in per cent."""

METRICS = {'knn': 'kNN', 'linear': 'linear probe', 'finetune': 'fine-tuning'}

COMPARISONS = [
    ('PR-MIM, 0.5', 'cross_attention-0.50', 'MAE', 'framework'),
    ('plain, 0.5', 'plain-0.50', 'MAE', 'framework'),
    ('PR-MIM, 0.5', 'cross_attention-0.50', 'plain, 0.5', 'plain-0.50'),
    ('PR-MIM, 0.7', 'cross_attention-0.70', 'MAE', 'framework'),
    ('plain, 0.7', 'plain-0.70', 'MAE', 'framework'),
    ('PR-MIM, 0.7', 'cross_attention-0.70', 'plain, 0.7', 'plain-0.70'),
]


def evidence() -> str:
    """Measured: paired differences of accuracy, by study and over the seeds of both."""
    columns = {title: accuracies(EVIDENCE / folder / 'mae') for title, folder in STUDIES.items()}
    columns['both'] = merged(list(columns.values()))
    rows = []
    for this_title, this, other_title, other in COMPARISONS:
        for metric, metric_title in METRICS.items():
            found = [
                paired_difference(c.get(this, {}).get(metric, {}), c.get(other, {}).get(metric, {}))
                for c in columns.values()
            ]
            cells = [MISSING if d is None else f'{d} ({d.seeds} seeds)' for d in found]
            rows.append([f'{this_title} - {other_title}', metric_title, *cells])
    return table(['points', '', *columns], rows)


VARIANTS = {
    'default': 'default',
    'random': 'tokens kept at random',
    'wide': 'attention four times as wide',
    'nearest': 'local stage, 6 nearest tokens',
    'stop_gradient': 'no gradient from thrown tokens',
    'plain': 'plain partial reconstruction',
}
"""Arms of sweeps/ablation_cpu.yaml."""


def ablation() -> str:
    """Measured: mean accuracy of the variants at ratio 0.5 / 0.7."""
    found = accuracies(EVIDENCE / 'ablation_cpu' / 'mae')
    metrics = ['knn', 'linear']

    def means(arm: str, metric: str) -> str:
        cells = [found.get(f'{arm}-{ratio}', {}).get(metric, {}) for ratio in ('0.50', '0.70')]
        return ' / '.join(f'{mean(c.values()):.1f}' if c else MISSING for c in cells)

    rows = [[title, *(means(arm, metric) for metric in metrics)] for arm, title in VARIANTS.items()]
    return table(['', *(METRICS[metric] for metric in metrics)], rows)


def merged(studies: list[Accuracies]) -> Accuracies:
    """The seeds of all studies together."""
    result: Accuracies = {}
    for arm, values in ((arm, values) for study in studies for arm, values in study.items()):
        for metric, seeds in values.items():
            result.setdefault(arm, {}).setdefault(metric, {}).update(seeds)
    return result


def accuracies(folder: Path) -> Accuracies:
    """Results of one framework of a sweep."""
    found: Accuracies = {}
    for path in sorted(folder.glob('*/seed*/result.json')):
        arm = found.setdefault(path.parts[-3], {metric: {} for metric in METRICS})
        accuracy = json.loads(path.read_text())['accuracy']
        for metric in METRICS.keys() & accuracy.keys():
            arm[metric][int(path.parts[-2].removeprefix('seed'))] = accuracy[metric]
    return found


Comparison = tuple[str, str, str, str]
"""Title; folders of a cell and of the one that it is compared with; 'equal epochs' or 'equal cost'."""

MARGIN = 0.3


def against(framework: str, ratio: str) -> list[Comparison]:
    """PR-MIM, plain partial reconstruction and their framework at one ratio, at equal epochs."""
    name = {'mae': 'MAE', 'simmim': 'SimMIM'}[framework]
    ours, plain, base = (
        f'{framework}/{arm}' for arm in (f'prmim-{ratio}', f'plain-{ratio}', 'framework')
    )
    at = ratio.rstrip('0')
    return [
        (f'PR-MIM, {at} - {name}', ours, base, 'equal epochs'),
        (f'plain, {at} - {name}', plain, base, 'equal epochs'),
        (f'PR-MIM, {at} - plain, {at}', ours, plain, 'equal epochs'),
    ]


def beside_the_peer(ratio: str) -> list[Comparison]:
    """MAE at one ratio, with the cross-attention decoder, at both budgets."""
    longer, at = f'mae/prmim_equal_cost-{ratio}', ratio.rstrip('0')
    peer, longer_peer = 'cross_decoder/framework', 'cross_decoder_equal_cost/framework'
    return [
        *against('mae', ratio),
        (f'PR-MIM, {at} - MAE', longer, 'mae/framework', 'equal cost'),
        (f'PR-MIM, {at} - cross decoder', f'mae/prmim-{ratio}', peer, 'equal epochs'),
        (f'PR-MIM, {at} - cross decoder', longer, longer_peer, 'equal cost'),
    ]


PEER = [
    ('cross decoder - MAE', 'cross_decoder/framework', 'mae/framework', 'equal epochs'),
    ('cross decoder - MAE', 'cross_decoder_equal_cost/framework', 'mae/framework', 'equal cost'),
]
SIMMIM_LONGER = [
    ('PR-MIM, 0.5 - SimMIM', 'simmim/prmim_equal_cost-0.50', 'simmim/framework', 'equal cost')
]
SIMMIM_STAGES = [
    (f'PR-MIM with {stage}, 0.5 - {title}', f'simmim/{this}-0.50', f'simmim/{arm}', 'equal epochs')
    for this, stage in (('prmim_blocks', 'blocks'), ('prmim_last_block', 'a dense last block'))
    for title, arm in (
        ('SimMIM', 'framework'),
        ('plain, 0.5', 'plain-0.50'),
        ('PR-MIM, 0.5', 'prmim-0.50'),
    )
]


SCHEDULES = [
    ('falling, 0.5 - constant', 'mae/falling-0.50', 'mae/constant-0.50', 'equal epochs'),
    ('in two halves, 0.5 - constant', 'mae/halves-0.50', 'mae/constant-0.50', 'equal epochs'),
    ('rising, 0.5 - constant', 'mae/rising-0.50', 'mae/constant-0.50', 'equal epochs'),
    ('falling, 0.7 - constant', 'mae/falling-0.70', 'mae/constant-0.70', 'equal epochs'),
    ('late drop, 0.7 - constant', 'mae/late_drop-0.70', 'mae/constant-0.70', 'equal epochs'),
    ('early rise, 0.7 - constant', 'mae/early_rise-0.70', 'mae/constant-0.70', 'equal epochs'),
]
REST = {
    'farthest_unseeded': 'farthest points, visible tokens not counted',
    'grid': 'tokens kept on a lattice',
    'random': 'tokens kept at random',
    'distance': 'weights by distance alone',
    'convolution': 'convolution',
    'nearest_3': 'local stage, 3 nearest tokens',
    'nearest_12': 'local stage, 12 nearest tokens',
    'local_6': 'attention to the 6 nearest tokens',
    'local_16': 'attention to the 16 nearest tokens',
    'kept_only': 'attention to kept tokens only',
    'two_stages': 'two progressive stages',
    'weight_0.25': 'thrown tokens weigh 0.25',
    'weight_0.5': 'thrown tokens weigh 0.5',
}
DECIDED: dict[str, list[Comparison]] = {
    'cifar10_mae_cost': [*beside_the_peer('0.50'), *beside_the_peer('0.70'), *PEER],
    'cifar10_mae_long_cpu': [*against('mae', '0.50'), *against('mae', '0.70')],
    'tinyimagenet50_mae_cpu': [*against('mae', '0.50'), *against('mae', '0.70')],
    'cifar10_simmim_cpu': [*against('simmim', '0.50'), *SIMMIM_LONGER, *SIMMIM_STAGES],
    'schedules_cpu': SCHEDULES,
    'ablation_rest_cpu': [
        (f'{title} - default', f'mae/{arm}-0.70', 'mae/default-0.70', 'equal epochs')
        for arm, title in REST.items()
    ],
}
"""Folder in docs/evidence of a study planned beforehand, to the differences that decide it."""


def decided(folder: str) -> str:
    """Measured: paired differences with the verdicts that they allow."""
    cells = {
        f'{framework.name}/{arm}': found
        for framework in (EVIDENCE / folder).glob('*/')
        for arm, found in accuracies(framework).items()
    }
    rows = []
    for title, this, other, at in DECIDED[folder]:
        row, seeds = [title, at], 0
        for metric in ('knn', 'linear'):
            values = (cells.get(cell, {}).get(metric, {}) for cell in (this, other))
            difference = paired_difference(*values)
            if difference is None:
                row.append(MISSING)
                continue
            verdict = against_arm(difference)
            if other.endswith('/framework') and not other.startswith('cross'):
                verdict = against_framework(difference, MARGIN)
            row.append(f'{difference} {verdict}')
            seeds = difference.seeds
        rows.append([*row, str(seeds)])
    return table(['points', 'at', METRICS['knn'], METRICS['linear'], 'seeds'], rows)


THROWN = {
    'loss_kept': 'loss of a kept token',
    'loss_thrown': 'loss of a thrown token',
    'gradient_kept': 'gradient from a kept token',
    'gradient_thrown': 'gradient from a thrown token',
    'gradients_agree': 'gradients from kept and from thrown tokens, cosine',
    'features_kept': 'features of kept tokens against the dense pass, cosine',
    'features_thrown': 'features of thrown tokens against the dense pass, cosine',
    'gradient_like_dense_kept': 'gradient from kept tokens against the dense pass, cosine',
    'gradient_like_dense_thrown': 'gradient from thrown tokens against the dense pass, cosine',
}


def thrown_tokens() -> str:
    """Measured: what benchmarks/thrown_tokens.py finds, mean and range over seeds."""
    seeds = (load('thrown_tokens') or {'seeds': {}})['seeds'].values()

    def cell(key: str) -> str:
        values = [found[key] for found in seeds if key in found]
        if not values:
            return ''
        return f'{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})'

    runs = {'prmim': 'PR-MIM', 'dense': 'the same weights, dense', 'mae': 'MAE'}
    rows = [[title, *(cell(f'{run}.{key}') for run in runs)] for key, title in THROWN.items()]
    return table(['', *runs.values()], rows)


TABLES: dict[str, Callable[[], str]] = {
    'thrown_tokens': thrown_tokens,
    'evidence': evidence,
    'ablation': ablation,
    **{folder: partial(decided, folder) for folder in DECIDED},
}

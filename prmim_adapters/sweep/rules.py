# SPDX-License-Identifier: Apache-2.0
"""What a spec must be, as far as no config is needed to tell: checked as it is read."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ..adapters import attach
from ..core.options import check_flag, check_number, check_whole
from .literals import NoLiteralError, assignments
from .spec import BUDGETS, FRAMEWORK_ARM, OF_ARMS, Framework, Spec, SpecError

#: Names become folders, files and plots. A dot only before a digit: weight_0.25, never report.md.
_NAME = re.compile(r'[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?=[0-9])){0,63}')
#: What a point's folder or its accuracies hold beside the transfers.
_TAKEN = ('train', 'config', 'knn', 'linear', 'feature_std')
#: The arguments of ``attach`` that an arm may give; the axis ``ratios`` gives the other.
_ATTACH_OPTIONS = [
    name for name in inspect.signature(attach).parameters if name not in ('model', 'throw_ratio')
]
_LARGEST_SEED = 2**32 - 1


def check_spec(spec: Spec) -> None:
    """Check all that needs no config.

    Raises:
        SpecError: something is wrong; names the key, the value found and what is allowed.
    """
    with _named_mistakes():
        _check_names(spec)
        for name, framework in spec.frameworks.items():
            _check_config(f'frameworks.{name}', framework.config, framework.options)
            _check_text(f'frameworks.{name}.backbone', framework.backbone)
            _check_peer(name, framework, spec)
        for name, transfer in spec.transfers.items():
            _check_config(f'transfers.{name}', transfer.config, transfer.options)
            _check_text(f'transfers.{name}.metric', transfer.metric)
        for name, arm in spec.arms.items():
            _check_arm(f'arms.{name}', arm, spec)
        _check_options('options', spec.options)
        check_flag('resume', spec.resume)
        _check_axes(spec)
        _check_evaluation(spec)
        _check_verdict(spec)


@contextmanager
def _named_mistakes() -> Iterator[None]:
    try:
        yield
    except SpecError:
        raise
    except (NoLiteralError, TypeError, ValueError) as error:
        raise SpecError(str(error)) from None


def _check_names(spec: Spec) -> None:
    if not spec.frameworks:
        raise SpecError('frameworks: name at least one')
    kinds: dict[str, dict[str, Any]] = {
        'frameworks': spec.frameworks,
        'arms': spec.arms,
        'transfers': spec.transfers,
    }
    for kind, names in kinds.items():
        for name in names:
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise SpecError(
                    f'{kind}: {name!r:.80} is no name: names become folders; allowed are up to 64 '
                    'letters, digits, _ and -, beginning with a letter or digit, and a dot before a '
                    'digit. What YAML takes for a number, true or false needs quotes'
                )
        _check_distinct(kind, [name.casefold() for name in names], 'if case does not count')
    if FRAMEWORK_ARM in map(str.casefold, spec.arms):
        raise SpecError(
            f'arms: {FRAMEWORK_ARM!r} is the framework itself and always runs; choose another name'
        )
    for name in spec.transfers:
        if name.casefold() in _TAKEN:
            raise SpecError(
                f'transfers: {name!r} is a name of the sweep itself, as are {", ".join(_TAKEN)}; '
                'choose another'
            )


def _check_config(where: str, config: Any, options: Any) -> None:
    _check_text(f'{where}.config', config)
    _check_options(f'{where}.options', options)


def _check_text(where: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise SpecError(f'{where}: expected text, found {value!r:.80}')


def _check_options(where: str, options: Any) -> None:
    """Differences to a config: they become its text."""
    if not isinstance(options, dict):
        raise SpecError(f'{where}: expected names with their settings, found {options!r:.80}')
    assignments(options, where)
    for key in options:
        if key.startswith('_'):
            raise SpecError(f'{where}: {key!r} is not a setting of a config')


def _check_arm(where: str, arm: dict[str, Any], spec: Spec) -> None:
    _check_budget(where, arm.get('budget', 'epochs'))
    if 'throw_ratio' in arm:
        raise SpecError(f'{where}.throw_ratio: the axis `ratios` sets it; remove it here')
    allowed = [*_ATTACH_OPTIONS, *OF_ARMS]
    for key in arm:
        if key not in allowed:
            raise SpecError(f'{where}: unknown key {key!r:.80}; allowed: {", ".join(allowed)}')
    hooks = arm.get('hooks', [])
    if not isinstance(hooks, list) or not all(isinstance(h, dict) and 'type' in h for h in hooks):
        raise SpecError(
            f'{where}.hooks: expected a list of hooks, {{type: NAME, ...}}, found {hooks!r:.80}'
        )
    _check_own_ratios(f'{where}.ratios', arm.get('ratios', list(spec.ratios)), spec)
    assignments(arm, where)


def _check_own_ratios(where: str, ratios: Any, spec: Spec) -> None:
    axis = ', '.join(map(str, spec.ratios))
    if not isinstance(ratios, list) or not ratios:
        raise SpecError(f'{where}: expected a non-empty list, found {ratios!r:.80}')
    for ratio in ratios:
        if ratio not in spec.ratios:
            raise SpecError(f'{where}: {ratio!r:.80} is not on the axis `ratios`: {axis}')


def _check_peer(name: str, framework: Framework, spec: Spec) -> None:
    _check_budget(f'frameworks.{name}', framework.budget)
    peers = [other for other, entry in spec.frameworks.items() if entry.peer_of is None]
    if framework.peer_of is None and framework.budget != 'epochs':
        raise SpecError(
            f'frameworks.{name}.budget: the cost is that of another framework; name it by peer_of'
        )
    if framework.peer_of is not None and framework.peer_of not in peers:
        raise SpecError(
            f'frameworks.{name}.peer_of: {framework.peer_of!r} is no framework that is itself no '
            f'peer; there are: {", ".join(peers) or "none"}'
        )


def _check_budget(where: str, budget: Any) -> None:
    if budget not in BUDGETS:
        raise SpecError(f'{where}.budget: {budget!r:.80}; allowed: {", ".join(BUDGETS)}')


def _check_axes(spec: Spec) -> None:
    for ratio in spec.ratios:
        if not isinstance(ratio, (int, float)) or not 0 < ratio < 1:
            raise SpecError(f'ratios: {ratio!r:.80} is not between 0 and 1')
    _check_distinct('ratios', [f'{ratio:.2f}' for ratio in spec.ratios], 'to two decimals')
    for seed in spec.seeds:
        whole = isinstance(seed, int) and not isinstance(seed, bool)
        if not whole or not 0 <= seed <= _LARGEST_SEED:
            raise SpecError(f'seeds: {seed!r:.80} is not a whole number from 0 to {_LARGEST_SEED}')
    _check_distinct('seeds', [str(seed) for seed in spec.seeds])


def _check_evaluation(spec: Spec) -> None:
    evaluation = spec.evaluation
    _check_options('evaluation.train', evaluation.train)
    _check_options('evaluation.test', evaluation.test)
    check_whole('evaluation.num_classes', evaluation.num_classes, 2)
    check_whole('evaluation.k', evaluation.k, 1)
    check_flag('evaluation.linear_probe', evaluation.linear_probe)
    for name in ('temperature', 'regularization'):
        check_number(f'evaluation.{name}', getattr(evaluation, name), 1e-12, 1e12)


def _check_verdict(spec: Spec) -> None:
    verdict = spec.verdict
    if verdict.baseline is not None and verdict.baseline not in spec.arms:
        raise SpecError(
            f'verdict.baseline: {verdict.baseline!r:.80} is no arm; arms are {", ".join(spec.arms)}'
        )
    check_number('verdict.margin', verdict.margin, 0, 100)
    check_number('verdict.confidence', verdict.confidence, 0.5, 1 - 1e-9)


def _check_distinct(where: str, names: Iterable[str], how: str = '') -> None:
    """Values that name folders."""
    found: set[str] = set()
    for name in names:
        if name in found:
            what = f'{name} occurs twice {how}'.strip()
            raise SpecError(f'{where}: {what}, and names one folder; give each value once')
        found.add(name)

# SPDX-License-Identifier: Apache-2.0
"""Reads a spec from YAML and checks it; every mistake is named before anything is built or run."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from .inheritance import read_spec
from .spec import BUDGETS, FRAMEWORK_ARM, Evaluation, Framework, Spec, SpecError, Transfer, Verdict

#: What a point's folder or its accuracies hold beside the transfers.
_TAKEN = ('train', 'config', 'knn', 'linear', 'feature_std')


def load_spec(path: str | Path) -> Spec:
    """Read and check a spec, merged into the ones that its ``_base_`` names.

    Raises:
        SpecError: not YAML, unknown or missing key, wrong type, empty axis, ratio out of range,
            a ``_base_`` that is not there.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    try:
        data = read_spec(path)
    except (yaml.YAMLError, TypeError) as error:
        raise SpecError(f'{path}: expected YAML with a mapping of keys: {error}') from None
    except FileNotFoundError as error:
        if not path.exists():
            raise
        raise SpecError(
            f'{path}: _base_: {error}; name it relative to the spec that inherits it'
        ) from None
    data['frameworks'] = _named(Framework, data.get('frameworks'), 'frameworks')
    data['transfers'] = _named(Transfer, data.get('transfers') or {}, 'transfers')
    data['evaluation'] = _part(Evaluation, data.get('evaluation'), 'evaluation')
    data['verdict'] = _part(Verdict, data.get('verdict') or {}, 'verdict')
    arms = _mapping(data.get('arms') or {}, 'arms')
    data['arms'] = {name: _mapping(arm or {}, f'arms.{name}') for name, arm in arms.items()}
    data['ratios'] = tuple(_list(data.get('ratios'), 'ratios'))
    data['seeds'] = tuple(_list(data.get('seeds'), 'seeds'))
    data['folder'] = path.parent
    spec = _part(Spec, data, 'spec')
    _check(spec)
    return spec


def _check(spec: Spec) -> None:
    if not spec.frameworks:
        raise SpecError('frameworks: name at least one')
    if FRAMEWORK_ARM in spec.arms:
        raise SpecError(
            f'arms: {FRAMEWORK_ARM!r} is the framework itself and always runs; choose another name'
        )
    for name in [*spec.frameworks, *spec.arms, *spec.transfers]:
        if '/' in str(name):
            raise SpecError(f'{name!r}: names become folders and may not contain "/"')
    for name in spec.transfers:
        if name in _TAKEN:
            raise SpecError(
                f'transfers: {name!r} is a name of the sweep itself, as are {", ".join(_TAKEN)}; '
                'choose another'
            )
    for name, framework in spec.frameworks.items():
        _check_peer(name, framework, spec)
    for name, arm in spec.arms.items():
        _check_budget(f'arms.{name}', arm.get('budget', 'epochs'))
        _check_hooks(f'arms.{name}.hooks', arm.get('hooks', []))
        _check_own_ratios(f'arms.{name}.ratios', arm.get('ratios', list(spec.ratios)), spec)
        if 'throw_ratio' in arm:
            raise SpecError(f'arms.{name}.throw_ratio: the axis `ratios` sets it; remove it here')
    for ratio in spec.ratios:
        if not isinstance(ratio, (int, float)) or not 0 < ratio < 1:
            raise SpecError(f'ratios: {ratio!r} is not between 0 and 1')
    _check_distinct('ratios', [f'{ratio:.2f}' for ratio in spec.ratios], 'to two decimals')
    for seed in spec.seeds:
        if not isinstance(seed, int) or seed < 0:
            raise SpecError(f'seeds: {seed!r} is not a whole number >= 0')
    _check_distinct('seeds', [str(seed) for seed in spec.seeds])
    baseline = spec.verdict.baseline
    if baseline is not None and baseline not in spec.arms:
        arms = ', '.join(spec.arms)
        raise SpecError(f'verdict.baseline: {baseline!r} is no arm; arms are {arms}')


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
        raise SpecError(f'{where}.budget: {budget!r}; allowed: {", ".join(BUDGETS)}')


def _check_hooks(where: str, hooks: Any) -> None:
    if not isinstance(hooks, list) or not all(isinstance(h, dict) and 'type' in h for h in hooks):
        raise SpecError(f'{where}: expected a list of hooks, {{type: NAME, ...}}, found {hooks!r}')


def _check_own_ratios(where: str, ratios: Any, spec: Spec) -> None:
    for ratio in _list(ratios, where):
        if ratio not in spec.ratios:
            raise SpecError(
                f'{where}: {ratio!r} is not on the axis `ratios`: {", ".join(map(str, spec.ratios))}'
            )


def _check_distinct(where: str, names: list[str], how: str = '') -> None:
    """Values that name folders."""
    for name in names:
        if names.count(name) > 1:
            what = f'{name} occurs twice {how}'.strip()
            raise SpecError(f'{where}: {what}, and names one folder; give each value once')


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise SpecError(f'{where}: expected a non-empty list, found {value!r}')
    return value


def _mapping(value: Any, where: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise SpecError(f'{where}: expected names with their settings, found {value!r}')
    return value


def _named(cls: type, value: Any, where: str) -> dict[str, Any]:
    parts = _mapping(value, where).items()
    return {str(name): _part(cls, part, f'{where}.{name}') for name, part in parts}


def _part(cls: type, value: Any, where: str) -> Any:
    """A dataclass from a mapping.

    Raises:
        SpecError: unknown key, or a required one is missing.
    """
    if not isinstance(value, dict):
        raise SpecError(f'{where}: expected a mapping of settings, found {value!r}')
    known = {entry.name for entry in fields(cls)}
    unknown = sorted(set(value) - known)
    if unknown:
        raise SpecError(f'{where}: unknown key {unknown[0]!r}; allowed: {", ".join(sorted(known))}')
    try:
        return cls(**value)
    except TypeError as error:
        raise SpecError(f'{where}: {str(error).split("() ")[-1]}') from None

# SPDX-License-Identifier: Apache-2.0
"""The specification of a sweep: a YAML file, checked as it is read.

A sweep is the product frameworks x arms x throw ratios x seeds. Every point of it is one ordinary
``mim train`` run. See ``docs/sweep.md`` for a commented example.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from .inheritance import local_bases, read_spec

#: The arm that is the framework itself, without partial reconstruction.
FRAMEWORK_ARM = 'framework'
#: What a point's folder or its accuracies hold beside the transfers.
_TAKEN = ('train', 'config', 'knn', 'linear', 'feature_std')
#: How long a point trains: as long as the framework in epochs, or in training MACs.
BUDGETS = ('epochs', 'cost')


class SpecError(ValueError):
    """A spec that cannot be run; the message says which key and what is allowed."""


@dataclass(frozen=True)
class Framework:
    """A row of the matrix: an ordinary pre-training config.

    Attributes:
        config: path (relative to the spec), or name in a package: ``mmpretrain::mae/....py``.
        options: differences to it, merged as a child config's.
        backbone: dotted path of the network whose features are evaluated.
        peer_of: another framework that this one is compared with, as if it were an arm of it; a
            peer has no arms of its own.
        budget: of a peer, 'epochs' or 'cost'; see :class:`Spec`.
    """

    config: str
    options: dict[str, Any] = field(default_factory=dict)
    backbone: str = 'backbone'
    peer_of: str | None = None
    budget: str = 'epochs'


@dataclass(frozen=True)
class Evaluation:
    """What frozen features are measured by.

    Attributes:
        train, test: data loader configs, with the fields of ``train_dataloader``.
        num_classes: number of classes.
        k, temperature: of the weighted nearest-neighbour classifier.
        linear_probe: whether to fit scikit-learn's ``LogisticRegression``; for more than some
            100,000 images, leave it out and use a transfer instead.
        regularization: C of the linear probe.
    """

    train: dict[str, Any]
    test: dict[str, Any]
    num_classes: int
    k: int = 20
    temperature: float = 0.07
    linear_probe: bool = True
    regularization: float = 0.1


@dataclass(frozen=True)
class Transfer:
    """Fine-tuning or linear classification by a config of mmpretrain, from the pre-trained encoder.

    Attributes:
        config, options: as in :class:`Framework`.
        metric: scalar of the last validation to report.
    """

    config: str
    options: dict[str, Any] = field(default_factory=dict)
    metric: str = 'accuracy/top1'


@dataclass(frozen=True)
class Verdict:
    """Which comparisons the report draws a verdict on.

    Attributes:
        plain: name of the arm that is plain partial reconstruction.
        margin: points of accuracy below the framework that still count as lossless.
        confidence: of the intervals.
    """

    plain: str | None = None
    margin: float = 0.3
    confidence: float = 0.95


@dataclass(frozen=True)
class Point:
    """One training run. ``ratio`` is 0 for the framework itself."""

    framework: str
    arm: str
    ratio: float
    seed: int

    @property
    def cell(self) -> tuple[str, str, float]:
        """What seeds are averaged over."""
        return self.framework, self.arm, self.ratio

    @property
    def name(self) -> str:
        """Relative folder: ``mae/cross_attention-0.50/seed0``."""
        arm = self.arm if self.arm == FRAMEWORK_ARM else f'{self.arm}-{self.ratio:.2f}'
        return f'{self.framework}/{arm}/seed{self.seed}'


@dataclass(frozen=True)
class Spec:
    """A whole sweep; see the classes above for the parts.

    Attributes:
        frameworks: name to framework.
        arms: name to the arguments of ``prmim_adapters.attach`` (``throw_ratio`` is the sweep's),
            and ``budget``: 'epochs' (the default), as many as the framework's, or 'cost', as many
            steps as the framework's training MACs buy.
        ratios, seeds: the other two axes.
        options: differences to every framework's config.
        resume: resume the training run of an interrupted point instead of redoing it.
        folder: where the spec file lies.
    """

    frameworks: dict[str, Framework]
    arms: dict[str, dict[str, Any]]
    ratios: tuple[float, ...]
    seeds: tuple[int, ...]
    evaluation: Evaluation
    verdict: Verdict = field(default_factory=Verdict)
    transfers: dict[str, Transfer] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    resume: bool = False
    folder: Path = Path('.')

    def points(self) -> list[Point]:
        """All points, seed by seed, so that a sweep cut short still compares every arm."""
        return [
            Point(name, arm, ratio, seed)
            for seed in self.seeds
            for name in self.frameworks
            for arm, ratio in self._cells(name)
        ]

    def cells(self) -> list[tuple[str, str, float]]:
        """(framework, arm, ratio) in the report's order."""
        return [(name, *cell) for name in self.frameworks for cell in self._cells(name)]

    def attach_options(self, arm: str) -> dict[str, Any]:
        """The arguments of ``prmim_adapters.attach``, but the ratio."""
        return {key: value for key, value in self.arms[arm].items() if key != 'budget'}

    def budget(self, framework: str, arm: str) -> str:
        """'epochs' or 'cost'."""
        if arm == FRAMEWORK_ARM:
            return self.frameworks[framework].budget
        return self.arms[arm].get('budget', 'epochs')

    def _cells(self, framework: str) -> Iterator[tuple[str, float]]:
        yield FRAMEWORK_ARM, 0.0
        for arm in self.arms if self.frameworks[framework].peer_of is None else ():
            yield from ((arm, ratio) for ratio in self.ratios)

    def settings(self, point: Point) -> dict[str, Any]:
        """All that decides the outcome of a point, as plain data.

        Values left at default are not listed, so that an option added later does not make
        finished results invalid.
        """
        framework = self.frameworks[point.framework]
        source = self.folder / framework.config
        settings = dict(
            framework=_set_values(framework),
            config=source.read_text() if source.is_file() else framework.config,
            arm=None if point.arm == FRAMEWORK_ARM else self.arms[point.arm],
            ratio=point.ratio,
            seed=point.seed,
            options=self.options,
            evaluation=_set_values(self.evaluation),
            transfers={name: _set_values(transfer) for name, transfer in self.transfers.items()},
        )
        bases = local_bases(source)
        return dict(settings, bases=bases) if bases else settings


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
    plain = spec.verdict.plain
    if plain is not None and plain not in spec.arms:
        raise SpecError(f'verdict.plain: {plain!r} is no arm; arms are {", ".join(spec.arms)}')


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


def _check_distinct(where: str, names: list[str], how: str = '') -> None:
    """Values that name folders."""
    for name in names:
        if names.count(name) > 1:
            what = f'{name} occurs twice {how}'.strip()
            raise SpecError(f'{where}: {what}, and names one folder; give each value once')


def _set_values(part: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults."""
    values = {}
    for entry in fields(part):
        factory = entry.default_factory
        default = entry.default if factory is MISSING else factory()
        if getattr(part, entry.name) != default:
            values[entry.name] = getattr(part, entry.name)
    return values


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

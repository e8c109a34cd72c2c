# SPDX-License-Identifier: Apache-2.0
"""The specification of a sweep; :mod:`.reading` makes one of a YAML file, :mod:`.rules` checks it.

A sweep is the product frameworks x arms x throw ratios x seeds. Every point of it is one ordinary
``mim train`` run. See ``docs/sweep.md`` for a commented example.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from .files import read_text
from .inheritance import local_bases

#: The arm that is the framework itself, without partial reconstruction.
FRAMEWORK_ARM = 'framework'
#: How long a point trains: as long as the framework in epochs, or in training MACs.
BUDGETS = ('epochs', 'cost')
#: Keys of an arm that are no arguments of ``prmim_adapters.attach``.
OF_ARMS = ('budget', 'hooks', 'ratios')


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
        baseline: name of the arm that the others are compared with, beside the framework: plain
            partial reconstruction, or the default of an ablation.
        margin: points of accuracy below the framework that still count as lossless.
        confidence: of the intervals.
    """

    baseline: str | None = None
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
            steps as the framework's training MACs buy; ``hooks``, configs of hooks beside those of
            the framework's config; and ``ratios``, those of the axis that this arm has.
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
        return {key: value for key, value in self.arms[arm].items() if key not in OF_ARMS}

    def ratios_of(self, arm: str) -> tuple[float, ...]:
        """The ratios of the axis that an arm has."""
        own = self.arms[arm].get('ratios', self.ratios)
        return tuple(ratio for ratio in self.ratios if ratio in own)

    def budget(self, framework: str, arm: str) -> str:
        """'epochs' or 'cost'."""
        if arm == FRAMEWORK_ARM:
            return self.frameworks[framework].budget
        return self.arms[arm].get('budget', 'epochs')

    def _cells(self, framework: str) -> Iterator[tuple[str, float]]:
        yield FRAMEWORK_ARM, 0.0
        if self.frameworks[framework].peer_of is None:
            yield from ((arm, ratio) for arm in self.arms for ratio in self.ratios_of(arm))

    def settings(self, point: Point) -> dict[str, Any]:
        """All that decides the outcome of a point, as plain data.

        Values left at default are not listed, so that an option added later does not make
        finished results invalid.
        """
        framework = self.frameworks[point.framework]
        source = self.folder / framework.config
        settings: dict[str, Any] = dict(
            framework=_set_values(framework),
            config=read_text(source) if source.is_file() else framework.config,
            arm=None if point.arm == FRAMEWORK_ARM else self.arms[point.arm],
            ratio=point.ratio,
            seed=point.seed,
            options=self.options,
            evaluation=_set_values(self.evaluation),
            transfers={name: _set_values(transfer) for name, transfer in self.transfers.items()},
        )
        bases = local_bases(source)
        transfers = [self.folder / transfer.config for transfer in self.transfers.values()]
        files = [[read_text(t), *local_bases(t)] for t in transfers if t.is_file()]
        if bases:
            settings['bases'] = bases
        if files:
            settings['transfer_files'] = files
        return settings


def _set_values(part: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults."""
    values = {}
    for entry in fields(part):
        factory = entry.default_factory
        default = entry.default if factory is MISSING else factory()
        if getattr(part, entry.name) != default:
            values[entry.name] = getattr(part, entry.name)
    return values

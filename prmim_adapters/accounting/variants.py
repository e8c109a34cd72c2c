# SPDX-License-Identifier: Apache-2.0
"""The models that a comparison sets side by side: framework, plain partial, PR-MIM."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from mmengine.config import Config
from torch import nn

from ..adapters import attach, detach, is_attached, partial_of
from ..openmmlab.models import attach_options, build_model, load_config, own_ratio

FRAMEWORK, PLAIN, OURS = 'framework', 'plain partial', 'PR-MIM'


@dataclass(frozen=True)
class Variant:
    """One column of a comparison.

    Attributes:
        name: 'framework', 'plain partial' (random kept tokens, thrown ones carry no loss) or
            'PR-MIM'.
        throw_ratio: 0 for the framework.
        model: its own copy, all with the framework's same weights.
    """

    name: str
    throw_ratio: float
    model: nn.Module

    @property
    def label(self) -> str:
        """Name with the ratio: 'PR-MIM 0.5'."""
        return self.name if self.name == FRAMEWORK else f'{self.name} {self.throw_ratio:g}'


def build_variants(config: Config, ratios: Sequence[float] | None = None) -> list[Variant]:
    """Framework, then plain partial reconstruction and PR-MIM at every ratio.

    Args:
        config: of type PRMIM, whose options PR-MIM gets, or of any MIM framework with an adapter.
        ratios: throw ratios; the config's own one, or 0.5.

    Raises:
        TypeError, ValueError: from ``attach``: no adapter, a ratio that the mask does not allow.
    """
    framework = _framework(config)
    variants = [Variant(FRAMEWORK, 0.0, framework)]
    for ratio in ratios or [own_ratio(config)]:
        for name in (PLAIN, OURS):
            model = _attached(copy.deepcopy(framework), name, ratio, config)
            variants.append(Variant(name, ratio, model))
    return variants


def build_variant(config: Config | str, name: str, ratio: float | None = None) -> nn.Module:
    """One of the models of :func:`build_variants`, by its name."""
    if isinstance(config, str):
        config = load_config(config)
    framework = _framework(config)
    if name == FRAMEWORK:
        return framework
    return _attached(framework, name, own_ratio(config) if ratio is None else ratio, config)


def variants_of(model: nn.Module) -> list[Variant]:
    """Framework, plain partial reconstruction, and the attached model itself; it is not changed.

    Raises:
        ValueError: nothing is attached to ``model``.
    """
    ratio = partial_of(model).throw_ratio
    framework = detach(copy.deepcopy(model))
    plain = attach(copy.deepcopy(framework), ratio, sampler='random', aggregator=None)
    return [
        Variant(FRAMEWORK, 0.0, framework),
        Variant(PLAIN, ratio, plain),
        Variant(OURS, ratio, model),
    ]


def _framework(config: Config) -> nn.Module:
    model = build_model(config)
    return detach(model) if is_attached(model) else model


def _attached(model: nn.Module, name: str, ratio: float, config: Config) -> nn.Module:
    if name == PLAIN:
        return attach(model, ratio, sampler='random', aggregator=None)
    return attach(model, ratio, **attach_options(config))

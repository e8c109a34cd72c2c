# SPDX-License-Identifier: Apache-2.0
"""The models that a comparison sets side by side: framework, plain partial, PR-MIM."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import init_default_scope
from torch import nn

from ..adapters import attach, detach, is_attached, partial_of

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


def load_config(path: str | Path) -> Config:
    """A config by its path, or by the name that a config's ``_base_`` would give it.

    Args:
        path: a file, or ``'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py'``.
    """
    if '::' in str(path):
        from mmengine.hub import get_config

        return get_config(str(path))
    return Config.fromfile(path)


def build_model(config: Config) -> nn.Module:
    """The model of a training config, as the Runner builds it, on the CPU, weights not loaded."""
    import mmpretrain.models  # noqa: F401 (registers the models)
    from mmpretrain.registry import MODELS

    from .. import openmmlab  # noqa: F401 (registers PRMIM)

    init_default_scope(config.get('default_scope') or 'mmpretrain')
    settings = copy.deepcopy(config.model)
    if config.get('data_preprocessor') is not None:
        settings.setdefault('data_preprocessor', config.data_preprocessor)
    hub = MessageHub.get_current_instance()
    if 'max_iters' not in hub.runtime_info:  # teachers ask how long training will be
        hub.update_info('max_iters', 1)
    return MODELS.build(settings)


def attach_options(config: Config) -> dict[str, Any]:
    """Options of ``attach`` in a config of type PRMIM, but the ratio; none in another."""
    if config.model.get('type') != 'PRMIM':
        return {}
    not_options = ('type', 'framework', 'throw_ratio', 'data_preprocessor')
    return {k: v for k, v in config.model.items() if k not in not_options}


def own_ratio(config: Config) -> float:
    """The throw ratio of a config of type PRMIM; 0.5 of another."""
    return config.model.get('throw_ratio', 0.5) if config.model.get('type') == 'PRMIM' else 0.5


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

# SPDX-License-Identifier: Apache-2.0
"""Training configs: reading them, and building from them what training would build.

Commands, counters, pictures, sweeps and export all ask here, so that they see one model.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from typing import Any

from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS, TRANSFORMS
from torch import nn

from .config_files import building, model_settings, named
from .config_files import load_config as load_config
from .prmim import PRMIM, separate
from .target_networks import without_downloads
from .types import is_a, resolved

_DEFAULT_RATIO = 0.5


def scope_of(config: Config) -> AbstractContextManager:
    """Inside, names without a scope are looked up where the config's Runner would."""
    own = model_settings(config).get('_scope_')
    return DefaultScope.overwrite_default_scope(own or config.get('default_scope') or 'mmpretrain')


def build_model(config: Config) -> nn.Module:
    """The model of a training config, as the Runner builds it, on the CPU, weights not loaded.

    Raises:
        ConfigError: there is none, or a class of the framework refuses its settings.
        TypeError, ValueError, KeyError: partial reconstruction does.
    """
    import mmpretrain.models  # noqa: F401 (registers the models)

    settings = copy.deepcopy(model_settings(config))
    preprocessor = config.get('data_preprocessor')
    if preprocessor is not None:
        settings.setdefault('data_preprocessor', copy.deepcopy(preprocessor))
    hub = MessageHub.get_current_instance()
    if 'max_iters' not in hub.runtime_info:  # teachers ask how long training will be
        hub.update_info('max_iters', 1)
    with building(config, 'its model'), scope_of(config), without_downloads():
        return MODELS.build(settings)


def framework_settings(config: Config) -> dict[str, Any]:
    """The model config of the framework itself, out of PRMIM if it is in one."""
    return _separated(config)[0]


def attach_options(config: Config) -> dict[str, Any]:
    """Arguments of ``attach`` in a config of type PRMIM, but the ratio; none in another."""
    return {k: v for k, v in _separated(config)[1].items() if k != 'throw_ratio'}


def own_ratio(config: Config) -> float:
    """The throw ratio of a config of type PRMIM; the default of another."""
    return _separated(config)[1].get('throw_ratio', _DEFAULT_RATIO)


def is_prmim(config: Config) -> bool:
    """Whether the config's model is of type PRMIM, in whatever way it is written."""
    with scope_of(config):
        return resolved(model_settings(config), MODELS) is PRMIM


def _separated(config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    if not is_prmim(config):
        return config.model, {}
    outer = ('type', '_scope_', 'framework', 'data_preprocessor', 'with_cp')
    settings = {k: v for k, v in config.model.items() if k not in outer}
    with scope_of(config):
        return separate(config.model.get('framework'), settings)


def preprocessor_settings(config: Config) -> dict[str, Any]:
    """The data preprocessor's config: the framework's, else the model's, else the top level's."""
    for settings in (framework_settings(config), config.model, config):
        if settings.get('data_preprocessor') is not None:
            return settings['data_preprocessor']
    return {}


def training_pipeline(config: Config) -> list[Any]:
    """Steps that make a sample of training: those of the first data set, through any wrapper.

    A wrapper's own steps follow those of the data set inside it; ``PackInputs`` is appended where
    there is none, as for data sets in memory, which hand over packed samples.

    Raises:
        ValueError: no data set has a pipeline.
    """
    steps = _pipeline((config.get('train_dataloader') or {}).get('dataset'))
    if steps is None:
        raise ValueError(
            f'{named(config)} has no `train_dataloader.dataset.pipeline`, nor '
            'one in a data set inside it: image size and mask are unknown'
        )
    from mmpretrain.datasets.transforms import PackInputs

    with scope_of(config):
        packed = any(is_a(step, TRANSFORMS, PackInputs) for step in steps)
    return steps if packed else [*steps, dict(type=PackInputs)]


def _pipeline(dataset: Any) -> list[Any] | None:
    """The steps of the first data set in it that has any; None if there is none."""
    if isinstance(dataset, dict):
        inside = _pipeline([v for k, v in dataset.items() if k != 'pipeline'])
        own = dataset.get('pipeline')
        return inside if own is None else [*(inside or []), *own]
    if isinstance(dataset, (list, tuple)):
        found = (_pipeline(entry) for entry in dataset if isinstance(entry, (dict, list, tuple)))
        return next((steps for steps in found if steps is not None), None)
    return None


def input_channels(model: nn.Module) -> int:
    """Channels of the images that a model takes: those of its encoder's first convolution.

    Raises:
        ValueError: there is no convolution.
    """
    encoder = getattr(model, 'backbone', model)
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    raise ValueError(
        f'{type(encoder).__name__} has no convolution that would tell how many channels its '
        'images have; give a batch of your own'
    )

# SPDX-License-Identifier: Apache-2.0
"""``type='PRMIM'`` in configs: builds the framework and attaches partial reconstruction."""

from __future__ import annotations

import copy
import inspect
from typing import Any

from mmengine.config import Config
from mmengine.config.lazy import LazyAttr, LazyObject
from mmpretrain.registry import MODELS
from torch import nn

from ..adapters import attach
from ..core.options import check_flag
from .activation_checkpointing import checkpoint_heavy_network
from .compat import make_compilable
from .types import resolved

OPTIONS = tuple(inspect.signature(attach).parameters)[1:]
"""What ``attach`` takes besides the model."""


@MODELS.register_module()
def PRMIM(  # noqa: N802 (what configs call it; in a pure-Python config the object itself)
    framework: dict[str, Any] | None = None,
    data_preprocessor: dict[str, Any] | None = None,
    with_cp: bool = False,
    **settings: Any,
) -> nn.Module:
    """Build ``framework`` and attach.

    Args:
        framework: needed: model config of any MIM algorithm with an adapter.
        data_preprocessor: put here by the Runner; handed on, unless ``framework`` has its own.
        with_cp: activation checkpointing of the heavy network: its blocks keep their inputs only,
            and are computed again in backward.
        **settings: arguments of :func:`prmim_adapters.attach`. Settings of the framework, as in
            ``--cfg-options model.backbone.mask_ratio=0.6``, are handed on to it.

    Returns:
        The framework's own model object.

    Raises:
        TypeError: ``framework`` is no config, or a setting neither an argument of ``attach`` nor
            one of the framework.
        ValueError: ``with_cp``, and no block of the heavy network can be computed again.
    """
    check_flag('with_cp', with_cp)
    framework, options = separate(framework, settings)
    if data_preprocessor is not None:
        framework = {'data_preprocessor': data_preprocessor, **framework}
    model = attach(MODELS.build(framework), **options)
    if with_cp:
        checkpoint_heavy_network(model)
    make_compilable(model)
    return model


def separate(
    framework: dict[str, Any] | None, settings: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The framework's config with its own settings merged into it, and the options of ``attach``.

    Raises:
        TypeError: ``framework`` is no config, or a setting is of neither; says which part of the
            framework has one of that name.
    """
    if not isinstance(framework, dict):
        raise TypeError(
            f'PRMIM: framework={framework!r}: expected the model config of a framework, '
            "dict(type=..., backbone=..., ...), or that of the base: dict(_delete_=True, type='PRMIM', "
            'framework={{_base_.model}}, ...)'
        )
    options = {name: _imported(value) for name, value in settings.items() if name in OPTIONS}
    others = {name: value for name, value in settings.items() if name not in OPTIONS}
    if not others:
        return framework, options
    allowed = {*framework, *_parameters(resolved(framework, MODELS))}
    unknown = sorted(others.keys() - allowed)
    if unknown:
        name = unknown[0]
        parts = [part for part, inside in framework.items() if _takes(inside, name)]
        hint = f' Did you mean model.{parts[0]}.{name}?' if parts else ''
        raise TypeError(
            f'PRMIM: unknown setting {name!r}.{hint} Its own are {", ".join(OPTIONS)}; those of '
            f'the framework are {", ".join(sorted(allowed - {"type", "_scope_"}))}'
        )
    return overridden(framework, others), options


def _takes(part: Any, name: str) -> bool:
    """Whether a part of the framework, given by its config, has a setting of that name."""
    return isinstance(part, dict) and name in {*part, *_parameters(resolved(part, MODELS))}


def overridden(framework: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """A model config with settings merged into it, as ``--cfg-options`` are merged.

    Both stay as they are: mmengine takes ``_delete_`` out of what it merges.
    """
    merged = Config(copy.deepcopy(framework))
    merged.merge_from_dict(copy.deepcopy(settings))
    return dict(merged.items())


def _imported(value: Any) -> Any:
    """What a pure-Python config imports, itself: mmengine leaves it as it is inside of lists."""
    if isinstance(value, (LazyObject, LazyAttr)):
        return value.build()
    return list(map(_imported, value)) if isinstance(value, (list, tuple)) else value


def _parameters(framework: Any) -> set[str]:
    """Names of the arguments that a class or function takes, ``**kwargs`` handed to its bases."""
    names: set[str] = set()
    for cls in getattr(framework, '__mro__', (framework,)):
        if not callable(framework) or cls is object:
            break
        parameters = inspect.signature(cls).parameters.values()
        names |= {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names

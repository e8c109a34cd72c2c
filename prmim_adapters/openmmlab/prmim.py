# SPDX-License-Identifier: Apache-2.0
"""``type='PRMIM'`` in configs: builds the framework and attaches partial reconstruction."""

from __future__ import annotations

from typing import Any

from mmpretrain.registry import MODELS
from torch import nn

from ..adapters import attach
from .compat import make_compilable


@MODELS.register_module(name='PRMIM')
def build_prmim(
    framework: dict[str, Any], data_preprocessor: dict[str, Any] | None = None, **options: Any
) -> nn.Module:
    """Build ``framework`` and attach.

    Args:
        framework: model config of any MIM algorithm with an adapter.
        data_preprocessor: put here by the Runner; handed on, unless ``framework`` has its own.
        **options: arguments of :func:`prmim_adapters.attach`.

    Returns:
        The framework's own model object.
    """
    if data_preprocessor is not None:
        framework = {'data_preprocessor': data_preprocessor, **framework}
    model = attach(MODELS.build(framework), **options)
    make_compilable(model)
    return model

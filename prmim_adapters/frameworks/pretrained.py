# SPDX-License-Identifier: Apache-2.0
"""Weights that ``init_cfg`` names, loaded after a module's own initialization.

mmengine knows them by the name ``'Pretrained'`` or by the class, and a module that initializes
anything after ``super().init_weights()`` overwrites them. Here the registry says what a type is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmengine.model import PretrainedInit, initialize
from mmengine.registry import WEIGHT_INITIALIZERS


@contextmanager
def loaded_last(module: Any) -> Iterator[None]:
    """Inside, ``module.init_cfg`` has no weights to load; they are loaded at the end.

    Args:
        module: a ``BaseModule`` whose ``init_weights`` is running.
    """
    given = module.init_cfg
    entries = [given] if isinstance(given, Mapping) else list(given or ())
    loaded = [entry for entry in entries if loads_weights(entry)]
    others = [entry for entry in entries if entry not in loaded]
    module.init_cfg = given if not loaded else others or None
    try:
        yield
    finally:
        module.init_cfg = given
    if loaded:
        initialize(module, [dict(entry) for entry in loaded])


def loads_weights(settings: Mapping[str, Any]) -> bool:
    """Whether the settings of an initializer load a checkpoint, in whatever way the type is written."""
    kind = settings.get('type')
    kind = WEIGHT_INITIALIZERS.get(kind) if isinstance(kind, str) else kind
    return isinstance(kind, type) and issubclass(kind, PretrainedInit)

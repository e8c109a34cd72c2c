# SPDX-License-Identifier: Apache-2.0
"""What a config's ``type`` stands for, as the registry that builds it would say."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from mmengine.registry import Registry


def resolved(settings: Mapping[str, Any] | None, registry: Registry) -> Any:
    """The class or function that ``registry.build(settings)`` would call; None if there is none.

    Names with and without scope (``'MAE'``, ``'mmpretrain.MAE'``), qualified names and the object
    itself, as in pure-Python configs, give the same.
    """
    kind = (settings or {}).get('type')
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(settings.get('_scope_')) as found:  # type: ignore[union-attr]
        try:
            return found.get(kind)
        except RuntimeError:  # mmengine's for a dotted name that cannot be imported
            return None


def is_a(settings: Mapping[str, Any] | None, registry: Registry, *classes: type) -> bool:
    """Whether the settings build an object of one of these classes, or of a subclass.

    mmpretrain's ``torchvision/...`` transforms are of the class in torchvision.
    """
    found = resolved(settings, registry)
    if isinstance(found, partial):
        found = found.keywords.get('transform', found.func)
    return isinstance(found, type) and issubclass(found, classes)

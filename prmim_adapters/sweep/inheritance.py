# SPDX-License-Identifier: Apache-2.0
"""Files that inherit others: specs through ``_base_`` and ``_delete_``, and what a config inherits."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import yaml


def read_spec(path: Path) -> dict[str, Any]:
    """A spec, merged into the ones that its ``_base_`` names.

    ``_delete_`` replaces what the base has. Below ``options`` it stays, as there it also replaces
    what the framework's config has.

    Raises:
        TypeError: a file holds something else than a mapping.
        FileNotFoundError: a file is not there.
    """
    return _without_deletes(_read(path))


def _read(path: Path) -> dict[str, Any]:
    data = yaml.safe_load(path.read_text())
    if not isinstance(data, dict):
        raise TypeError(f'found {type(data).__name__} in {path.name}')
    whole: dict[str, Any] = {}
    for name in _as_list(data.pop('_base_', None)):
        whole = merge(whole, _read(path.parent / name))
    return merge(whole, data)


def _without_deletes(data: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_deletes(value) if isinstance(value, dict) and key != 'options' else value
        for key, value in data.items()
        if key != '_delete_'
    }


def merge(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """``second`` over ``first``, mapping by mapping, as mmengine merges a child config.

    A mapping with ``_delete_`` in ``second`` replaces the one in ``first``.
    """
    result = dict(first)
    for key, value in second.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and not value.get('_delete_'):
            value = merge(old, value)
        result[key] = value
    return result


def local_bases(config: Path) -> list[str]:
    """Texts of the files that a config inherits, those of packages (``package::name``) left out.

    A file that is missing or cannot be read has none: whoever reads the config names the mistake.
    """
    texts = []
    for name in _base_names(config):
        base = config.parent / name
        if '::' not in name and base.is_file():
            texts += [base.read_text(), *local_bases(base)]
    return texts


def _base_names(config: Path) -> list[str]:
    try:
        found = _python_base(config) if config.suffix == '.py' else _yaml_base(config)
    except (OSError, ValueError, SyntaxError, yaml.YAMLError):
        return []
    return _as_list(found)


def _python_base(config: Path) -> Any:
    """The value of ``_base_ = ...``; None if there is no such line."""
    for line in ast.parse(config.read_text()).body:
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == '_base_':
            return ast.literal_eval(line.value)
    return None


def _yaml_base(config: Path) -> Any:
    data = yaml.safe_load(config.read_text())
    return data.get('_base_') if isinstance(data, dict) else None


def _as_list(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else list(names or [])

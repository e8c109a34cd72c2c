# SPDX-License-Identifier: Apache-2.0
"""Reads a spec from YAML, merged into those it inherits; :mod:`.rules` checks it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from .files import FileError
from .inheritance import read_spec
from .rules import check_spec
from .spec import Evaluation, Framework, Spec, SpecError, Transfer, Verdict


def load_spec(path: str | Path) -> Spec:
    """Read and check a spec, merged into the ones that its ``_base_`` names.

    Raises:
        SpecError: not YAML, too much of it, unknown or missing key, wrong type, empty axis, value
            out of range, a name that is no name, a ``_base_`` that is not there or a circle.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    try:
        data = read_spec(path)
    except FileError as error:
        raise SpecError(str(error)) from None
    except FileNotFoundError as error:
        if not path.exists():
            raise
        raise SpecError(
            f'{path}: _base_: {error}; name it relative to the spec that inherits it'
        ) from None
    if 'folder' in data:
        raise SpecError("spec: unknown key 'folder'; paths are relative to the spec that is run")
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
    check_spec(spec)
    return spec


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
    return {name: _part(cls, part, f'{where}.{name}') for name, part in parts}


def _part(cls: type, value: Any, where: str) -> Any:
    """A dataclass from a mapping.

    Raises:
        SpecError: unknown key, or a required one is missing.
    """
    if not isinstance(value, dict):
        raise SpecError(f'{where}: expected a mapping of settings, found {value!r}')
    known = {entry.name for entry in fields(cls)}
    unknown = [key for key in value if key not in known]
    if unknown:
        raise SpecError(f'{where}: unknown key {unknown[0]!r}; allowed: {", ".join(sorted(known))}')
    try:
        return cls(**value)
    except TypeError as error:
        raise SpecError(f'{where}: {str(error).split("() ")[-1]}') from None

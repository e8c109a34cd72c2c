# SPDX-License-Identifier: Apache-2.0
"""Files that inherit others: specs through ``_base_`` and ``_delete_``, and what a config inherits."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from .files import FileError, read_mapping, read_text, resolved

#: Files that a spec or a config may inherit, directly and through others.
MAX_BASES = 50


def read_spec(path: Path) -> dict[str, Any]:
    """A spec, merged into the ones that its ``_base_`` names.

    ``_delete_`` replaces what the base has. Below ``options`` it stays, as there it also replaces
    what the framework's config has.

    Raises:
        FileError: a file cannot be read, inherits itself, or there are too many.
        FileNotFoundError: a file is not there.
    """
    return _without_deletes(_read(path, (), [MAX_BASES]))


def _read(path: Path, heirs: tuple[Path, ...], left: list[int]) -> dict[str, Any]:
    place = resolved(path)
    if place in heirs:
        raise FileError(f'{heirs[0]}: _base_: {path} inherits itself')
    left[0] -= 1
    if left[0] < 0:
        raise FileError(f'{(*heirs, path)[0]}: _base_: inherits more than {MAX_BASES} files')
    data = read_mapping(path)
    whole: dict[str, Any] = {}
    names = data.pop('_base_', None)
    for name in _as_list(names):
        if not isinstance(name, str):
            raise FileError(f'{path}: _base_: expected names of files, found {names!r:.80}')
        whole = merge(whole, _read(path.parent / name, (*heirs, place), left))
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
    return _bases(config, (), [MAX_BASES])


def _bases(config: Path, heirs: tuple[Path, ...], left: list[int]) -> list[str]:
    texts = []
    heirs = (*heirs, config.resolve())
    for name in _base_names(config):
        base = config.parent / name
        if '::' in name or not left[0] or not base.is_file() or base.resolve() in heirs:
            continue
        left[0] -= 1
        texts += [read_text(base), *_bases(base, heirs, left)]
    return texts


def _base_names(config: Path) -> list[str]:
    try:
        found = _python_base(config) if config.suffix == '.py' else _yaml_base(config)
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return []
    return [name for name in _as_list(found) if isinstance(name, str)]


def _python_base(config: Path) -> Any:
    """The value of ``_base_ = ...``, or the files that are imported ``with read_base():``."""
    files = []
    for line in ast.parse(read_text(config)).body:
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == '_base_':
            return ast.literal_eval(line.value)
        if isinstance(line, ast.With) and 'read_base' in ast.unparse(line.items[0].context_expr):
            imports = [entry for entry in line.body if isinstance(entry, ast.ImportFrom)]
            files += [_imported(i.level, i.module) for i in imports if i.level and i.module]
    return files


def _imported(level: int, module: str) -> str:
    """The file of a relative import: ``..a.b`` is ``../a/b.py``."""
    return '../' * (level - 1) + module.replace('.', '/') + '.py'


def _yaml_base(config: Path) -> Any:
    return read_mapping(config).get('_base_')


def _as_list(names: Any) -> list[Any]:
    return names if isinstance(names, list) else [] if names is None else [names]

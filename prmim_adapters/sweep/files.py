# SPDX-License-Identifier: Apache-2.0
"""Files that somebody wrote by hand, or hands over: read whole, or refused with the file's name.

A small YAML file can describe one that fills the memory, by names that stand for names; so size,
depth and what it unfolds to are bounded before anything is built from it.
"""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 2**20
#: Values that a file may unfold to, every alias counted as often as it is used.
MAX_VALUES = 50_000
MAX_DEPTH = 40


class FileError(ValueError):
    """A file that cannot be read; the message begins with its name."""


def resolved(path: Path) -> Path:
    """Where a path leads, whether or not something is there.

    Raises:
        FileError: its links lead in a circle.
    """
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError before Python 3.13
        if isinstance(error, RuntimeError) or error.errno == errno.ELOOP:
            raise FileError(f'{path}: its links lead in a circle') from None
        return path.resolve()


def inside(folder: Path, name: str) -> Path:
    """The path ``name`` below a folder, which no link leads elsewhere.

    Raises:
        FileError: it lies outside, somewhere else inside, or nowhere.
    """
    path = folder / name
    if resolved(path) != folder.resolve() / name:
        raise FileError(
            f'{path}: leads to {path.resolve()}; links below {folder} are not followed, so that '
            'nothing outside is replaced'
        )
    return path


def check_links(folder: Path) -> None:
    """Refuse a link that leads out of a folder in which a run goes on.

    Links within it, as wandb makes them, stay.

    Raises:
        FileError: there is one; what is written to it would be written elsewhere. Or one leads in
            a circle.
    """
    whole = folder.resolve()
    for path in folder.rglob('*'):
        if path.is_symlink() and not resolved(path).is_relative_to(whole):
            raise FileError(
                f'{path}: leads to {path.readlink()}; links out of {folder} are not followed, so '
                'that nothing outside is replaced'
            )


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """The text of a file.

    Raises:
        FileNotFoundError: no such file.
        FileError: it is no file, larger than ``limit`` bytes, or no UTF-8.
    """
    if not path.exists():
        raise FileNotFoundError(f'{path}: no such file')
    if not path.is_file():
        raise FileError(f'{path}: is no file')
    if path.stat().st_size > limit:
        raise FileError(f'{path}: has {path.stat().st_size} bytes; at most {limit} are read')
    try:
        return path.read_text(encoding='utf-8')
    except UnicodeDecodeError as error:
        raise FileError(f'{path}: is no text in UTF-8: {error}') from None


def read_mapping(path: Path) -> dict[Any, Any]:
    """A YAML file of keys with values.

    Raises:
        FileNotFoundError: no such file.
        FileError: it is no YAML, no mapping, unfolds to too much, or gives a key twice.
    """
    text = read_text(path)
    try:
        _check_node(yaml.compose(text, yaml.SafeLoader), MAX_DEPTH, [MAX_VALUES])
        data = yaml.safe_load(text)
    except RecursionError:
        raise FileError(f'{path}: is nested too deeply; at most {MAX_DEPTH} levels') from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        reason = ' '.join(str(error).split())
        raise FileError(f'{path}: expected YAML with a mapping of keys: {reason}') from None
    if not isinstance(data, dict):
        found = type(data).__name__
        raise FileError(f'{path}: expected YAML with a mapping of keys, found {found}')
    return data


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file; None if there is no file.

    Raises:
        FileError: it is damaged.
    """
    try:
        text = read_text(path, 64 * MAX_BYTES)
    except FileNotFoundError:
        return None
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:  # a ValueError: a number of thousands of digits
        raise FileError(f'{path}: is damaged, no JSON: {error}; delete it') from None
    if not isinstance(data, dict):
        raise FileError(f'{path}: is damaged, a {type(data).__name__} of JSON; delete it')
    return data


def _check_node(node: yaml.Node | None, depth: int, left: list[int]) -> None:
    """Count down ``left`` by the values that a node unfolds to.

    Raises:
        ValueError: too deep, too many, or a key twice in one mapping.
    """
    left[0] -= 1
    if left[0] < 0:
        raise ValueError(f'it unfolds to more than {MAX_VALUES} values')
    if not depth:
        raise ValueError(f'it is nested deeper than {MAX_DEPTH} levels, or contains itself')
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if key.value in keys and key.tag != 'tag:yaml.org,2002:merge':
                raise ValueError(f'key {key.value!r} is given twice{key.start_mark}')
            if isinstance(key, yaml.ScalarNode):
                keys.add(key.value)
            _check_node(key, depth - 1, left)
            _check_node(value, depth - 1, left)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_node(item, depth - 1, left)

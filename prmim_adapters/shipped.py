# SPDX-License-Identifier: Apache-2.0
"""The configs, sweeps and patches of this distribution, in a wheel as in a checkout."""

from __future__ import annotations

import ast
import difflib
import shutil
from pathlib import Path

PACKAGE = Path(__file__).parent


def shipped(name: str) -> Path:
    """The folder ``configs``, ``sweeps`` or ``patches``: in the package's ``.mim``, or beside it.

    Raises:
        FileNotFoundError: it is in neither place.
    """
    places = [PACKAGE / '.mim' / name, PACKAGE.parent / name]
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(f'no {name} of prmim_adapters: neither {places[0]} nor {places[1]}')


def configs() -> dict[str, Path]:
    """Name, as ``_demo_/mae_prmim_demo.py``, to file of every config that can be trained."""
    root = shipped('configs') / 'mmpretrain'
    names = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob('*.py'))}
    return {name: path for name, path in names.items() if not name.startswith('_base_/')}


def find(name: str) -> Path:
    """The config of that name; ``prmim_adapters::``, folder and ``.py`` may be left out.

    Raises:
        ValueError: there is none, with those of similar name.
    """
    wanted = name.removeprefix('prmim_adapters::').removesuffix('.py')
    known = configs()
    for path in known.values():
        if wanted in (path.stem, f'{path.parent.name}/{path.stem}'):
            return path
    stems = [path.stem for path in known.values()]
    parts = [stem for stem in stems if wanted and wanted.lower() in stem]
    parts.sort(key=lambda stem: not stem.startswith(wanted.lower()))
    alike = parts[:3] or difflib.get_close_matches(wanted.lower(), stems, n=3)
    hint = f'like it are {", ".join(alike)}' if alike else '`prmim configs` lists all'
    raise ValueError(f'prmim_adapters has no config {name}: {hint}')


def with_bases(config: Path) -> list[Path]:
    """A config and the files of this distribution that it inherits from, itself first."""
    found = {config: None}
    for base in _bases(config):
        if '::' not in base:
            found |= dict.fromkeys(with_bases((config.parent / base).resolve()))
    return list(found)


def copy(config: Path, folder: Path, force: bool = False) -> list[Path]:
    """Copy a shipped config with its bases, each to its place below ``folder``.

    Args:
        config: a value of :func:`configs`.
        folder: made where missing; ``folder/mae_prmim_vitb.py`` and so on.
        force: whether the config may be replaced. Bases that are there with other text never are.

    Returns:
        What was written or is there already, the config first.

    Raises:
        FileExistsError: a file of other text is in the way; nothing is written.
    """
    config = config.resolve()
    root = (shipped('configs') / 'mmpretrain').resolve()
    targets = {path: folder / path.relative_to(root) for path in with_bases(config)}
    for source, target in targets.items():
        replaceable = force and source == config
        if target.exists() and not replaceable and target.read_bytes() != source.read_bytes():
            raise FileExistsError(f'{target} exists and differs from the one that would be written')
    for source, target in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return list(targets.values())


def summary(config: Path) -> str:
    """The first sentence of the comment that a config begins with."""
    lines = []
    for line in config.read_text(encoding='utf-8').splitlines():
        if not line.startswith('#'):
            break
        lines.append(line.lstrip('# '))
    return ' '.join(lines).partition('. ')[0].removesuffix('.')


def _bases(config: Path) -> list[str]:
    """``_base_``, read without running the file."""
    for node in ast.parse(config.read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '_base_':
            value = ast.literal_eval(node.value)
            return [value] if isinstance(value, str) else list(value)
    return []

# SPDX-License-Identifier: Apache-2.0
"""Reading training configs; what is wrong with one is said with its name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.utils import get_installed_path, is_installed
from mmpretrain import registry as registries

from .. import shipped
from ..errors import described, is_mistake

_SUFFIXES = ('.py', '.yaml', '.yml', '.json')


class ConfigError(ValueError):
    """A config that cannot be used; the message names the file, the fault and the remedy."""


def load_config(path: str | Path) -> Config:
    """A config by its path, or by the name that a config's ``_base_`` would give it.

    Args:
        path: a file, of either style of mmengine, or
            ``'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py'``; those of this
            package too, which no ``_base_`` finds: ``'prmim_adapters::mae_prmim_vitb.py'``.

    Raises:
        FileNotFoundError, IsADirectoryError: no such file; names the nearest one.
        ConfigError: a package that has no such config or is not installed, or a file that cannot
            be executed.
    """
    name = str(path)
    package, inside, rest = name.partition('::')
    if not inside:
        _check_file(Path(path))
    elif package == 'prmim_adapters':
        path = shipped.find(rest)
    else:
        path = _in_package(package, rest)
    try:
        return Config.fromfile(path)
    except Exception as error:  # whatever the lines of a config raise
        raise ConfigError(f'{name} cannot be read as a config: {_reason(error)}') from error


def model_settings(config: Config) -> Any:
    """``config.model``.

    Raises:
        ConfigError: there is none.
    """
    if not isinstance(config.get('model'), dict):
        raise ConfigError(
            f'{named(config)} has no `model`: give a pre-training config, with '
            '`model = dict(type=...)`; `prmim configs` lists some'
        )
    return config.model


def named(config: Config) -> str:
    """The config's file, for messages."""
    return config.filename or 'the config'


@contextmanager
def building(config: Config, what: str) -> Iterator[None]:
    """What a framework's class refuses inside is said to be of ``what`` of the config.

    Raises:
        ConfigError: in place of errors that this package does not raise on purpose.
    """
    try:
        yield
    except Exception as error:
        if is_mistake(error):
            raise
        reason = _unknown_type(error) or described(error)
        raise ConfigError(f'{named(config)}: {what} cannot be built: {reason}') from error


def _unknown_type(error: Exception) -> str | None:
    """mmengine's error of a name that no registry has, with the nearest that one has."""
    found = re.search(r'["\']?([^\s"\']+) is not in the (\S+)::(.+?) registry', str(error))
    if found is None:
        return None
    name, _, kind = found.groups()
    named_so = [r for r in vars(registries).values() if getattr(r, 'name', None) == kind]
    known = [key for registry in named_so for key in registry.module_dict]
    return (
        f'type={name!r} is not registered as a {kind}{nearest(name, known) or "."} Classes of your '
        'own have to be imported: custom_imports = dict(imports=[...])'
    )


def nearest(name: str, names: list[str]) -> str:
    """'. Did you mean NAME?' where one of the names is near, else ''."""
    found = difflib.get_close_matches(name, names, n=1)
    return f'. Did you mean {found[0]!r}?' if found else ''


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f'{path} is a folder: give a config file in it, NAME.py')
    if path.is_file() and path.suffix not in _SUFFIXES:
        raise ConfigError(f'{path} is no config: the name of one ends in {", ".join(_SUFFIXES)}')
    if not path.is_file():
        beside = [str(file) for file in path.parent.glob('*.py')] if path.parent.is_dir() else []
        raise FileNotFoundError(
            f'{path}: no such config: give a file, or PACKAGE::PATH for one of a package'
            f'{_shipped_as(path) or nearest(str(path), beside)}'
        )


def _shipped_as(path: Path) -> str:
    """'. Did you mean prmim_adapters::NAME.py?' for the bare name of a shipped config, else ''."""
    names = [name for name, file in shipped.configs().items() if file.stem == path.stem]
    return f". Did you mean 'prmim_adapters::{names[0]}'?" if names else ''


def _in_package(package: str, inside: str) -> Path:
    """The file that mmengine's ``PACKAGE::PATH`` means. Nothing is installed, unlike there."""
    name = f'{package}::{inside}'
    if package not in MODULE2PACKAGE:
        known = ['prmim_adapters', *MODULE2PACKAGE]
        raise ConfigError(
            f'{name}: there is no package {package!r} of configs'
            f'{nearest(package, known) or "."} Packages: {", ".join(known)}'
        )
    if not is_installed(MODULE2PACKAGE[package]):
        raise ConfigError(f'{name}: {package} is not installed: pip install {package}')
    folder = Path(get_installed_path(MODULE2PACKAGE[package])) / '.mim' / 'configs'
    path = folder / inside
    if not path.is_file():
        there = [str(file.relative_to(folder)) for file in folder.rglob('*.py')]
        raise ConfigError(
            f'{name}: {package} has no such config'
            f'{nearest(inside, there) or f"; see the files in {folder}"}'
        )
    return path


def _reason(error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return f'line {error.lineno}: {error.msg}'
    if isinstance(error, FileNotFoundError):
        return f'{error.filename or error}: no such file, which it inherits from or reads'
    if isinstance(error, ImportError) and error.__cause__ is not None:  # mmengine's, with sys.path
        first: BaseException = error.__cause__
        text = str(first)
        while first.__context__ is not None:
            first = first.__context__
        return f'custom_imports: {text}: {first}; install it, or put its folder on PYTHONPATH'
    if type(error) is RuntimeError and not error.args:  # of mmengine's stand-ins for imported names
        return 'it calls what it imports, as NAME(...), which is dict(type=NAME, ...) in a config'
    return described(error)

# SPDX-License-Identifier: Apache-2.0
"""The registries of adapters, samplers and aggregators, in mmengine's idiom.

A small one of our own, so that ``import prmim_adapters`` needs torch only.
"""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

from ..core import aggregation, sampling
from ..core.cross_blocks import CrossBlocks
from ..core.last_blocks import LastBlocks

T = TypeVar('T')


class Registry:
    """Names to functions or classes.

    Args:
        kind: what the entries are, for messages: 'sampler'.

    Example:
        >>> @SAMPLERS.register_module('mine')
        ... def mine(mask, num_kept, grid, noise): ...
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Any] = {}
        self._locations: dict[str, str] = {}
        self._summaries: dict[str, str] = {}

    def register_module(
        self,
        name: str | None = None,
        *,
        framework: str | None = None,
        module: Any = None,
        force: bool = False,
    ) -> Callable[[T], T]:
        """Register a function or class, as a decorator or with ``module=``.

        Args:
            name: key; the object's ``__name__`` by default.
            framework: key of an adapter: qualified name of the model class that it attaches to.
            module: the object, when not used as a decorator.
            force: replace an entry of the same key.

        Raises:
            TypeError: the decorator without parentheses, which would register nothing.
            KeyError: the key is taken and ``force`` is False.
        """
        if name is not None and not isinstance(name, str):
            raise TypeError(
                f'{self.kind}: name={name!r} is no name: write @...register_module() with '
                'parentheses, or register_module(module=...)'
            )

        def register(target: T) -> T:
            key = name or framework or target.__name__  # type: ignore[attr-defined]
            if key in self._entries and not force:
                raise KeyError(
                    f'{self.kind} {key!r} is registered already; pass force=True to replace it'
                )
            if force:  # what stood at a location is not asked for any more
                self._locations.pop(key, None)
                self._summaries.pop(key, None)
            self._entries[key] = target
            return target

        if module is not None:
            register(module)
        return register

    def register_location(self, key: str, location: str, summary: str = '') -> None:
        """Name the module whose import registers ``key``; it is imported when first asked for.

        ``summary`` says in a few words what the entry does, without importing it.
        """
        self._locations[key] = location
        self._summaries[key] = summary

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._locations, *self._entries]))

    def __contains__(self, key: str) -> bool:
        return key in self._entries or key in self._locations

    def get(self, key: str) -> Any:
        """The entry of that key.

        Raises:
            KeyError: there is none; the message lists those there are.
        """
        if key not in self._entries and key in self._locations:
            import_module(self._locations[key])
        if key not in self._entries:
            close = difflib.get_close_matches(str(key), list(self), n=1)
            hint = f' Did you mean {close[0]!r}?' if close else ''
            raise KeyError(
                f'unknown {self.kind} {key!r}.{hint} Registered: {", ".join(self)}. Register your '
                'own and import its module through custom_imports.'
            )
        return self._entries[key]

    def summary(self, key: str) -> str:
        """What ``key`` does, in a line; imports nothing for an entry that is only located."""
        if key in self._summaries:
            return self._summaries[key]
        entry = self.get(key)
        options = ', '.join(f'{k}={v!r}' for k, v in getattr(entry, 'keywords', {}).items())
        text = (inspect.getdoc(getattr(entry, 'func', entry)) or '').partition('\n')[0]
        text = re.sub(r' \[\d+\]', '', text)  # references stand below the docstring
        return f'{text} ({options})' if options else text


class AdapterRegistry(Registry):
    """Adapters by the qualified name of the model class that they attach to."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self._refusals: dict[str, str] = {}

    def register_refusal(self, framework: str, reason: str) -> None:
        """Say why a framework has no adapter; one that is registered for it goes first."""
        self._refusals[framework] = reason

    def refusal(self, model_class: type) -> str | None:
        """Why there is no adapter for this class; None if there is nothing against one."""
        names = (f'{cls.__module__}.{cls.__qualname__}' for cls in model_class.__mro__)
        return next((self._refusals[name] for name in names if name in self._refusals), None)

    def of_package(self, package: str) -> list[str]:
        """The classes of that top-level package that have an adapter, by name."""
        keys = (key.partition(' (')[0] for key in self if key.partition('.')[0] == package)
        return [key.rpartition('.')[2] for key in keys]

    def find(self, model_class: type) -> str | None:
        """The key of the nearest class in the MRO of ``model_class``; None if there is none.

        A framework may be registered under the name that its users import (``my_pkg.MyMIM``) or
        the one of the defining module (``my_pkg.models.mim.MyMIM``). Where several frameworks have
        a class of one name, ``'name (whose)'``, a user's own comes first, then the one whose
        adapter is meant for that class.
        """
        for cls in model_class.__mro__:
            found = [key for key in self if _is_name_of(key, cls)]
            if len(found) > 1:
                found.sort(key=lambda key: (key in self._locations, not self._meant(key, cls)))
            if found:
                return found[0]
        return None

    def _meant(self, key: str, cls: type) -> bool:
        meant = getattr(self.get(key), 'meant', None)
        return meant is not None and meant(cls)


def _is_name_of(key: str, cls: type) -> bool:
    """Whether ``key``, 'name' or 'name (whose)', names that class."""
    name = key.partition(' (')[0]
    if name == f'{cls.__module__}.{cls.__qualname__}':
        return True
    module, _, attribute = name.rpartition('.')
    return getattr(sys.modules.get(module), attribute, None) is cls


def qualified(path: str) -> Any:
    """The object that a qualified name leads to, importing its module; None if there is none.

    mmengine writes a class of a pure-Python config as its qualified name.
    """
    module, _, attribute = path.rpartition('.')
    try:
        return getattr(import_module(module), attribute, None) if module else None
    except ImportError:
        return None


ADAPTERS = AdapterRegistry('framework adapter')
SAMPLERS = Registry('sampler')
AGGREGATORS = Registry('aggregator')

SAMPLERS.register_module('farthest', module=sampling.farthest)
SAMPLERS.register_module('farthest_unseeded', module=partial(sampling.farthest, seeds='none'))
SAMPLERS.register_module('random', module=sampling.random)
SAMPLERS.register_module('grid', module=sampling.lattice)

AGGREGATORS.register_module('cross_attention', module=aggregation.CrossAttention)
AGGREGATORS.register_module('cross_blocks', module=CrossBlocks)
AGGREGATORS.register_module('last_blocks', module=LastBlocks)
AGGREGATORS.register_module('nearest', module=aggregation.Nearest)
AGGREGATORS.register_module('distance', module=aggregation.Distance)
AGGREGATORS.register_module('convolution', module=aggregation.Convolution)

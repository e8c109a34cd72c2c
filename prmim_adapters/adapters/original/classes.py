# SPDX-License-Identifier: Apache-2.0
"""Subclasses of classes that live in a repository, not in a package: made when they are first met.

The original repositories are folders that a script runs in, so an adapter cannot import them. It
writes the overriding methods as a mixin and names the class that they go before.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib import import_module


class UpstreamClasses(Mapping[type, type]):
    """Upstream class to the subclass that puts a mixin before it, for ``Adapter.classes``.

    A subclass is made once and put into the adapter's module, where pickle finds it; with
    ``__getattr__ = CLASSES.find`` in that module a new process finds it too.

    Args:
        module: ``__name__`` of the adapter's module.
        mixins: qualified name of the upstream class to the mixin.
    """

    def __init__(self, module: str, mixins: dict[str, type]) -> None:
        self._module = module
        self._mixins = mixins

    def __getitem__(self, upstream: type) -> type:
        mixin = self._mixins.get(f'{upstream.__module__}.{upstream.__qualname__}')
        if mixin is None:
            raise KeyError(upstream)
        name, namespace = f'PR{upstream.__qualname__}', vars(sys.modules[self._module])
        made = namespace.get(name)
        if made is None or made.__bases__[-1] is not upstream:
            content = {'__module__': self._module, '__doc__': mixin.__doc__}
            made = namespace[name] = type(name, (mixin, upstream), content)
        return made

    def __iter__(self) -> Iterator[type]:
        """Empty classes of the names, for messages: the real ones may not be importable."""
        for path in self._mixins:
            module, _, name = path.rpartition('.')
            yield type(name, (), {'__module__': module})

    def __len__(self) -> int:
        return len(self._mixins)

    def find(self, name: str) -> type:
        """The subclass called ``name``, importing the upstream class.

        Raises:
            AttributeError: there is none, or the repository is not on ``sys.path``.
        """
        for path in self._mixins:
            module, _, upstream = path.rpartition('.')
            if name == f'PR{upstream}':
                try:
                    return self[getattr(import_module(module), upstream)]
                except ImportError as error:
                    raise AttributeError(
                        f'{name} extends {path}, which cannot be imported ({error}): put the '
                        'folder of the original repository on sys.path'
                    ) from error
        raise AttributeError(f'module {self._module!r} has no attribute {name!r}')

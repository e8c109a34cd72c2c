# SPDX-License-Identifier: Apache-2.0
"""Progressive partial reconstruction for masked image modeling (PR-MIM, arXiv 2411.15746).

Importing this package needs nothing; what is asked of it first imports torch, and torch only::

    import prmim_adapters as prmim
    prmim.attach(model, throw_ratio=0.5)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapters import (
        ADAPTERS,
        AGGREGATORS,
        SAMPLERS,
        Adapter,
        Seams,
        attach,
        declare,
        detach,
        is_attached,
        masks,
        set_throw_ratio,
    )

__version__ = '0.1.0'

__all__ = [
    'ADAPTERS',
    'AGGREGATORS',
    'SAMPLERS',
    'Adapter',
    'Seams',
    '__version__',
    'attach',
    'declare',
    'detach',
    'is_attached',
    'masks',
    'set_throw_ratio',
]


def __getattr__(name: str) -> Any:
    """Looked up when first used (PEP 562), so that the command line's help does not wait for torch."""
    if name in __all__:
        globals()[name] = value = getattr(import_module('.adapters', __name__), name)
        return value
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    """What there is, used or not."""
    return sorted({*globals(), *__all__})

# SPDX-License-Identifier: Apache-2.0
"""Progressive partial reconstruction for masked image modeling (PR-MIM, arXiv 2411.15746).

Importing this package needs torch only.

    import prmim_adapters as prmim
    prmim.attach(model, throw_ratio=0.5)
"""

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

# SPDX-License-Identifier: Apache-2.0
"""What upstream mmengine 0.10 needs on today's torch, on CPUs and under Slurm.

Compensations, all applied by :func:`apply` when ``prmim_adapters.openmmlab`` is imported:

* torch >= 2.6 loads with ``weights_only=True``, and mmengine's own checkpoints then fail, since
  they hold the log history (``HistoryBuffer`` and numpy arrays) beside the weights. The classes
  that a checkpoint of mmengine needs are put on torch's allow-list, and nothing else: a foreign
  file that names any other callable is still refused. See ``docs/checkpoints.md``.
* ``--launcher pytorch`` and ``--launcher slurm``: see :mod:`prmim_adapters.openmmlab.launch`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmcv.cnn.bricks import DropPath
from mmengine.logging import HistoryBuffer
from torch import nn

from . import launch

#: The attributes of HistoryBuffer that its pickle refers to (``_statistics_methods``).
_HISTORY_METHODS = ('min', 'max', 'current', 'mean')
_NUMBERS = '?bhilqBHILQefd'


def apply() -> None:
    """Apply every compensation; calling it again changes nothing."""
    allow_own_checkpoints()
    launch.apply()


def allow_own_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)`` read what mmengine's ``CheckpointHook`` writes.

    On torch < 2.6, where ``weights_only`` is not the default, there is nothing to do.
    """
    if torch.__version__ >= '2.6':
        torch.serialization.add_safe_globals(_checkpoint_globals())


def _checkpoint_globals() -> list[Any]:
    """Globals named in a checkpoint of mmengine, beyond torch's own: log history, numpy, ints.

    numpy's two functions are listed under both their module names, those of numpy 1 and numpy 2.
    """
    reconstruct: Any = np.empty(0).__reduce__()[0]
    scalar: Any = np.float64(0).__reduce__()[0]
    numpy_functions = [
        (function, f'numpy.{core}.multiarray.{function.__name__}')
        for function in (reconstruct, scalar)
        for core in ('core', '_core')
    ]
    number_types = {type(np.dtype(code)) for code in _NUMBERS}
    return [
        HistoryBuffer,
        (_history_method, 'builtins.getattr'),
        np.ndarray,
        np.dtype,
        *numpy_functions,
        *number_types,
    ]


def _history_method(owner: type, name: str) -> Callable:
    """Stand-in for ``getattr`` while a checkpoint is read: methods of HistoryBuffer, nothing else.

    HistoryBuffer keeps a table of its methods, which pickle writes as ``getattr(HistoryBuffer,
    'min')``. Allowing the real ``getattr`` would let a file walk from any allowed object to any
    attribute of it, and so undo ``weights_only``.

    Raises:
        ValueError: The file asks for an attribute of something else.
    """
    if owner is not HistoryBuffer or name not in _HISTORY_METHODS:
        raise ValueError(
            f'the checkpoint asks for attribute {name!r} of {owner!r}; only '
            f'{", ".join(_HISTORY_METHODS)} of HistoryBuffer are allowed. Do not load this file '
            'unless you made it yourself.'
        )
    return getattr(HistoryBuffer, name)


def make_compilable(model: nn.Module) -> None:
    """Turn the drop path rates of mmpretrain's layers into Python floats.

    Upstream leaves numpy scalars there, and torch.compile breaks its graph at each of them.
    """
    for module in model.modules():
        if isinstance(module, DropPath):
            module.drop_prob = float(module.drop_prob)

# SPDX-License-Identifier: Apache-2.0
"""What upstream mmengine 0.10 and mmpretrain 1.2 need on today's torch, on CPUs and under Slurm.

Compensations, all applied by :func:`apply` when ``prmim_adapters.openmmlab`` is imported:

* torch >= 2.6 loads with ``weights_only=True``, and mmengine's own checkpoints then fail, since
  they hold the log history (``HistoryBuffer`` and numpy arrays) beside the weights. The classes
  that a checkpoint of mmengine needs are put on torch's allow-list, and nothing else: a foreign
  file that names any other callable is still refused. See ``docs/checkpoints.md``.
* Two ways around ``weights_only`` are closed: mmengine loads URLs without it, and on resume executes
  a config text in the file.
* ``--launcher pytorch`` and ``--launcher slurm``: see :mod:`prmim_adapters.openmmlab.launch`.
* Checkpoints are written whole: see :mod:`prmim_adapters.openmmlab.whole_files`.
* FlexibleRunner resumes from whole ones: see :mod:`prmim_adapters.openmmlab.flexible_runner`.
* MAE takes images that are not square: see :mod:`prmim_adapters.frameworks.rectangles`.
* Position biases of smaller images load: see :mod:`prmim_adapters.frameworks.position_bias`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from mmcv.cnn.bricks import DropPath
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import nn

from ..allow_list import numpy_globals
from ..frameworks.position_bias import resize_with_current_scipy
from ..frameworks.rectangles import allow_rectangles
from . import launch
from .checkpoints import read_checkpoint
from .flexible_runner import resume_from_whole_files
from .whole_files import write_whole_files

#: The attributes of HistoryBuffer that its pickle refers to (``_statistics_methods``).
_HISTORY_METHODS = ('min', 'max', 'current', 'mean')
_load_checkpoint = mmengine_checkpoint.CheckpointLoader.load_checkpoint


def apply() -> None:
    """Apply every compensation; calling it again changes nothing."""
    allow_own_checkpoints()
    load_data_only()
    launch.apply()
    write_whole_files()
    resume_from_whole_files()
    allow_rectangles()
    resize_with_current_scipy()


def allow_own_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)`` read what mmengine's ``CheckpointHook`` writes."""
    history = [HistoryBuffer, (_history_method, 'builtins.getattr')]
    torch.serialization.add_safe_globals([*history, *numpy_globals()])


def load_data_only() -> None:
    """Make every checkpoint that mmengine loads data: local files, URLs, and what resume reads."""
    loader = mmengine_checkpoint.CheckpointLoader
    loader.register_scheme('', load_from_local, force=True)
    loader.load_checkpoint = staticmethod(_load_without_program)
    mmengine_checkpoint.load_url = partial(torch.hub.load_state_dict_from_url, weights_only=True)


def load_from_local(filename: str, map_location: Any) -> Any:
    """mmengine's loader of that name, with errors that name the file; the log shows its name."""
    return read_checkpoint(filename, map_location)


def _load_without_program(filename: str, map_location: Any = None, logger: Any = 'current') -> Any:
    """A checkpoint without the text ``meta.config``, which ``Runner.resume`` would execute.

    mmcv 1 wrote it. mmengine's own text is ``meta.cfg``, and is not executed.
    """
    checkpoint = _load_checkpoint(filename, map_location, logger)
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    if isinstance(meta, dict):
        meta.pop('config', None)
    return checkpoint


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

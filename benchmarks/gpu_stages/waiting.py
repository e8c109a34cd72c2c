# SPDX-License-Identifier: Apache-2.0
"""Where a step makes the host wait for the device: it reads a value, or a shape depends on one.

Found by what is called, so that a CPU, which never waits, shows them as well.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_READS = ('_local_scalar_dense', 'nonzero', 'masked_select', '_unique2', 'unique_consecutive',
          'unique_dim', 'equal', 'is_nonzero', 'repeat_interleave.Tensor')  # fmt: skip
_TO_HOST = (Tensor.tolist, Tensor.cpu, Tensor.numpy)
_MODES = ('waiting.py', 'randomness.py', 'warnings.py')
_UPLOADS = (torch.tensor, torch.as_tensor)


class HostWaits:
    """Context: counts, by place, what would wait for a GPU.

    Args:
        device: type of the device that is waited for; tensors elsewhere are the host's own.

    Attributes:
        places: 'file:line function (operator)' of the innermost frame outside of torch -> times.
    """

    def __init__(self, device: str = 'cpu') -> None:
        self.device = device
        self.places: Counter[str] = Counter()
        self._stack = ExitStack()

    def __enter__(self) -> HostWaits:
        self._stack.enter_context(_Functions(self))
        self._stack.enter_context(_Operators(self))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def note(self, what: str) -> None:
        """Count one at the caller's place."""
        self.places[f'{_place(sys._getframe(1))} ({what})'] += 1


@contextmanager
def cuda_waits(on_cuda: bool) -> Iterator[Counter[str]]:
    """What CUDA itself reports, by place, so that nothing is overlooked; nothing on a CPU."""
    places: Counter[str] = Counter()

    def show(message: Any, *_: Any) -> None:
        if 'synchronizing' in str(message):
            places[f'cuda: {_place(sys._getframe(1))}'] += 1

    with ExitStack() as stack:
        if on_cuda:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter('always')
            warnings.showwarning = show
            torch.cuda.set_sync_debug_mode('warn')
            stack.callback(torch.cuda.set_sync_debug_mode, 'default')
        yield places


class _Operators(TorchDispatchMode):
    """Operators whose result, or its shape, the host has to know."""

    def __init__(self, waits: HostWaits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = func.name().removeprefix('aten::')
        if self.waits.device != 'cpu' and not _on(self.waits.device, args):
            return func(*args, **(kwargs or {}))
        if name.split('.')[0] in _READS or name in _READS:
            self.waits.note(name)
        elif name.startswith(('index.', 'index_put', '_index_put')):
            indices = [i for i in args[1] if i is not None]
            if any(i.dtype in (torch.bool, torch.uint8) for i in indices):
                self.waits.note(f'{name} by a mask')
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    """Calls that copy between host and device, which a dispatched operator does not show on a CPU."""

    def __init__(self, waits: HostWaits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _TO_HOST:
            self.waits.note(func.__name__)
        elif func is Tensor.new_tensor or (func in _UPLOADS and kwargs.get('device') is not None):
            self.waits.note(f'{func.__name__} to the device')
        return func(*args, **kwargs)


def _on(device: str, args: tuple) -> bool:
    return any(x.device.type == device for x in tree_leaves(args) if isinstance(x, Tensor))


def _place(frame: FrameType | None) -> str:
    """Innermost frame outside of torch and of what watches it; of backward, who called it."""
    while frame is not None:
        name = frame.f_code.co_filename
        path = Path(name)
        if '/torch/' not in name and path.name not in _MODES and not name.startswith('<'):
            where = f'{path.parent.name}/{path.name}:{frame.f_lineno}'
            return f'{where} {frame.f_code.co_name}'
        frame = frame.f_back
    return 'backward'

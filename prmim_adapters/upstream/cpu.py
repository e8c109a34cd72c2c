# SPDX-License-Identifier: Apache-2.0
"""The shim 'cpu': scripts that are written for CUDA run without it, slowly."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def install() -> None:
    """Redirect the calls of the original training scripts."""
    cuda: Any = torch.cuda
    for name in ('synchronize', 'empty_cache', 'set_device'):
        setattr(cuda, name, lambda *args, **kwargs: None)
    tensor_class: Any = torch.Tensor
    tensor_class.cuda = lambda self, *args, **kwargs: self
    module_class: Any = nn.Module
    module_class.cuda = lambda self, *args, **kwargs: self
    torch.tensor = _on_cpu(torch.tensor)
    torch.distributed.init_process_group = _with_gloo(torch.distributed.init_process_group)
    _without_device_ids(nn.parallel.DistributedDataParallel)


def _on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if str(kwargs.get('device', '')).startswith('cuda'):
            kwargs['device'] = 'cpu'
        return function(*args, **kwargs)

    return wrapper


def _with_gloo(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(backend: str | None = None, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get('rank') == -1:  # what scripts pass when the environment knows better
            kwargs = {k: v for k, v in kwargs.items() if k not in ('rank', 'world_size')}
        return function('gloo' if backend == 'nccl' else backend, *args, **kwargs)

    return wrapper


def _without_device_ids(parallel: Any) -> None:
    original = parallel.__init__

    @functools.wraps(original)
    def init(self: Any, module: nn.Module, device_ids: Any = None, *args: Any, **kw: Any) -> None:
        original(self, module, None, *args, **kw)

    parallel.__init__ = init

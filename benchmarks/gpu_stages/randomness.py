# SPDX-License-Identifier: Apache-2.0
"""The same random numbers on every device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_FACTORIES = (torch.rand, torch.randn, torch.randint, torch.randperm)
_LIKE = {torch.rand_like: torch.rand, torch.randn_like: torch.randn}
_IN_PLACE = (Tensor.bernoulli_, Tensor.uniform_, Tensor.normal_, Tensor.random_)


class SameRandomness(TorchFunctionMode):
    """Inside, random tensors are drawn on the CPU, in order, and moved to where they were wanted.

    Masks, kept tokens and stochastic depth are then those of the CPU, so that losses can be compared.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _FACTORIES:
            device = kwargs.pop('device', None)
            return func(*args, **{**kwargs, 'generator': self.generator}).to(device or 'cpu')
        if func in _LIKE:
            drawn = _LIKE[func](args[0].shape, dtype=args[0].dtype, generator=self.generator)
            return drawn.to(args[0].device)
        if func is torch.multinomial:  # without replacement: the first of as many alarm clocks
            weights = args[0]
            drawn = torch.empty(weights.shape).exponential_(generator=self.generator)
            order = (drawn.to(weights.device) / weights).argsort(dim=-1)
            return order[..., : args[1]]
        if func in _IN_PLACE:
            drawn = torch.empty(args[0].shape, dtype=args[0].dtype)
            return args[0].copy_(func(drawn, *args[1:], **{**kwargs, 'generator': self.generator}))
        return func(*args, **kwargs)

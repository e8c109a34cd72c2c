# SPDX-License-Identifier: Apache-2.0
"""Random integers of a source of our own, which a compiled graph and a checkpoint can hold.

Samplers draw from it, so that they leave torch's global generator alone (what is masked does not
depend on what is thrown), and so that processes which share a seed still keep different tokens.
The source is a counter in a tensor, and the integers a hash of it: splitmix64 [0].

[0] Steele et al., Fast Splittable Pseudorandom Number Generators, OOPSLA 2014.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

BITS = 20
"""Integers are drawn below ``2 ** BITS``."""

_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number: the golden ratio, odd
_FIRST, _SECOND = -4658895280553007687, -7723592293110705685  # the constants of its finaliser
_RANK = 7640891576956012809  # distance of the processes' streams, odd


class Randomness(nn.Module):
    """A source of random integers, the same again after :meth:`seed`, different on every rank.

    The counter is a buffer that the state dict leaves out: ``state`` (), int64.
    """

    state: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('state', torch.tensor(torch.initial_seed() % 2**63), persistent=False)

    @torch.no_grad()
    def seed(self, seed: int) -> None:
        """Begin anew."""
        self.state.fill_(seed)

    @torch.no_grad()
    def forward(self, mask: Tensor) -> Tensor:
        """Random integers (B, L) int64 below ``2 ** BITS``, of the shape and on the device of a mask.

        Raises:
            RuntimeError: a backward pass is under way, which would see other integers.
        """
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                'tokens would be partitioned again in the backward pass, and differently: apply '
                'activation checkpointing to the blocks of the heavy network, not around it'
            )
        count = int(mask.numel()) if torch.jit.is_tracing() else mask.numel()
        state = self.state.to(mask.device) + _signed(_rank() * _RANK)
        self.state.add_(_signed(_GAMMA * count))
        return torch.ops.prmim_adapters.splitmix64(state, count).view(mask.shape)


@torch.library.custom_op('prmim_adapters::splitmix64', mutates_args=())
def _splitmix64(state: Tensor, count: int) -> Tensor:
    """The next integers (count,) int64, below ``2 ** BITS``, of a state (), int64.

    One opaque operator: torch.compile takes the steps of the state for places in memory, and
    writes a kernel whose constants do not fit into 64 bits.
    """
    index = torch.arange(1, count + 1, device=state.device)
    return _mix(state + index * _GAMMA) & (2**BITS - 1)


@_splitmix64.register_fake
def _(state: Tensor, count: int) -> Tensor:
    return state.new_empty(count)


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _signed(number: int) -> int:
    """The same modulo 2**64, in the range of int64."""
    return (number + 2**63) % 2**64 - 2**63


def _mix(z: Tensor) -> Tensor:
    """The finaliser of splitmix64 on int64, whose products wrap around."""
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Right shift that fills with zeros, of signed numbers."""
    return (z >> bits) & (2 ** (64 - bits) - 1)

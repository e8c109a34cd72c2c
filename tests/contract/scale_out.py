# SPDX-License-Identifier: Apache-2.0
"""What each process of test_scale_out.py does: ten steps on its share of a global batch.

A global batch gives the same gradient however it is shared, as long as every image has the same
random numbers. So each process draws those of the whole batch, and takes the rows of its images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from contract_case import collect
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from prmim_adapters.core import randomness
from prmim_adapters.testing import AdapterCase
from prmim_adapters.testing.case import total

STEPS, IMAGES = 10, 8
LAYERS = {  # of mmpretrain, Hugging Face and timm, and this project's
    'TransformerEncoderLayer',
    'BEiTTransformerEncoderLayer',
    'ViTMAELayer',
    'ViTLayer',
    'Block',
    'CrossAttention',
}
_FACTORIES = {
    torch.ops.aten.rand.default,
    torch.ops.aten.rand.generator,
    torch.ops.aten.randn.default,
}
_FILLS = {
    torch.ops.aten.uniform_.default,
    torch.ops.aten.normal_.default,
    torch.ops.aten.bernoulli_.float,
    torch.ops.aten.random_.default,
}


class DrawnForAll(TorchDispatchMode):
    """Random numbers of a global batch of ``size`` images, of which this process has ``rows``.

    A first dimension that is a multiple of the rows is that of views, one after the other.
    """

    def __init__(self, rows: list[int], size: int) -> None:
        super().__init__()
        self.rows, self.size = rows, size

    def whole(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        views, rest = divmod(shape[0], len(self.rows)) if len(shape) else (0, 1)
        return None if rest else (views * self.size, *shape[1:])

    def own(self, whole: Tensor) -> Tensor:
        return whole.unflatten(0, (-1, self.size))[:, self.rows].flatten(0, 1)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _FACTORIES and (whole := self.whole(tuple(args[0]))):
            return self.own(func(list(whole), *args[1:], **kwargs))
        if func in _FILLS and (whole := self.whole(tuple(args[0].shape))):
            return args[0].copy_(self.own(func(args[0].new_empty(whole), *args[1:], **kwargs)))
        if func is torch.ops.aten.multinomial.default and (whole := self.whole(args[0].shape)):
            noise = self.own(args[0].new_empty(whole).exponential_())
            return (args[0] / noise).topk(args[1]).indices  # as torch draws without replacement
        return func(*args, **kwargs)


@contextmanager
def one_batch(rows: list[int], size: int) -> Iterator[None]:
    """Random numbers, those of samplers too, as in one process with the whole batch."""
    draws, forward, rank = DrawnForAll(rows, size), randomness.Randomness.forward, randomness._rank

    def noise(source: randomness.Randomness, mask: Tensor) -> Tensor:
        return draws.own(forward(source, mask.new_zeros(draws.whole(mask.shape))))

    randomness.Randomness.forward, randomness._rank = noise, lambda: 0
    try:
        with draws:
            yield
    finally:
        randomness.Randomness.forward, randomness._rank = forward, rank


def share(batch: Any, rows: list[int]) -> Any:
    """These images of a batch of any form."""
    if isinstance(batch, Tensor):
        return batch[rows]
    if isinstance(batch, dict):
        return {key: share(value, rows) for key, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(share(value, rows) for value in batch)
    if isinstance(batch, list) and not isinstance(batch[0], Tensor):
        return [batch[row] for row in rows]
    return [share(view, rows) for view in batch] if isinstance(batch, list) else batch


class LossPath(nn.Module):
    """What is wrapped: forward is the loss of a batch."""

    def __init__(self, case: AdapterCase) -> None:
        super().__init__()
        self.case, self.model = case, case.attached().train()
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()  # its statistics are those of a process (SyncBN is for GPUs)
        own = case.model()
        case.loss(own).backward()
        for name, parameter in own.named_parameters():
            if parameter.grad is None:  # the framework itself never uses it, and DDP would wait
                self.model.get_parameter(name).requires_grad_(False)

    def forward(self, batch: Any) -> Tensor:
        return total(self.case.losses(self.model, batch))


def steps(
    case: AdapterCase,
    images: int,
    rank: int = 0,
    world: int = 1,
    wrap: Callable[[nn.Module], Any] = lambda path: path,
    pieces: int = 1,
    uneven: bool = False,
) -> dict[str, Tensor]:
    """Parameters after ten steps of SGD on a global batch.

    Args:
        case: its model is trained.
        images: in the global batch.
        rank: of this process.
        world: processes that share the batch.
        wrap: makes the model a distributed one.
        pieces: in which a process takes its share, one after the other.
        uneven: every second batch is so small that some processes have an image less.
    """
    path = LossPath(case)
    wrapped = wrap(path)
    optimizer = torch.optim.SGD(path.parameters(), lr=0.01, momentum=0.9)
    batch = case.fixed_batch()
    batch = share(batch, [row % len(case.images(batch)[0]) for row in range(images)])
    torch.manual_seed(0)
    for step in range(STEPS):
        size = images * 3 // 4 if uneven and step % 2 else images
        mine = list(range(size))[rank::world]
        before = torch.get_rng_state(), [source.state.clone() for source in sources(path)]
        for piece in range(pieces):
            rows = mine[piece::pieces]
            torch.set_rng_state(before[0])
            for source, state in zip(sources(path), before[1], strict=True):
                source.state.copy_(state)
            last = piece == pieces - 1 or not isinstance(wrapped, DistributedDataParallel)
            with nullcontext() if last else wrapped.no_sync():
                with one_batch(rows, size):
                    loss = wrapped(share(batch, rows))
                # Gradients are averaged over processes, each of which has so much of the batch.
                (loss * world * len(rows) / size).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: whole(value) for name, value in path.model.named_parameters()}


def sources(model: nn.Module) -> list[randomness.Randomness]:
    return [module for module in model.modules() if isinstance(module, randomness.Randomness)]


def whole(value: Tensor) -> Tensor:
    """A parameter, or all of a sharded one."""
    return (value.full_tensor() if hasattr(value, 'full_tensor') else value).detach().clone()


def sharded(path: nn.Module) -> nn.Module:
    """FSDP2: each layer and each aggregator by itself, then all the rest."""
    mesh = dist.init_device_mesh('cpu', (dist.get_world_size(),))
    for module in reversed(list(path.modules())):
        if LAYERS & {cls.__name__ for cls in type(module).__mro__}:
            fully_shard(module, mesh=mesh)
    return fully_shard(path, mesh=mesh)


WAYS: dict[str, dict[str, Any]] = {
    'ddp': dict(wrap=DistributedDataParallel),
    'uneven': dict(wrap=DistributedDataParallel, uneven=True),
    'accumulated': dict(wrap=DistributedDataParallel, pieces=2),
    'fsdp2': dict(wrap=sharded),
    'fsdp2-accumulated': dict(wrap=sharded, pieces=2),
}


def work(rank: int, world: int, port: int, folder: str, plan: list[tuple[str, str]]) -> None:
    """Ten steps of each (case, way); rank 0 leaves their parameters in a file each."""
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group('gloo', rank=rank, world_size=world)
    cases = {case.name: case for case in collect()}
    for name, way in plan:
        result = steps(cases[name], IMAGES, rank, world, **WAYS[way])
        if rank == 0:
            torch.save(result, Path(folder) / f'{name}-{way}.pt')
    dist.destroy_process_group()

# SPDX-License-Identifier: Apache-2.0
"""The loss path: what a training step runs, as a module to trace, on a copy of the model."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..core.seeding import seeded
from ..openmmlab.distributed import without_process_group

Batch = dict[str, Any]
"""What ``model.loss`` takes, preprocessed: ``inputs``, a tensor (B, C, H, W) or a list of them
(views), and ``data_samples``, a list of B or None. ``call``, a :class:`Call`, if the model is called
otherwise than with the inputs alone."""


@dataclass(frozen=True)
class Call:
    """How a model is called that is no algorithm of mmpretrain.

    Attributes:
        keys: place or name of each input among its arguments.
        others: its other arguments, by place or name.
        loss: what it returned -> its scalar loss; None where :func:`loss_in` finds it.
    """

    keys: tuple[int | str, ...]
    others: Mapping[int | str, Any]
    loss: Callable[[Any], Tensor] | None = None

    def __call__(self, model: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
        """The model's loss."""
        given = {**self.others, **dict(zip(self.keys, inputs, strict=True))}
        places = [given[key] for key in sorted(key for key in given if isinstance(key, int))]
        names = {key: value for key, value in given.items() if isinstance(key, str)}
        output = model(*places, **names)
        return loss_in(output if self.loss is None else self.loss(output))


class LossPath(nn.Module):
    """Makes the loss of a model a module call, so that tracers see what training runs.

    ``forward(*views) -> Tensor ()``: with mmpretrain the sum of all losses, as ``parse_losses``
    forms it; with another model, the loss in what it returns: a scalar, the first of a tuple, or
    an attribute ``loss``. Then ``inputs`` are its positional arguments.

    A model's ``extract_feat``, which mmpretrain's ``get_flops`` counts, is another path: it
    encodes all patches and runs no decoder.
    """

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        super().__init__()
        self.model: Any = model
        self.data_samples, self.call = batch['data_samples'], batch.get('call')
        self.multiview = not isinstance(batch['inputs'], Tensor)

    def forward(self, *views: Tensor) -> Tensor:
        """The loss of the views, (B, C, H, W) each."""
        if self.call is not None:
            return self.call(self.model, views)
        if not hasattr(self.model, 'parse_losses'):
            return loss_in(self.model(*views))
        losses = self.model.loss(list(views) if self.multiview else views[0], self.data_samples)
        return self.model.parse_losses(losses)[0]


def loss_in(output: Any) -> Tensor:
    """The scalar loss in what a model returned: itself, the first of a tuple, attribute ``loss``.

    Raises:
        TypeError: there is none.
    """
    loss = output[0] if isinstance(output, tuple) else getattr(output, 'loss', output)
    if isinstance(loss, Tensor) and loss.dim() == 0:
        return loss
    raise TypeError(
        f'the model returned {type(output).__name__}, in which there is no scalar loss: a function '
        'that makes model and batch can return as a third what computes the loss from that'
    )


@contextmanager
def scratch(
    model: nn.Module, batch: Batch, seed: int = 0
) -> Iterator[tuple[LossPath, tuple[Tensor, ...]]]:
    """A copy of the model in training mode, as a :class:`LossPath`, and its input views.

    The user's model, its buffers (an EMA teacher's too), gradients and the random state stay as
    they were; the same seed gives the same mask in every measurement. The copy is of this process
    alone: what it reduces over all processes (iBOT's centres, SyncBN) stays here.
    """
    gc.collect()  # the copy of the last measurement, which hangs in cycles of graph and hooks
    clone = _copy(model)
    clone.train()
    for parameter in clone.parameters():
        parameter.grad = None
    inputs = batch['inputs']
    with seeded(seed), without_process_group():
        yield LossPath(clone, batch), (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)


def _copy(model: nn.Module) -> nn.Module:
    """Deep copy; tensors of a past graph that a model holds on to (BEiT's bias) come detached."""
    held = [v for module in model.modules() for v in vars(module).values()]
    past = {id(v): v.detach() for v in held if isinstance(v, Tensor) and not v.is_leaf}
    return copy.deepcopy(model, past)


def num_images(batch: Batch) -> int:
    """B."""
    inputs = batch['inputs']
    return len(inputs if isinstance(inputs, Tensor) else inputs[0])

# SPDX-License-Identifier: Apache-2.0
"""FSDP2 for mmengine's FlexibleRunner: parameters, gradients and optimizer states in shards.

mmengine's own ``FSDPStrategy`` wraps the first FSDP, which flattens the parameters of a wrapped
module into one, needs a GPU, and which torch advises against in favour of ``fully_shard``. With the
latter every parameter keeps its name and its options (``paramwise_cfg``), and checkpoints are those
of every other run.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from mmengine._strategy import DDPStrategy
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.model import BaseAveragedModel
from mmengine.registry import STRATEGIES
from torch import Tensor, nn
from torch.distributed import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..core import PartialReconstruction
from ..frameworks.ibot.algorithm import IBOT, TeacherEMA


@STRATEGIES.register_module()
class FullyShardStrategy(DDPStrategy):
    """Shards a model over all processes by ``fully_shard``.

    In a config, with any model of this project or of mmpretrain::

        runner_type = 'FlexibleRunner'
        strategy = dict(type='FullyShardStrategy', layers=['TransformerEncoderLayer'])

    Checkpoints are whole and of the ordinary form, written by the main process: runs with and
    without shards, on any number of processes, resume from each other, and ``prmim export`` reads
    them.

    Args:
        layers: class names, those of base classes included, of the modules that are gathered one
            at a time; each must be called as a module in the forward pass. What remains is
            gathered once for the whole pass.
        **options: those of mmengine's ``DDPStrategy``, ``model_wrapper`` excepted.

    Raises:
        TypeError: ``layers`` is no list of names.
        ValueError: before training, the model has no module of one of these classes, or moves a
            teacher in its forward pass (mmpretrain's CAE, MoCo, BYOL; not iBOT).
    """

    def __init__(self, *, layers: Sequence[str] = (), **options: Any) -> None:
        if isinstance(layers, str) or not all(isinstance(name, str) for name in layers):
            raise TypeError(
                f'FullyShardStrategy: layers={layers!r}: give a list of class names, as '
                "['TransformerEncoderLayer']"
            )
        self.layers = set(layers)
        super().__init__(**options)

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        """Shard the layers, innermost first, then the rest."""
        model = self.convert_model(model.to(get_device()))
        _check_teachers(model)
        names = {
            module: {cls.__name__ for cls in type(module).__mro__} for module in model.modules()
        }
        missing = sorted(self.layers - set().union(*names.values()))
        if missing:
            raise ValueError(
                f'FullyShardStrategy: {type(model).__name__} has no module of class '
                f'{", ".join(missing)}; it has {", ".join(sorted(_own_classes(model)))}'
            )
        mesh = init_device_mesh(get_device(), (self.world_size,))
        for module in reversed(names):
            # Its method after the heavy network is no forward: the parameters would not be there.
            if names[module] & self.layers and not isinstance(module, PartialReconstruction):
                fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)
        if isinstance(model, IBOT):
            model.move_teacher_first()
        return model

    def save_checkpoint(
        self, filename: str, *, save_optimizer: bool = True, **options: Any
    ) -> None:
        """Write a whole checkpoint on the main process, to which all others contribute."""
        if is_main_process():
            super().save_checkpoint(filename, save_optimizer=save_optimizer, **options)
            return
        self.model_state_dict()
        if save_optimizer:
            self.optim_state_dict()

    def model_state_dict(self) -> dict[str, Any]:
        """Whole parameters and buffers; to be called by all processes."""
        state = self.model.state_dict()
        for name, value in state.items():
            state[name] = _whole(value)
        return state

    def optim_state_dict(self) -> dict[str, Any]:
        """State of the optimizer as without shards; to be called by all processes."""
        state = super().optim_state_dict()
        whole = {
            index: {name: _whole(value) for name, value in entry.items()}
            for index, entry in state['state'].items()
        }
        return {**state, 'state': whole}

    def load_model_state_dict(
        self,
        state_dict: dict[str, Any],
        *,
        strict: bool = False,
        revise_keys: Sequence[tuple[str, str]] = ((r'^module.', ''),),
    ) -> None:
        """Load a whole checkpoint."""
        own = self.model.state_dict()
        shards: Any = OrderedDict()
        shards._metadata = getattr(state_dict, '_metadata', OrderedDict())  # mmengine reads it
        for name, value in state_dict.items():
            for pattern, replacement in revise_keys:
                name = re.sub(pattern, replacement, name)
            shards[name] = _like(value, own.get(name))
        super().load_model_state_dict(shards, strict=strict, revise_keys=[])

    def load_optim_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of an optimizer of a run with or without shards."""
        groups = self.optim_wrapper.optimizer.param_groups
        parameters = [parameter for group in groups for parameter in group['params']]
        shards = {
            index: {name: _like(value, parameters[index]) for name, value in entry.items()}
            for index, entry in state_dict['state'].items()
        }
        super().load_optim_state_dict({**state_dict, 'state': shards})


def _check_teachers(model: nn.Module) -> None:
    """Refuse a model that moves a teacher in its forward pass.

    Raises:
        ValueError: it does, and FSDP2 would throw the update away with the gathered parameters.
    """
    for module in model.modules():
        averages = isinstance(module, BaseAveragedModel) and not isinstance(module, TeacherEMA)
        if averages or hasattr(module, 'momentum_update'):
            raise ValueError(
                f'FullyShardStrategy: {type(module).__name__} moves a teacher during the forward '
                'pass, where parameters in shards cannot be written; use DDPStrategy'
            )


def _own_classes(model: nn.Module) -> set[str]:
    """Names of the classes of a model's modules that are not torch's."""
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    return {cls.__name__ for cls in classes if cls.__module__.split('.')[0] not in _GENERAL}


_GENERAL = ('torch', 'builtins', 'abc', 'mmengine')


def _whole(value: Any) -> Any:
    """A tensor on the CPU, gathered by all processes where it is in shards."""
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.cpu() if isinstance(value, Tensor) else value


def _like(value: Any, own: Any) -> Any:
    """A whole tensor in shards as ``own`` is, if it is and has the same shape."""
    if isinstance(own, DTensor) and isinstance(value, Tensor) and value.shape == own.shape:
        value = value.to(own.device)
        return distribute_tensor(value, own.device_mesh, own.placements)
    return value


def is_sharded(model: nn.Module) -> bool:
    """Whether a model has parameters in shards, which no single process can copy or run."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())

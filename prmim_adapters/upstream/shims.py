# SPDX-License-Identifier: Apache-2.0
"""What the original repositories miss on a current stack, one small named shim for each thing.

A shim changes libraries in this process, never a file of the repository, and only where the library
lacks what it supplies. ``shim(script, arguments)`` returns whether it changed anything;
``arguments`` are the script's, to be edited in place.
"""

from __future__ import annotations

import argparse
import collections
import collections.abc
import functools
import importlib.util
import inspect
import math
import os
import socket
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

Shim = Callable[[Path, list[str]], bool]
SHIMS: dict[str, Shim] = {}


def shim(name: str) -> Callable[[Shim], Shim]:
    """Register a shim under a name; the first line of its docstring is its description."""

    def register(function: Shim) -> Shim:
        SHIMS[name] = function
        return function

    return register


@shim('torch-six')
def torch_six(script: Path, arguments: list[str]) -> bool:
    """The module torch._six, gone in torch 1.13 (mae, ConvNeXt-V2)."""
    if importlib.util.find_spec('torch._six') is not None:
        return False
    module: Any = ModuleType('torch._six')
    module.inf = math.inf
    module.string_classes = (str, bytes)
    module.container_abcs = collections.abc
    sys.modules['torch._six'] = module
    return True


@shim('numpy-float')
def numpy_float(script: Path, arguments: list[str]) -> bool:
    """The alias numpy.float, gone in numpy 1.24 (mae)."""
    import numpy as np

    if 'float' in vars(np):
        return False
    np.float = float  # type: ignore[attr-defined]
    return True


class _Version(str):
    """A version that also equals the one that a script asks for."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other) is True or other == '0.3.2'

    def __ne__(self, other: object) -> bool:
        return not self == other


@shim('timm-version')
def timm_version(script: Path, arguments: list[str]) -> bool:
    """timm.__version__ == '0.3.2', which scripts assert (mae, ConvNeXt-V2)."""
    timm = _module('timm')
    if timm is None or timm.__version__ == '0.3.2':
        return False
    timm.__version__ = _Version(timm.__version__)
    return True


@shim('timm-block')
def timm_block(script: Path, arguments: list[str]) -> bool:
    """The argument qk_scale=None of timm's Block, gone in timm 0.4.12 (mae)."""
    module = _module('timm.models.vision_transformer')
    if module is None or 'qk_scale' in inspect.signature(module.Block).parameters:
        return False
    block = module.Block

    class Block(block):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, qk_scale: None = None, **kwargs: Any) -> None:
            if qk_scale is not None:
                raise TypeError(f'qk_scale={qk_scale}: timm has no such option any more')
            super().__init__(*args, **kwargs)

    Block.__module__, Block.__qualname__ = block.__module__, block.__qualname__
    module.Block = Block
    return True


@shim('timm-vit-head')
def timm_vit_head(script: Path, arguments: list[str]) -> bool:
    """Subclasses of timm's ViT that pool in forward_features(x), as before timm 0.6 (mae)."""
    module = _module('timm.models.vision_transformer')
    if module is None or not hasattr(module.VisionTransformer, 'forward_head'):
        return False
    forward = module.VisionTransformer.forward

    def forward_as_before(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if type(self).forward_features.__module__.startswith('timm.'):
            return forward(self, x, *args, **kwargs)
        return self.head(self.forward_features(x))

    module.VisionTransformer.forward = forward_as_before
    return True


@shim('timm-weight-decay')
def timm_weight_decay(script: Path, arguments: list[str]) -> bool:
    """timm.optim.optim_factory.add_weight_decay, renamed in timm 0.6 (mae, ConvNeXt-V2)."""
    module = _module('timm.optim.optim_factory')
    if module is None or hasattr(module, 'add_weight_decay'):
        return False
    module.add_weight_decay = module.param_groups_weight_decay
    return True


@shim('timm-optimizers')
def timm_optimizers(script: Path, arguments: list[str]) -> bool:
    """Names of optimizers gone from timm, to be imported, not used (ConvNeXt-V2 fine-tuning)."""
    if _module('timm') is None:
        return False
    missing = [
        (module, name)
        for module, name in (('nadam', 'Nadam'), ('novograd', 'NovoGrad'), ('radam', 'RAdam'))
        if not hasattr(_module(f'timm.optim.{module}'), name)
    ]
    for module, name in missing:
        path = f'timm.optim.{module}'
        target: Any = sys.modules.setdefault(path, ModuleType(path))
        setattr(target, name, functools.partial(_refuse_optimizer, name))
    return bool(missing)


def _refuse_optimizer(name: str, *args: Any, **kwargs: Any) -> None:
    raise ImportError(f'timm has no {name} any more: choose another --opt')


@shim('timm-interpolation')
def timm_interpolation(script: Path, arguments: list[str]) -> bool:
    """timm.data.transforms._pil_interp, gone in timm 0.6 (SimMIM)."""
    module = _module('timm.data.transforms')
    if module is None or hasattr(module, '_pil_interp'):
        return False
    module._pil_interp = module.str_to_interp_mode
    return True


@shim('timm-cosine')
def timm_cosine(script: Path, arguments: list[str]) -> bool:
    """The argument t_mul of timm's CosineLRScheduler, renamed in timm 0.5 (SimMIM)."""
    module = _module('timm.scheduler.cosine_lr')
    if module is None or 't_mul' in inspect.signature(module.CosineLRScheduler).parameters:
        return False
    scheduler = module.CosineLRScheduler

    class CosineLRScheduler(scheduler):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, t_mul: float = 1.0, **kwargs: Any) -> None:
            super().__init__(*args, cycle_mul=t_mul, **kwargs)

    module.CosineLRScheduler = CosineLRScheduler
    return True


@shim('torchvision-image-size')
def torchvision_image_size(script: Path, arguments: list[str]) -> bool:
    """torchvision's _get_image_size, public since 0.13 (mae linear probe, ibot correspondence)."""
    module = _module('torchvision.transforms.functional')
    if module is None or hasattr(module, '_get_image_size'):
        return False
    module._get_image_size = module.get_image_size  # both: [width, height]
    return True


@shim('scipy-interp2d')
def scipy_interp2d(script: Path, arguments: list[str]) -> bool:
    """scipy.interpolate.interp2d on regular grids, gone in SciPy 1.14 (SimMIM, ibot fine-tuning)."""
    module = _module('scipy.interpolate')
    if module is None:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)
            module.interp2d([0, 1], [0, 1], [[0, 0], [0, 0]])
    except (AttributeError, NotImplementedError):  # SciPy keeps the name, to say that it is gone
        module.interp2d = _interp2d
        return True
    return False


def _interp2d(x: Any, y: Any, z: Any, kind: str = 'linear') -> Callable[[Any, Any], Any]:
    """A function of x and y through z[y, x]; outside the grid it has the value at the edge."""
    import numpy as np
    from scipy.interpolate import RectBivariateSpline

    degree = {'linear': 1, 'cubic': 3, 'quintic': 5}[kind]
    grid = np.reshape(z, (len(y), len(x)))
    spline = RectBivariateSpline(x, y, grid.T, kx=degree, ky=degree)

    def interpolated(x: Any, y: Any) -> Any:
        values = spline(np.sort(np.atleast_1d(x)), np.sort(np.atleast_1d(y))).T
        return values[0] if len(values) == 1 else values

    return interpolated


@shim('minkowski')
def minkowski(script: Path, arguments: list[str]) -> bool:
    """MinkowskiEngine and MinkowskiOps on packed tensors, where they are not built (ConvNeXt-V2)."""
    found = importlib.util.find_spec('MinkowskiEngine')
    if found is not None and found.origin is not None:
        return False  # an empty submodule folder is a namespace package, without origin
    from . import minkowski

    sys.modules['MinkowskiEngine'] = sys.modules['MinkowskiOps'] = minkowski
    return True


@shim('resume')
def resume(script: Path, arguments: list[str]) -> bool:
    """What is in checkpoints beside weights, refused since torch 2.6 (all four); still only data."""
    from ..allow_list import numpy_globals

    # yacs configs are read as the dictionaries that they are.
    configs = (collections.OrderedDict, 'yacs.config.CfgNode')
    torch.serialization.add_safe_globals([argparse.Namespace, configs, *numpy_globals()])
    load_url = torch.hub.load_state_dict_from_url  # torch's default here is still to run the file
    torch.hub.load_state_dict_from_url = functools.partial(load_url, weights_only=True)
    return True


@shim('process-group')
def process_group(script: Path, arguments: list[str]) -> bool:
    """A process group for scripts that cannot run without: of one, or srun's tasks (SimMIM, iBOT)."""
    makes_one = 'init_process_group(' in script.read_text(encoding='utf-8')
    ibot = any((folder / 'main_ibot.py').exists() for folder in script.resolve().parents[:2])
    if 'RANK' in os.environ or not (makes_one or ibot):
        return False
    rank, local, tasks = _slurm_task()
    if tasks > 1:
        missing = [name for name in ('MASTER_ADDR', 'MASTER_PORT') if name not in os.environ]
        if missing:
            raise SystemExit(
                f'prmim run: task {rank} of {tasks} under SLURM: export {" and ".join(missing)} '
                'before srun, MASTER_ADDR being the node of task 0 and MASTER_PORT a free port there; '
                'for a single process unset SLURM_PROCID'
            )
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(tasks), LOCAL_RANK=str(local))
        return True
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    os.environ.update(RANK='0', WORLD_SIZE='1', LOCAL_RANK='0')
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    return True


def _slurm_task() -> tuple[int, int, int]:
    """Rank, local rank and number of the tasks that srun started; 0, 0, 1 without srun."""
    known = os.environ
    if 'SLURM_PROCID' not in known:
        return 0, 0, 1
    tasks = int(known.get('SLURM_STEP_NUM_TASKS') or known.get('SLURM_NTASKS') or 1)
    local = int(known.get('SLURM_LOCALID') or 0)
    devices = torch.cuda.device_count()  # one, where srun binds a GPU to each task
    return int(known['SLURM_PROCID']), local % devices if devices else local, tasks


@shim('local-rank')
def local_rank(script: Path, arguments: list[str]) -> bool:
    """--local_rank where a script requires it, and torch's new spelling --local-rank (all four)."""
    renamed = [a.replace('--local-rank', '--local_rank', 1) for a in arguments]
    given = any(a.split('=')[0] == '--local_rank' for a in renamed)
    required = any(
        'local_rank' in line and 'required=True' in line
        for line in script.read_text(encoding='utf-8').splitlines()
    )
    if required and not given:
        renamed += ['--local_rank', os.environ.get('LOCAL_RANK', '0')]
    changed = renamed != arguments
    arguments[:] = renamed
    return changed


@shim('cpu')
def cpu(script: Path, arguments: list[str]) -> bool:
    """Calls that need CUDA, on a machine without (all four; to try things out)."""
    if torch.cuda.is_available():
        return False
    from .cpu import install

    install()
    return True


def _module(name: str) -> Any | None:
    """A module; None if there is no such module."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None

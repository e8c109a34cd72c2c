# SPDX-License-Identifier: Apache-2.0
"""What mmengine 0.10's start of several processes needs on CPUs and under Slurm.

* Both starts, torchrun's and Slurm's, call ``torch.cuda.set_device`` even under the gloo backend.
  Without CUDA that call is left out. The config must still ask for gloo and for a wrapper without
  device ids::

      env_cfg = dict(dist_cfg=dict(backend='gloo'))
      model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None)

* Without ``MASTER_PORT``, which mim sets and plain ``srun`` does not, every job would meet at port
  29500, and two on one node would collide. Each step of a job gets a port of its own.
* Rank 0 is looked for on the first node of the job. A step on some of its nodes has its own first.
* Where each task sees one GPU alone (``--gpus-per-task``), that is device 0, whatever the task.
"""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Callable
from typing import Any

import mmengine.dist.utils as mmengine_dist
import torch

_PORTS = range(20000, 30000)


def apply() -> None:
    """Wrap both starts; calling it again changes nothing."""
    for name, prepare in (('_init_dist_pytorch', None), ('_init_dist_slurm', prepare_slurm)):
        start = getattr(mmengine_dist, name)
        if not hasattr(start, '__wrapped__'):
            setattr(mmengine_dist, name, _prepared(start, prepare))


def prepare_slurm() -> None:
    """Set what mmengine reads of a Slurm step's environment, where it would go wrong."""
    step = [os.environ.get(name, '') for name in ('SLURM_JOB_ID', 'SLURM_STEP_ID')]
    port = _PORTS[zlib.crc32('.'.join(step).encode()) % len(_PORTS)]
    os.environ.setdefault('MASTER_PORT', str(port))
    if 'SLURM_STEP_NODELIST' in os.environ:
        os.environ['SLURM_NODELIST'] = os.environ['SLURM_STEP_NODELIST']
    visible = torch.cuda.device_count()
    if visible and 'SLURM_LOCALID' in os.environ:
        os.environ['SLURM_LOCALID'] = str(int(os.environ['SLURM_LOCALID']) % visible)


def _prepared(
    start: Callable[..., None], prepare: Callable[[], None] | None
) -> Callable[..., None]:
    @functools.wraps(start)
    def init(*args: Any, **kwargs: Any) -> None:
        if prepare is not None:
            prepare()
        choose = torch.cuda.set_device
        if not torch.cuda.is_available():
            torch.cuda.set_device = lambda device: None
        try:
            start(*args, **kwargs)
        finally:
            torch.cuda.set_device = choose

    return init

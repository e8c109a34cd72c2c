# SPDX-License-Identifier: Apache-2.0
"""What mmpretrain configs name; importing this package registers everything.

custom_imports = dict(imports=['prmim_adapters.openmmlab'], allow_failed_imports=False)
"""

from ..extras import require

require('openmmlab')

from ..frameworks import cross_mae, fcmae, ibot, norm_target, simmim_vit
from . import (
    compat,
    cuda_graph,
    decoded,
    device_dataset,
    end_with_launcher,
    finite_loss,
    fully_shard,
    hooks_ibot,
    images,
    knn,
    prmim,
    resumable_checkpoint,
    throw_ratio,
    tiny_imagenet,
    transforms,
)
from .prmim import PRMIM

compat.apply()

__all__ = [
    'PRMIM',
    'compat',
    'cross_mae',
    'cuda_graph',
    'decoded',
    'device_dataset',
    'end_with_launcher',
    'fcmae',
    'finite_loss',
    'fully_shard',
    'hooks_ibot',
    'ibot',
    'images',
    'knn',
    'norm_target',
    'prmim',
    'resumable_checkpoint',
    'simmim_vit',
    'throw_ratio',
    'tiny_imagenet',
    'transforms',
]

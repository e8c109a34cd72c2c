# SPDX-License-Identifier: Apache-2.0
"""What a global batch goes through does not depend on how many processes share it, nor on a resume.

Masks are drawn for the global batch from the iteration, and each process takes those of its images;
the kept tokens follow from the mask. Named by ``same_masks_config.py``, whose folder is on the path.
"""

import time
from unittest.mock import patch

import torch
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmpretrain.models.selfsup.mae import MAEViT
from mmpretrain.registry import DATASETS, HOOKS, MODELS
from mmpretrain.structures import DataSample
from torch.utils.data import Dataset

from prmim_adapters import SAMPLERS


@MODELS.register_module()
class SameMasksViT(MAEViT):
    iteration = 0

    def random_masking(self, x, mask_ratio=0.75):
        rank, world = get_dist_info()
        generator = torch.Generator().manual_seed(SameMasksViT.iteration)
        noise = torch.rand(len(x) * world, x.shape[1], generator=generator)[rank::world]
        with patch.object(torch, 'rand', lambda *shape, device: noise):
            return super().random_masking(x, mask_ratio)


@SAMPLERS.register_module(name='first_masked')
def first_masked(mask, num_kept, grid, noise=None):
    return mask & (mask.cumsum(1) <= num_kept)


@HOOKS.register_module()
class IterationHook(Hook):
    """Tells the model the iteration; each may be made to last longer."""

    def __init__(self, seconds=0.0):
        self.seconds = seconds

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        SameMasksViT.iteration = runner.iter
        time.sleep(self.seconds)


@DATASETS.register_module()
class NoiseImages(Dataset):
    """Images of noise, each the same at every start."""

    metainfo = {}

    def __init__(self, length):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(256, (length, 3, 32, 32), generator=generator).to(torch.uint8)

    def __len__(self):
        return len(self.images)

    def full_init(self):
        pass

    def __getitem__(self, index):
        return dict(inputs=self.images[index], data_samples=DataSample())

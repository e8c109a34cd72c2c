# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.model import BaseDataPreprocessor
from mmpretrain.structures import DataSample
from torch import nn
from torch.utils.data import DataLoader, Dataset

from prmim_adapters.accounting import make_batch
from prmim_adapters.accounting.batch import first_batch


def test_images_and_masks_are_those_of_the_pipeline(upstream_config):
    config = upstream_config('simmim/simmim_swin-base-w6_8xb256-amp-coslr-100e_in1k-192px.py')
    batch = make_batch(config, batch_size=3)
    assert batch['inputs'].shape == (3, 3, 192, 192)
    assert batch['inputs'].dtype == torch.float32
    masks = torch.stack([sample.mask for sample in batch['data_samples']])
    assert masks.shape == (3, 48, 48)
    assert masks.flatten(1).sum(1).tolist() == [22 * 64] * 3  # 22 of 36 units of 8x8 tokens


def test_images_are_normalised(upstream_config):
    config = upstream_config('mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py')
    pixels = make_batch(config)['inputs'][:, 0] * 58.395 + 123.675
    assert pixels.min() > -1
    assert 100 < pixels.max() < 256


def test_two_views(upstream_config):
    config = upstream_config('beit/beit_beit-base-p16_8xb256-amp-coslr-300e_in1k.py')
    batch = make_batch(config)
    assert [view.shape[-1] for view in batch['inputs']] == [224, 112]


def test_the_same_seed_gives_the_same_batch_and_leaves_the_random_state(upstream_config):
    config = upstream_config('simmim/simmim_swin-base-w6_8xb256-amp-coslr-100e_in1k-192px.py')
    state = torch.get_rng_state()
    first, again, other = (make_batch(config, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first['inputs'], again['inputs'])
    assert not torch.equal(first['inputs'], other['inputs'])
    assert torch.equal(first['data_samples'][0].mask, again['data_samples'][0].mask)
    assert torch.equal(torch.get_rng_state(), state)


def test_from_a_model(small_mae):
    batch = make_batch(small_mae(img_size=(64, 64)), batch_size=1)
    assert batch['inputs'].shape == (1, 3, 64, 64)
    assert batch['data_samples'] is None


def test_what_cannot_be_known_is_asked_for():
    with pytest.raises(ValueError, match='does not say its image size'):
        make_batch(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r'has no `train_dataloader\.dataset\.pipeline`'):
        make_batch(Config({'model': {}}))
    with pytest.raises(ValueError, match='batch_size=0 must be at least 1'):
        make_batch(nn.Linear(2, 2), batch_size=0)


class DrawnMasks(Dataset):
    """Images whose mask is drawn when they are loaded, as the pipelines of iBOT and BEiT do."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        mask = torch.rand(4, 4) < np.random.uniform(0.1, 0.6)
        return {'inputs': torch.full((3, 8, 8), float(index)), 'mask': mask}


def collate(samples):
    return {
        'inputs': torch.stack([sample['inputs'] for sample in samples]),
        'data_samples': [DataSample(mask=sample['mask']) for sample in samples],
    }


def test_all_processes_count_on_the_same_batch():
    model = nn.Module()
    model.data_preprocessor = BaseDataPreprocessor()
    batches = []
    for rank in range(2):
        torch.manual_seed(rank)
        np.random.seed(rank)
        state = torch.get_rng_state()
        sampler = DefaultSampler(DrawnMasks(), seed=rank)
        loader = DataLoader(DrawnMasks(), batch_size=3, sampler=sampler, collate_fn=collate)
        batches.append(first_batch(loader, model, 8))
        assert torch.equal(torch.get_rng_state(), state)
    one, two = batches
    assert one['inputs'][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert torch.equal(one['inputs'], two['inputs'])
    masks = [torch.stack([s.mask for s in batch['data_samples']]) for batch in batches]
    assert torch.equal(*masks) and len(masks[0].unique(dim=0)) > 1

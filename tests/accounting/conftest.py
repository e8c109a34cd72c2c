# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
from pathlib import Path

import mmpretrain
import mmpretrain.models
import pytest
import small_models
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))  # tiny_net, also in spawned processes
CONFIGS = Path(mmpretrain.__file__).parent / '.mim' / 'configs'


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmpretrain')


@pytest.fixture
def upstream_config():
    """A config that mmpretrain ships, by its path under ``configs/``."""
    return lambda path: Config.fromfile(CONFIGS / path)


@pytest.fixture
def mae_vitb(upstream_config):
    """mmpretrain's MAE ViT-B/16 at 224 px."""
    config = upstream_config('mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py')
    config.model.data_preprocessor = config.data_preprocessor
    return MODELS.build(config.model)


@pytest.fixture
def small_mae():
    """MAE with a 2-deep, 64-wide encoder and a 2-deep, 32-wide decoder; 64 px, 8x8 patches."""

    def build(**backbone) -> nn.Module:
        torch.manual_seed(0)
        settings = small_models.mae(
            64,
            8,
            width=64,
            depth=2,
            backbone={
                'arch': small_models.arch(64, 2, 4) | {'feedforward_channels': 256},
                'mask_ratio': 0.75,
            }
            | backbone,
            neck={'decoder_embed_dim': 32, 'decoder_depth': 2},
            head={'norm_pix': True},
        )
        return MODELS.build(settings)

    return build

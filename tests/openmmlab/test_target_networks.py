# SPDX-License-Identifier: Apache-2.0
"""MILAN, CAE and iTPN on real images: they learn, and resume; their targets stay as they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.models.selfsup import milan
from mmpretrain.models.utils.clip_generator_helper import CLIP
from small_targets import CONFIGS, SMALL, STEPS, small_config

from prmim_adapters.demo_data import make_tiles
from prmim_adapters.openmmlab import target_networks
from prmim_adapters.openmmlab.config_files import ConfigError
from prmim_adapters.openmmlab.models import build_model


@pytest.fixture(scope='module')
def tiles(tmp_path_factory):
    folder = tmp_path_factory.mktemp('photographs')
    make_tiles(folder, size=128, stride=192)
    return folder / 'train'


def losses(folder: Path) -> dict[int, float]:
    """Loss by iteration, of all runs in the folder."""
    lines = [
        json.loads(line)
        for path in sorted(folder.glob('work/*/vis_data/scalars.json'))
        for line in path.read_text().splitlines()
    ]
    return {line['step']: line['loss'] for line in lines if 'loss' in line}


def check_training(folder: Path, name: str, tiles: Path, train) -> None:
    """20 iterations whose loss falls, and a second start that goes on where the first ended."""
    path = folder / 'config.py'
    config = small_config(name, folder, tiles)
    config.dump(path)
    train(path)
    first = losses(folder)
    assert sorted(first) == list(range(1, 2 * STEPS + 1))
    start, end = (np.mean([first[step] for step in part]) for part in (range(1, 4), range(18, 21)))
    assert np.isfinite(list(first.values())).all()
    assert end < start - 0.03 * abs(start), first
    config.train_cfg.max_epochs = 3
    config.dump(path)
    train(path)
    resumed = losses(folder)
    assert sorted(resumed) == list(range(1, 3 * STEPS + 1))
    assert {step: resumed[step] for step in first} == first
    early, late = (
        torch.load(folder / 'work' / f'epoch_{epoch}.pth', weights_only=True)['state_dict']
        for epoch in (1, 3)
    )
    targets = [key for key in late if key.startswith('target_generator.')]
    assert bool(targets) == (name != 'itpn_prmim_pixel_hivitb')
    assert all(torch.equal(early[key], late[key]) for key in targets)
    learned = [key for key in late if 'partial.aggregators' in key]
    assert not any(torch.equal(early[key], late[key]) for key in learned if 'weight' in key)


@pytest.mark.slow
@pytest.mark.parametrize('name', SMALL)
def test_mim_train(name, tiles, tmp_path):
    def train(path):
        done = subprocess.run(
            [sys.executable, '-m', 'mim', 'train', 'mmpretrain', str(path)],
            cwd=tmp_path,
            env={**os.environ, 'PYTHONWARNINGS': 'ignore'},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    check_training(tmp_path, name, tiles, train)


def test_training_of_cae(tiles, tmp_path):
    check_training(
        tmp_path,
        'cae_prmim_vitb',
        tiles,
        lambda path: Runner.from_cfg(Config.fromfile(path)).train(),
    )


def test_counting_downloads_no_clip(monkeypatch):
    """Of the file's sizes, random; a file on the machine, or one that is not known, is loaded."""
    asked, small = [], dict(image_resolution=64, vision_layers=1, vision_width=64)
    small |= dict(vision_patch_size=8, embed_dim=16, context_length=4, vocab_size=8)
    small |= dict(transformer_width=64, transformer_heads=1, transformer_layers=1)
    monkeypatch.setattr(milan, '_load_checkpoint', asked.append)
    monkeypatch.setitem(target_networks._SIZES, 'clip_vit_base_16.pth.tar', small)
    settings = Config.fromfile(CONFIGS / 'milan_prmim_vitb.py').model.framework.target_generator
    clip = build_model(Config(dict(model=settings))).tokenizer
    assert clip.visual.conv1.weight.shape == (64, 3, 8, 8) and not asked
    for path in ('/data/clip_vit_base_16.pth.tar', 'https://example.org/other.pth'):
        settings.tokenizer_path = path
        with pytest.raises(ConfigError, match='NoneType'):  # nothing was loaded
            build_model(Config(dict(model=settings)))
        assert asked.pop() == path
    assert milan._load_checkpoint == asked.append


def test_the_sizes_are_those_of_clip_vit_b16():
    """OpenAI's: 149.6 M parameters, of which 86.2 M are of images."""
    with torch.device('meta'):
        clip = CLIP(**target_networks._SIZES['clip_vit_base_16.pth.tar'])
    assert sum(p.numel() for p in clip.parameters()) == 149_620_737
    assert sum(p.numel() for p in clip.visual.parameters()) == 86_192_640

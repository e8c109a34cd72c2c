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
from small_targets import SMALL, STEPS, small_config

from prmim_adapters.demo_data import make_tiles


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

# SPDX-License-Identifier: Apache-2.0
"""The demo as a user runs it: tiles, ``mim train``, resume, picture, export."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image
from safetensors.torch import load_file

from prmim_adapters.cli import main
from prmim_adapters.demo_data import make_tiles

DEMO = Path(__file__).parents[1] / 'configs' / 'mmpretrain' / '_demo_' / 'mae_prmim_demo.py'
SMALL = {
    'train_dataloader.batch_size': 16,
    'train_cfg.max_epochs': 2,
    'default_hooks.checkpoint.interval': 1,
    'default_hooks.logger.interval': 1,
    'model.framework.backbone.arch.num_layers': 1,
    'model.framework.neck.decoder_depth': 1,
}


@pytest.fixture(scope='module')
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiles and two epochs of ``mim train`` behind it."""
    folder = tmp_path_factory.mktemp('demo')
    make_tiles(folder / 'data' / 'demo', size=128, stride=192)
    options = [f'{key}={value}' for key, value in SMALL.items()]
    command = ['-m', 'mim', 'train', 'mmpretrain', str(DEMO), '--work-dir', 'work']
    done = subprocess.run(
        [sys.executable, *command, '--cfg-options', *options],
        cwd=folder,
        env={**os.environ, 'PYTHONWARNINGS': 'ignore'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def losses(work: Path) -> dict[int, float]:
    """Loss by iteration, of all runs in the folder."""
    lines = [
        json.loads(line)
        for path in sorted(work.glob('work/*/vis_data/scalars.json'))
        for line in path.read_text().splitlines()
    ]
    return {line['step']: line['loss'] for line in lines if 'loss' in line}


def test_mim_train_learns_and_resumes(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base config resumes by itself, so the second start continues at epoch 2."""
    first = losses(work)
    steps = len(first)
    assert steps % 2 == 0
    assert np.isfinite(list(first.values())).all()
    assert first[steps] < 0.9 * first[1]

    monkeypatch.chdir(work)
    config = Config.fromfile(DEMO)
    config.merge_from_dict({**SMALL, 'train_cfg.max_epochs': 3, 'work_dir': 'work'})
    runner = Runner.from_cfg(config)
    runner.train()
    assert runner.epoch == 3
    resumed = losses(work)
    assert sorted(resumed) == list(range(1, steps * 3 // 2 + 1))
    assert {step: resumed[step] for step in first} == first
    assert (work / 'work' / 'last_checkpoint').read_text().endswith('epoch_3.pth')


def test_show_and_export(work: Path) -> None:
    checkpoint = str(work / 'work' / 'epoch_2.pth')
    tile = str(next((work / 'data' / 'demo' / 'val').rglob('128_*.png')))
    picture, encoder = work / 'picture.png', work / 'encoder.safetensors'
    shown = CliRunner().invoke(main, ['show', str(DEMO), checkpoint, tile, '--out', str(picture)])
    # The trained decoder has one layer, the config four: said so, and nothing is drawn.
    assert shown.exit_code == 2
    assert 'is not a checkpoint of' in shown.output
    config = Config.fromfile(DEMO)
    config.merge_from_dict(SMALL)
    config.dump(work / 'small.py')
    shown = CliRunner().invoke(
        main, ['show', str(work / 'small.py'), checkpoint, tile, '--out', str(picture)]
    )
    assert shown.exit_code == 0, shown.output
    assert Image.open(picture).size == (5 * 198 + 6, 22 + 198 + 6 + 26)  # one line of legend

    exported = CliRunner().invoke(main, ['export', checkpoint, str(encoder)])
    assert exported.exit_code == 0, exported.output
    weights = load_file(encoder)
    trained = torch.load(checkpoint, weights_only=True)['state_dict']
    theirs, ours = 'blocks.0.attn.qkv.weight', 'backbone.layers.0.attn.qkv.weight'
    assert torch.equal(weights[theirs], trained[ours])

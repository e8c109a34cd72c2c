# SPDX-License-Identifier: Apache-2.0
"""ReconstructionHook in two processes, started by the command of docs/install.md."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from same_masks_runs import ENVIRONMENT, page

DEMO = Path(__file__).parents[2] / 'configs' / 'mmpretrain' / '_demo_' / 'mae_prmim_demo.py'
SMALL = f"""
_base_ = {str(DEMO)!r}
custom_imports = dict(imports=[
    'prmim_adapters.openmmlab', 'prmim_adapters.accounting.cost_hook',
    'prmim_adapters.visualization.reconstruction_hook', 'witness'])
model = dict(framework=dict(backbone=dict(arch=dict(num_layers=1)), neck=dict(decoder_depth=1)))
train_cfg = dict(max_epochs=2)
default_hooks = dict(checkpoint=dict(interval=1))
"""
WITNESS = """
import json
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS

@HOOKS.register_module()
class WitnessHook(Hook):
    '''Writes what ReconstructionHook did in each process.'''

    def after_train(self, runner):
        hooks = [h for h in runner.hooks if type(h).__name__ == 'ReconstructionHook']
        logged = sorted(k for k in runner.message_hub.log_scalars if k.startswith('train/loss_'))
        with open(f'rank{get_rank()}.json', 'w') as file:
            json.dump([[bool(h._batch) for h in hooks], logged], file)
"""


def trained(folder: Path, hook: str) -> dict[str, Any]:
    """The last checkpoint of two epochs in two processes."""
    folder.mkdir()
    (folder / 'data').symlink_to(folder.parent / 'data')
    (folder / 'witness.py').write_text(WITNESS)
    (folder / 'config.py').write_text(f"{SMALL}custom_hooks = [{hook}dict(type='WitnessHook')]\n")
    command = page('gloo').replace('configs/mmpretrain/_demo_/mae_prmim_demo.py', 'config.py')
    paths = os.pathsep.join([str(folder), ENVIRONMENT['PYTHONPATH']])
    done = subprocess.run(
        ['bash', '-ec', command],
        cwd=folder,
        env={**ENVIRONMENT, 'PYTHONPATH': paths},
        capture_output=True,
        text=True,
        timeout=600,  # a deadlock ends here
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return torch.load(folder / 'work_dirs' / 'config' / 'epoch_2.pth', weights_only=False)


@pytest.mark.slow
def test_the_main_process_alone_draws_and_training_is_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tiles = tmp_path / 'data' / 'demo' / 'train' / 'noise'
    tiles.mkdir(parents=True)
    for index in range(128):
        noise = rng.integers(0, 255, (96, 96, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tiles / f'{index}.png')
    with_it = trained(tmp_path / 'with', "dict(type='ReconstructionHook'), ")
    without = trained(tmp_path / 'without', '')
    ours, theirs = with_it['state_dict'], without['state_dict']
    assert with_it['meta']['iter'] == without['meta']['iter'] == 4  # 128 images, 2 x 32 a step
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    pictures = (tmp_path / 'with').rglob('vis_image/*.png')
    assert sorted(p.name for p in pictures) == [f'reconstruction_{step}.png' for step in (0, 2, 4)]
    assert not list((tmp_path / 'without').rglob('vis_image/*.png'))
    seen = [json.loads((tmp_path / 'with' / f'rank{rank}.json').read_text()) for rank in (0, 1)]
    assert seen == [[[True], ['train/loss_kept', 'train/loss_thrown']], [[False], []]]

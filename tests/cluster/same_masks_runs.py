# SPDX-License-Identifier: Apache-2.0
"""Commands of the documentation, on ``same_masks_config.py``, and what all runs must agree in."""

import os
import re
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
PAGES = '\n'.join(p.read_text() for p in sorted((HERE.parents[1] / 'docs').glob('*.md')))
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != 'MASTER_PORT'},
    'PYTHONPATH': os.pathsep.join([str(HERE), str(HERE.parents[1])]),
    'PATH': os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']]),
    'OMP_NUM_THREADS': '1',
}
EPOCHS = range(1, 6)


def page(name):
    """Commands of a page, by the name in the comment above them: ``<!-- run: NAME -->``."""
    blocks = re.findall(r'<!-- run: (\S+) -->\n```bash\n(.*?)```', PAGES, re.S)
    return dict(blocks)[name]


def shell(commands, **values):
    """What runs these commands, with the page's shell variables, or with other values of them."""
    exports = '\n'.join(f"export {key}='{value}'" for key, value in values.items())
    return ['bash', '-ec', f'{page("values")}\n{exports}\n{commands}']


def write_config(path, work_dir, processes, seconds=0):
    """The config for so many processes, its work directory, and how long an iteration lasts."""
    path.write_text(
        f'_base_ = {str(HERE / "same_masks_config.py")!r}\n'
        f'work_dir = {str(work_dir)!r}\n'
        f'train_dataloader = dict(batch_size={8 // processes})\n'
        f"custom_hooks = [dict(type='IterationHook', seconds={seconds})]\n"
    )
    return path


def weights(folder, epoch):
    return torch.load(folder / f'epoch_{epoch}.pth', weights_only=False)['state_dict']


def assert_same_weights(folder, other):
    """After each of five epochs of two iterations; and training has changed them."""
    for epoch in EPOCHS:
        ours, theirs = weights(folder, epoch), weights(other, epoch)
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-5, msg=name)
    start = weights(folder, EPOCHS[0])
    assert max((start[name] - ours[name]).abs().max() for name in ours) > 1e-2

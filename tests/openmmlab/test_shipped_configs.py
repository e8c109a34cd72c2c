# SPDX-License-Identifier: Apache-2.0
"""What holds for every config that ships, read back as the Runner would."""

from pathlib import Path

import pytest
from mmengine.config import Config

FOLDER = Path(__file__).parents[2] / 'configs' / 'mmpretrain'
CONFIGS = sorted(path for path in FOLDER.rglob('*.py') if path.parent.name != '_base_')


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_process_draws_masks_of_its_own(path):
    """Sweeps add it to theirs; the text of a sweep's config is part of the identity of its results."""
    assert Config.fromfile(path).randomness.diff_rank_seed is True


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_run_survives_a_kill(path):
    config = Config.fromfile(path)
    assert config.default_hooks.checkpoint.type == 'ResumableCheckpointHook'
    assert 'prmim_adapters.openmmlab' in config.custom_imports.imports
    hooks = [hook.type for hook in config.custom_hooks]
    assert {'CostHook', 'FiniteLossHook', 'EndWithLauncherHook'} <= set(hooks)
    assert len(hooks) == len(set(hooks))

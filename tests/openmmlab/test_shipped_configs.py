# SPDX-License-Identifier: Apache-2.0
"""What holds for every config that ships, read back as the Runner would."""

from pathlib import Path

import pytest
from mmengine.config import Config

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / 'configs' / 'mmpretrain').rglob('*.py'))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_process_draws_masks_of_its_own(path):
    """Sweeps add it to theirs; the text of a sweep's config is part of the identity of its results."""
    assert Config.fromfile(path).randomness.diff_rank_seed is True

# SPDX-License-Identifier: Apache-2.0
"""Demo tiles: real pixels, split by photograph."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import skimage.data as data
from PIL import Image

from prmim_adapters.demo_data import PHOTOGRAPHS, make_tiles


@pytest.fixture(scope='module')
def tiles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    root = tmp_path_factory.mktemp('tiles')
    return root, make_tiles(root, size=128, stride=128)


def test_counts_are_files(tiles: tuple[Path, dict[str, int]]) -> None:
    root, counts = tiles
    for split, count in counts.items():
        assert count == len(list((root / split).rglob('*.png'))) > 10


def test_tiles_are_pixels_of_the_photograph(tiles: tuple[Path, dict[str, int]]) -> None:
    root, _ = tiles
    tile = np.asarray(Image.open(root / 'train' / 'astronaut' / '512_128_256.png'))
    np.testing.assert_array_equal(tile, data.astronaut()[128:256, 256:384])


def test_splits_share_no_photograph(tiles: tuple[Path, dict[str, int]]) -> None:
    root, _ = tiles
    train, val = ({p.name for p in (root / split).iterdir()} for split in ('train', 'val'))
    assert train == set(PHOTOGRAPHS['train'])
    assert val == set(PHOTOGRAPHS['val'])
    assert not train & val


@pytest.mark.parametrize('name', [n for names in PHOTOGRAPHS.values() for n in names])
def test_scikit_image_states_a_free_licence(name: str) -> None:
    assert re.search(r'CC0|public\s+domain', getattr(data, name).__doc__, re.IGNORECASE)


def test_second_run_keeps_files(tiles: tuple[Path, dict[str, int]]) -> None:
    root, counts = tiles
    before = {p: p.stat().st_mtime_ns for p in root.rglob('*.png')}
    assert make_tiles(root, size=128, stride=128) == counts
    assert {p: p.stat().st_mtime_ns for p in root.rglob('*.png')} == before

# SPDX-License-Identifier: Apache-2.0
"""The README's picture shows a real partition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from prmim_adapters.visualization.data_flow import MASKED, THROW, draw, partition_of_seed


def test_picture_counts_what_it_shows(tmp_path: Path) -> None:
    partition = partition_of_seed()
    assert partition.visible.shape[1] == 64 - MASKED
    assert partition.thrown.shape[1] == THROW
    photograph = Image.fromarray(np.full((60, 80, 3), 128, dtype=np.uint8))
    figure = draw(photograph, partition)
    texts = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert {'16 kept', '32 thrown', '32 of 64: visible + kept', 'all 48 masked patches'} <= texts
    figure.savefig(tmp_path / 'flow.png')
    assert Image.open(tmp_path / 'flow.png').size == (1320, 335)

# SPDX-License-Identifier: Apache-2.0
"""Target networks of which only the sizes matter: counting and measuring need no weights.

mmpretrain's ``CLIPGenerator`` (EVA, MILAN, iTPN) downloads its file in the constructor; all other
networks load theirs in ``init_weights``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmpretrain.models.selfsup import milan
from mmpretrain.models.utils.clip_generator_helper import CLIP

_SIZES: dict[str, dict[str, int]] = {
    'clip_vit_base_16.pth.tar': dict(
        embed_dim=512,
        image_resolution=224,
        vision_layers=12,
        vision_width=768,
        vision_patch_size=16,
        context_length=77,
        vocab_size=49408,
        transformer_width=512,
        transformer_heads=8,
        transformer_layers=12,
    )
}
"""Of the files that mmpretrain's configs name, by the last part of their address."""


@contextmanager
def without_downloads() -> Iterator[None]:
    """Inside, a CLIP whose file is known and not on this machine gets random weights."""
    load = milan._load_checkpoint

    def weights(path: str, *args: Any, **kwargs: Any) -> Any:
        sizes = _SIZES.get(str(path).rpartition('/')[2]) if '://' in str(path) else None
        return load(path, *args, **kwargs) if sizes is None else CLIP(**sizes).state_dict()

    milan._load_checkpoint = weights
    try:
        yield
    finally:
        milan._load_checkpoint = load

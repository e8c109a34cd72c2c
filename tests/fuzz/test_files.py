# SPDX-License-Identifier: Apache-2.0
"""Damaged checkpoints, specs and images: what they hold, or one documented error with their name."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer
from PIL import Image

from prmim_adapters.export.encoder import encoder_settings
from prmim_adapters.export.settings import ENCODERS, checked_encoder, read_literal
from prmim_adapters.openmmlab.checkpoints import CheckpointError, read_checkpoint, weights_of
from prmim_adapters.openmmlab.images import LoadImageFromFile, UnreadableImageError
from prmim_adapters.sweep import SpecError, load_spec
from prmim_adapters.sweep.literals import assignments


def attempt(call: Callable[[], Any], error: type[Exception]) -> tuple[Any, str | None]:
    """Result and None, or None and the message of this error."""
    try:
        return call(), None
    except error as found:
        return None, str(found)


@st.composite
def damages(draw: Callable) -> Callable[[bytes], bytes]:
    """Bytes flipped, put in, left out, or cut off."""
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(['flip', 'put', 'leave', 'cut']), st.floats(0, 1), st.binary()
            ),
            min_size=1,
            max_size=8,
        )
    )

    def apply(content: bytes) -> bytes:
        for kind, where, data in steps:
            at = int(where * len(content))
            if kind == 'flip':
                flipped = bytes(b ^ (data[0] if data else 255) for b in content[at : at + 1])
                content = content[:at] + flipped + content[at + 1 :]
            elif kind == 'put':
                content = content[:at] + data + content[at:]
            elif kind == 'leave':
                content = content[:at] + content[at + max(len(data), 1) :]
            elif where > 0.5:
                content = content[:at]
        return content

    return apply


def checkpoint(legacy: bool) -> bytes:
    content = dict(
        state_dict={'backbone.a': torch.randn(2, 3), 'backbone.b': torch.arange(3)},
        meta=dict(cfg='model = dict()', epoch=1),
        message_hub=dict(loss=HistoryBuffer([1.0, 2.0], [1, 1]), at=np.float64(1), n=np.arange(4)),
        optimizer=dict(state={0: dict(step=torch.tensor(1.0))}, param_groups=[dict(lr=1e-3)]),
    )
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def test_checkpoints(fuzz: Callable[..., None], tmp_path: Path) -> None:
    whole, path = {kind: checkpoint(kind) for kind in (False, True)}, tmp_path / 'epoch.pth'

    def check(case: tuple[Callable[[bytes], bytes], bool]) -> None:
        path.write_bytes(case[0](whole[case[1]]))
        weights, refusal = attempt(lambda: weights_of(read_checkpoint(path), path), CheckpointError)
        if refusal is None:
            assert all(value.double().isfinite().all() for value in weights.values())
        else:
            assert str(path) in refusal
            assert '\n' not in refusal

    fuzz(check, st.tuples(damages(), st.booleans()), few=80, many=2000)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(['MAEViT', 'LN', 'os.system', 'mmpretrain.LN', 'deit-tiny', '..', 'a/b']),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=6)
            | st.sampled_from(['type', '_scope_', '_delete_', '_base_', 'arch']),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


def words(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [word for item in value.values() for word in words(item)]
    if isinstance(value, (list, tuple)):
        return [word for item in value for word in words(item)]
    return [value] if isinstance(value, str) else []


def test_settings_in_checkpoints(fuzz: Callable[..., None]) -> None:
    """What comes out names no module, and no scope."""
    kinds = st.sampled_from([*sorted(ENCODERS), 'os.system', 'TIMMBackbone'])
    parts = st.dictionaries(st.sampled_from(['arch', 'img_size', 'norm_cfg', 'x', 'a b']), VALUES)
    texts = st.one_of(
        st.builds(lambda kind, rest: repr(dict(rest, type=kind)), kinds, parts),
        VALUES.map(repr),
        st.text(max_size=40),
    )

    def check(text: str) -> None:
        config = f'model = dict(backbone={text})'
        settings, refusal = attempt(
            lambda: checked_encoder(encoder_settings(read_literal(config, 'model'))), ValueError
        )
        if refusal is not None:
            assert 'config' in refusal
            return
        assert settings['type'] in ENCODERS
        assert not any('.' in word or '/' in word for word in words(settings))
        assert '_scope_' not in repr(settings)

    fuzz(check, texts, few=80, many=1500)


SPEC = dict(
    frameworks=dict(mae=dict(config='mae.py', options=dict(a=1))),
    arms=dict(plain=dict(sampler='random', aggregator=None), near=dict(aggregator='nearest')),
    ratios=[0.25, 0.5],
    seeds=[0, 1],
    evaluation=dict(train=dict(x=1), test={}, num_classes=10),
    transfers=dict(tune=dict(config='tune.py')),
    verdict=dict(baseline='plain', margin=0.3),
    options=dict(train_cfg=dict(max_epochs=3)),
    resume=False,
)
PLACES = [
    (key, inner)
    for key, value in SPEC.items()
    for inner in (None, *(value if isinstance(value, dict) else ()))
]


@st.composite
def specs(draw: Callable) -> str | bytes:
    """A spec with junk in places, or its text damaged."""
    data: dict[Any, Any] = yaml.safe_load(yaml.safe_dump(SPEC))
    for key, inner in draw(st.lists(st.sampled_from(PLACES), max_size=3)):
        junk = draw(VALUES | st.dictionaries(VALUES.filter(_hashable), VALUES, max_size=2))
        if inner is None:
            data[key] = junk
        elif isinstance(data[key], dict):
            data[key][inner if draw(st.booleans()) else draw(VALUES.filter(_hashable))] = junk
    text = yaml.dump(data)
    return draw(damages())(text.encode()) if draw(st.booleans()) else text.encode()


def _hashable(value: Any) -> bool:
    return not isinstance(value, (list, dict))


def test_specs(fuzz: Callable[..., None], tmp_path: Path) -> None:
    """Points lie in the folder, each in one of its own, and their options are values."""
    path, out = tmp_path / 'spec.yaml', tmp_path / 'out'

    def check(content: bytes) -> None:
        path.write_bytes(content)
        spec, refusal = attempt(lambda: load_spec(path), SpecError)
        if refusal is not None:
            assert refusal
            return
        folders = [(out / point.name).resolve() for point in spec.points()]
        assert len({str(folder).casefold() for folder in folders}) == len(folders)
        assert all(folder.relative_to(out).parts for folder in folders)
        for arm in spec.arms.values():
            compile('\n'.join(assignments(arm, 'arm')), 'arm', 'exec')

    fuzz(check, specs(), few=60, many=1500)


def test_images(fuzz: Callable[..., None], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    streams = {kind: io.BytesIO() for kind in ('PNG', 'JPEG', 'WEBP', 'BMP', 'GIF', 'TIFF')}
    for kind, stream in streams.items():
        Image.fromarray(pixels).save(stream, kind)
    path, load = tmp_path / 'image', LoadImageFromFile()

    def check(case: tuple[Callable[[bytes], bytes], str]) -> None:
        path.write_bytes(case[0](streams[case[1]].getvalue()))
        loaded, refusal = attempt(lambda: load(dict(img_path=str(path))), UnreadableImageError)
        if refusal is None:
            assert loaded['img'].dtype == np.uint8
            assert loaded['img'].shape[2:] == (3,)
        else:
            assert refusal.startswith(f'{path} cannot be read as an image')

    fuzz(check, st.tuples(damages(), st.sampled_from(sorted(streams))), few=60, many=1000)

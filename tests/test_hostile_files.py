# SPDX-License-Identifier: Apache-2.0
"""Files that somebody hands over: none of them runs, none ends the interpreter, each is refused.

Every checkpoint goes through export, show, ``load_from`` and resume. What their code would do is make
a folder; what is too large would take minutes and gigabytes. Specs: sweep/test_hostile_specs.py.
"""

from __future__ import annotations

import functools
import importlib
import operator
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner
from mmpretrain.utils import register_all_modules
from refusals import refused

from prmim_adapters.commands.export import export
from prmim_adapters.commands.show import show
from prmim_adapters.openmmlab.checkpoints import CheckpointError

pytestmark = pytest.mark.usefixtures('little_memory')

VIT = 'arch=dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=32), img_size=32'
CONFIG = f"""
default_scope = 'mmpretrain'
model = dict(
    type='PRMIM', throw_ratio=0.25,
    framework=dict(
        type='MAE',
        backbone=dict(type='MAEViT', {VIT}, patch_size=8),
        neck=dict(
            type='MAEPretrainDecoder', num_patches=16, patch_size=8, embed_dim=16,
            decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2),
        head=dict(
            type='MAEPretrainHead', patch_size=8,
            loss=dict(type='PixelReconstructionLoss', criterion='L2'))))
"""


class Pickled:
    """Pickles as ``function(*arguments)``, with a state if there is one."""

    def __init__(self, function: Callable, *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple:
        return self.parts


def called(function: Callable, *arguments: Any, state: Any = None) -> Callable[..., None]:
    """A checkpoint that asks for a call; ``MARK`` among the arguments is the folder to make."""

    def write(path: Path, mark: str) -> None:
        given = [a.replace('MARK', mark) if isinstance(a, str) else a for a in arguments]
        torch.save(dict(good(), message_hub=Pickled(function, *given, state=state)), path)

    return write


def good(**changes: Any) -> dict[str, Any]:
    weights = {'backbone.cls_token': torch.zeros(1, 1, 16)}
    meta = dict(epoch=1, iter=1, cfg=f"model = dict(backbone=dict(type='MAEViT', {VIT}))")
    return dict(state_dict=weights, meta=meta, message_hub={}, **changes)


def configured(text: str) -> Callable[..., None]:
    """A checkpoint whose config text is this."""

    def write(path: Path, mark: str) -> None:
        content = good()
        content['meta']['cfg'] = text.replace('MARK', mark)
        torch.save(content, path)

    return write


def weighted(weights: Any) -> Callable[..., None]:
    return lambda path, mark: torch.save(dict(good(), state_dict=weights), path)


def raw(content: bytes) -> Callable[..., None]:
    return lambda path, mark: path.write_bytes(content)


def cut(share: float) -> Callable[..., None]:
    def write(path: Path, mark: str) -> None:
        torch.save(good(), path)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return write


def rezipped(change: Callable[[str, bytes], bytes], kind: int = zipfile.ZIP_STORED) -> Callable:
    """A checkpoint whose entries are changed."""

    def write(path: Path, mark: str) -> None:
        torch.save(good(), path)
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
        with zipfile.ZipFile(path, 'w', kind) as archive:
            for name, data in entries.items():
                archive.writestr(name, change(name, data))

    return write


def bomb(name: str, data: bytes) -> bytes:
    return bytes(2**25) if name.endswith('/data/0') else data


def no_storage(name: str, data: bytes) -> bytes:
    return b'' if name.endswith('/data/0') else data


def legacy(path: Path, mark: str) -> None:
    content = dict(good(), message_hub=Pickled(os.mkdir, mark))
    torch.save(content, path, _use_new_zipfile_serialization=False)


def nested(path: Path, mark: str) -> None:
    """Lists in lists, 20,000 deep, that the unpickler makes without recursion."""
    path.write_bytes(b'\x80\x02' + b']' * 20_000 + b'a' * 19_999 + b'.')


def resumed(path: Path, mark: str) -> None:
    content = good()
    content['meta']['config'] = f'import os\nos.mkdir({mark!r})\n'
    torch.save(content, path)


def doubled(times: int) -> list:
    """A list whose text has 2**times parts, in a file of a few hundred bytes."""
    found: list = []
    for _ in range(times):
        found = [found, found]
    return found


F8, NEW = ('f8', False, True), np.empty(0).__reduce__()[0]
ONES = torch.ones(1)
CHECKPOINTS: dict[str, Callable[..., None]] = {
    # code
    'system': called(os.system, 'mkdir MARK'),
    'mkdir': called(os.mkdir, 'MARK'),
    'popen': called(subprocess.Popen, 'mkdir MARK', -1, None, None, None, None, None, True, True),
    'eval': called(eval, '__import__("os").mkdir("MARK")'),
    'exec': called(exec, 'import os; os.mkdir("MARK")'),
    'getattr chain': called(getattr, HistoryBuffer, '__init__'),
    'attrgetter': called(operator.attrgetter, '__init__.__globals__'),
    'partial': called(functools.partial, os.mkdir, 'MARK'),
    'import': called(importlib.import_module, 'antigravity'),
    'load again': called(torch.load, 'MARK'),
    'hub': called(torch.hub.load, 'MARK', 'model', 'local'),
    'numpy load': called(np.load, 'MARK'),
    'pickle': called(pickle.loads, b'cos\nmkdir\n(S"x"\ntR.'),
    'legacy': legacy,
    'module': called(torch.nn.Identity),
    # states that make numpy read or reserve what is not there
    'dtype fields': called(
        np.dtype, *F8, state=(3, '<', None, ('a',), {'a': (np.dtype('f8'), 2**30)}, -1, -1, 0)
    ),
    'dtype flags': called(np.dtype, *F8, state=(3, '<', None, None, None, -1, -1, 63)),
    'dtype size': called(np.dtype, *F8, state=(3, '<', None, None, None, 2**30, 1, 0)),
    'array shape': called(
        NEW, np.ndarray, (0,), b'b', state=(1, (2**40,), np.dtype('f8'), False, b'12345678')
    ),
    'array of objects': called(
        NEW, np.ndarray, (0,), b'b', state=(1, (1,), np.dtype('O'), False, [1])
    ),
    'array memory': called(np.ndarray, (2**38,)),
    'bytes': called(bytes, 2**40),
    'bytearray': called(bytearray, 2**34),
    'bytearray, legacy': lambda path, mark: torch.save(
        dict(good(), x=Pickled(bytearray, 2**34)), path, _use_new_zipfile_serialization=False
    ),
    'text that doubles': called(np.dtype, doubled(40)),
    'array class that doubles': called(NEW, doubled(40), (0,), b'b'),
    # sizes
    'zip bomb': rezipped(bomb, zipfile.ZIP_DEFLATED),
    'storage missing': rezipped(no_storage),
    'huge header': raw(b'\x80\x02X\xff\xff\xff\xff' + b'a' * 100),
    'huge memo': raw(b'\x80\x02Nr\xff\xff\xff\x7f.'),
    'nested': nested,
    'expanded': weighted({'backbone.cls_token': ONES.expand(2**20, 2**20)}),
    # damage
    'empty': raw(b''),
    'text': raw(b'epoch_1.pth'),
    'picture': raw(b'\x89PNG\r\n\x1a\n' + bytes(200)),
    'zip of nothing': raw(b'PK\x05\x06' + bytes(18)),
    'cut in the middle': cut(0.5),
    'cut at the end': cut(0.95),
    # weights that are none
    'nan': weighted({'backbone.cls_token': torch.full((1, 1, 16), torch.nan)}),
    'no tensors': weighted({'backbone.cls_token': [1, 2]}),
    'no names': weighted({3: ONES}),
    'no weights': weighted([]),
    'sparse': weighted({'backbone.cls_token': ONES.to_sparse()}),
}
CONFIGS: dict[str, str] = {
    'dotted type': 'model = dict(backbone=dict(type="subprocess.getoutput", cmd="mkdir MARK"))',
    'dotted layer': f'model = dict(backbone=dict(type="MAEViT", {VIT}, norm_cfg=dict('
    'type="os.mkdir", path="MARK")))',
    'scope': f'model = dict(backbone=dict(type="MAEViT", {VIT}, norm_cfg=dict('
    'type="LN", _scope_="planted")), x=1)',
    'call': 'model = dict(backbone=dict(type=__import__("os").mkdir("MARK")))',
    'comprehension': 'model = dict(backbone=[__import__("os").mkdir("MARK") for _ in [1]])',
    'another model': 'model = dict(backbone=dict(type="TIMMBackbone", model_name="x"))',
    'base': '_base_ = "/etc/passwd"\nmodel = dict(backbone=dict(_base_="/etc/passwd"))',
    'huge': f'model = dict(backbone=dict(type="MAEViT", {VIT}, patch_size=10**9))',
    'deep': 'model = ' + '(' * 150 + ')' * 150,
    'operators': 'model = ' + '-' * 100_000 + '1',
    'attributes': 'x' + '.a' * 50_000 + ' = 1\nmodel = dict()',
    'long': 'model = dict()' + ' ' * 2**21,
    'no text': '',
}


@pytest.fixture(scope='module')
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    register_all_modules()
    path = tmp_path_factory.mktemp('config') / 'config.py'
    path.write_text(
        "custom_imports = dict(imports=['prmim_adapters.openmmlab'])\n"
        f"{CONFIG}train_dataloader = dict(dataset=dict(type='CustomDataset', pipeline=[]))\n"
    )
    return path


@pytest.fixture(scope='module')
def runner(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    settings = Config.fromfile(config)
    return Runner(
        model=settings.model,
        work_dir=str(tmp_path_factory.mktemp('work')),
        default_scope='mmpretrain',
        log_level='ERROR',
        train_dataloader=dict(batch_size=1, dataset=[0], sampler=dict(type='DefaultSampler')),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
    )


@pytest.mark.parametrize('name', CHECKPOINTS)
def test_checkpoints(name: str, tmp_path: Path, config: Path, runner: Runner) -> None:
    mark, path = tmp_path / 'made', tmp_path / 'foreign.pth'
    CHECKPOINTS[name](path, str(mark))
    picture = tmp_path / 'a.png'
    picture.touch()
    for ending in ('.safetensors', '.pth'):
        out = tmp_path / f'out{ending}'
        assert str(path) in refused(export, path, out)
        assert not out.exists()
    assert str(path) in refused(show, config, path, picture, '--out', tmp_path / 'b.png')
    if name not in ('nan', 'no tensors', 'no names', 'no weights', 'sparse', 'expanded'):
        for load in (runner.load_checkpoint, runner.resume):
            with pytest.raises(CheckpointError) as refusal:
                load(str(path))
            assert str(path) in str(refusal.value)
            assert '\n' not in str(refusal.value)
    assert not mark.exists()


@pytest.mark.parametrize('name', CONFIGS)
def test_configs_in_checkpoints(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    mark, path = tmp_path / 'made', tmp_path / 'foreign.pth'
    planted = tmp_path / 'planted'
    planted.mkdir()
    (planted / '__init__.py').write_text(f'import os; os.mkdir({str(mark)!r})')
    monkeypatch.syspath_prepend(tmp_path)
    configured(CONFIGS[name])(path, str(mark))
    assert str(path) in refused(export, path, tmp_path / 'out.safetensors')
    assert not mark.exists()
    assert 'planted' not in sys.modules


def test_a_program_in_the_file_is_not_run_on_resume(tmp_path: Path, runner: Runner) -> None:
    mark, path = tmp_path / 'made', tmp_path / 'foreign.pth'
    resumed(path, str(mark))
    with pytest.raises((KeyError, RuntimeError, AssertionError)):  # it has no message hub
        runner.resume(str(path))
    assert not mark.exists()


def test_there_are_enough() -> None:
    assert len(CHECKPOINTS) + len(CONFIGS) == 56
    assert struct.calcsize('P') == 8  # the sizes above are those of 64 bits

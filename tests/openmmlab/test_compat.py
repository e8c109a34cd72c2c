# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of mmengine under ``weights_only``: own ones load, foreign code is refused."""

from __future__ import annotations

import functools
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, Runner
from mmpretrain.structures import DataSample
from mmpretrain.utils import register_all_modules

from prmim_adapters.openmmlab import compat

needs_weights_only = pytest.mark.skipif(
    torch.__version__ < '2.6', reason='weights_only is not the default before torch 2.6'
)


@pytest.fixture
def bare_torch() -> Iterator[None]:
    """Nothing on torch's allow-list during the test."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


class Images(torch.utils.data.Dataset):
    """Eight fixed noise images."""

    metainfo = {'classes': ('noise',)}

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        image = torch.rand(3, 32, 32, generator=generator) * 255
        return {'inputs': image, 'data_samples': DataSample()}


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Runner]:
    """Train a tiny mmpretrain MAE through mmengine's Runner in ``tmp_path``."""
    register_all_modules()

    def run(name: str, iterations: int, resume_from: str | None = None) -> Runner:
        runner = Runner(
            model=small_models.mae(
                width=32,
                type='mmpretrain.MAE',
                data_preprocessor=dict(type='SelfSupDataPreprocessor', mean=[128], std=[64]),
            ),
            work_dir=str(tmp_path / name),
            train_dataloader=dict(
                batch_size=4,
                num_workers=0,
                dataset=Images(),
                collate_fn=dict(type='default_collate'),
                sampler=dict(type='DefaultSampler', shuffle=False),
            ),
            train_cfg=dict(by_epoch=False, max_iters=iterations),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-2)),
            param_scheduler=dict(type='CosineAnnealingLR', by_epoch=False, T_max=4),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=1),
                checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2),
            ),
            randomness=dict(seed=0),
            default_scope='mmpretrain',
            experiment_name=f'{tmp_path.name}-{name}-{iterations}',
            load_from=resume_from,
            resume=resume_from is not None,
        )
        runner.train()
        return runner

    return run


@needs_weights_only
def test_upstream_cannot_read_its_own_checkpoint(
    bare_torch: None, train: Callable[..., Runner], tmp_path: Path
) -> None:
    """The day this fails, the allow-list can go."""
    train('stock', 2)
    with pytest.raises(pickle.UnpicklingError, match='Weights only load failed'):
        torch.load(tmp_path / 'stock' / 'iter_2.pth', 'cpu')


def test_resume_continues_the_same_training(
    bare_torch: None, train: Callable[..., Runner], tmp_path: Path
) -> None:
    """Iteration, schedule, optimizer state and log history come back; the weights follow."""
    compat.allow_own_checkpoints()
    whole = train('whole', 4)
    saved = torch.load(tmp_path / 'whole' / 'iter_2.pth')
    resumed = train('resumed', 2, resume_from=str(tmp_path / 'whole' / 'iter_2.pth'))
    assert resumed.iter == 2
    for name, value in resumed.model.state_dict().items():
        torch.testing.assert_close(value, saved['state_dict'][name], rtol=0, atol=0)
    old, new = (r.message_hub.log_scalars['train/loss'].data[0] for r in (whole, resumed))
    np.testing.assert_array_equal(new, old[:2])
    continued = train('continued', 4, resume_from=str(tmp_path / 'whole' / 'iter_2.pth'))
    assert continued.iter == 4
    lrs = [r.message_hub.log_scalars['train/lr'].data[0] for r in (whole, continued)]
    np.testing.assert_allclose(lrs[1], lrs[0])
    step = next(iter(continued.optim_wrapper.optimizer.state.values()))['step']
    assert int(step) == 4


@pytest.mark.parametrize(
    'value',
    [
        HistoryBuffer([1.0, 2.0], [1, 1]),
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.array([True, False]),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.arange(3, dtype='>i4'),
        np.zeros((0, 3)),
        np.array(2 + 1j),
        np.float32(1.5),
        np.int64(7),
    ],
    ids=lambda value: f'{type(value).__name__}',
)
def test_what_a_run_may_hold_comes_back(bare_torch: None, tmp_path: Path, value: Any) -> None:
    compat.allow_own_checkpoints()
    torch.save({'value': value}, tmp_path / 'x.pth')
    loaded = torch.load(tmp_path / 'x.pth', weights_only=True)['value']
    assert isinstance(loaded, type(value))
    if isinstance(value, HistoryBuffer):
        assert loaded.mean() == 1.5 and loaded.statistics('max') == 2.0
        return
    np.testing.assert_array_equal(loaded, value)
    assert loaded.dtype == pickle.loads(pickle.dumps(value)).dtype  # numpy turns to native order
    again = pickle.loads(pickle.dumps(loaded))  # the next checkpoint needs nothing of this package
    assert type(again) is type(value)
    np.testing.assert_array_equal(again, value)


def test_random_states_come_back(bare_torch: None, tmp_path: Path) -> None:
    compat.allow_own_checkpoints()
    torch.save(np.random.get_state(), tmp_path / 'state.pth')
    expected = np.random.rand(3)
    np.random.set_state(torch.load(tmp_path / 'state.pth'))
    np.testing.assert_array_equal(np.random.rand(3), expected)


class Call:
    """Pickles as a call of ``function(*args)``."""

    def __init__(self, function: Callable, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Callable, tuple]:
        return self.function, self.args


@needs_weights_only
@pytest.mark.parametrize(
    'payload',
    [
        Call(os.system, 'exit 1'),
        Call(eval, '1 + 1'),
        Call(getattr, np.ndarray, 'tofile'),
        Call(getattr, HistoryBuffer, '__init__'),
        Call(getattr, HistoryBuffer, 'register_statistics'),
        Call(getattr, torch.Tensor, '__class__'),
        Call(np.load, 'somewhere.npy'),
    ],
    ids=['system', 'eval', 'ndarray.tofile', '__init__', 'register', '__class__', 'np.load'],
)
def test_foreign_code_is_still_refused(bare_torch: None, tmp_path: Path, payload: Call) -> None:
    compat.allow_own_checkpoints()
    torch.save({'state_dict': {}, 'message_hub': payload}, tmp_path / 'evil.pth')
    with pytest.raises((pickle.UnpicklingError, ValueError)):
        torch.load(tmp_path / 'evil.pth', weights_only=True)


@needs_weights_only
def test_a_method_of_history_buffer_cannot_be_called(bare_torch: None, tmp_path: Path) -> None:
    """What the stand-in returns is data in the file, not something that it may execute."""
    compat.allow_own_checkpoints()

    class Chain:
        def __reduce__(self) -> tuple[Callable, tuple]:
            return HistoryBuffer.mean, (HistoryBuffer([1.0], [1]),)

    torch.save(Chain(), tmp_path / 'chain.pth')
    with pytest.raises(pickle.UnpicklingError, match='reduce for unrecognized function'):
        torch.load(tmp_path / 'chain.pth', weights_only=True)


class Stated:
    """Pickles as ``function(*args)`` with a state set."""

    def __init__(self, function: Callable, args: tuple, state: Any) -> None:
        self.function, self.args, self.state = function, args, state

    def __reduce__(self) -> tuple:
        return self.function, self.args, self.state


F8, F8_ARGS = np.dtype('f8'), ('f8', False, True)
NEW_ARRAY, NEW_NUMBER = np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]
BEYOND = {'a': (F8, 2**20)}


@pytest.mark.parametrize(
    'payload',
    {
        'fields beyond the item': Stated(
            np.dtype, F8_ARGS, (3, '<', None, ('a',), BEYOND, -1, -1, 0)
        ),
        'a subarray': Stated(np.dtype, F8_ARGS, (3, '<', (F8, (2**20,)), None, None, -1, -1, 0)),
        'an item size': Stated(np.dtype, F8_ARGS, (3, '<', None, None, None, 2**20, -1, 0)),
        'flags of objects': Stated(np.dtype, F8_ARGS, (3, '<', None, None, None, -1, -1, 63)),
        'metadata': Stated(np.dtype, F8_ARGS, (4, '<', None, None, None, -1, -1, 0, {'a': 1})),
        'no state': Stated(np.dtype, F8_ARGS, (3,)),
        'objects': Call(np.dtype, 'O'),
        'text': Call(np.dtype, 'U8'),
        'void': Call(np.dtype, 'V1048576'),
        'structure': Call(np.dtype, [('a', 'f8')]),
        'comma string': Call(np.dtype, 'f8,f8'),
        'shape beyond the bytes': Stated(
            NEW_ARRAY, (np.ndarray, (0,), b'b'), (1, (2**20,), F8, False, b'12345678')
        ),
        'negative shape': Stated(
            NEW_ARRAY, (np.ndarray, (0,), b'b'), (1, (-1, -1), F8, False, b'12345678')
        ),
        'array of objects': Stated(
            NEW_ARRAY, (np.ndarray, (0,), b'b'), (1, (1,), np.dtype('O'), False, [1])
        ),
        'array of another class': Call(NEW_ARRAY, HistoryBuffer, (0,), b'b'),
        'array by itself': Call(np.ndarray, (2**40,)),
        'number beyond the bytes': Call(NEW_NUMBER, F8, b'1234'),
        'number of objects': Call(NEW_NUMBER, np.dtype('O'), 1),
        'many bytes': Call(bytes, 2**40),
    }.items(),
    ids=lambda item: item[0],
)
def test_numpy_is_handed_plain_numbers_only(
    bare_torch: None, tmp_path: Path, payload: tuple[str, Any]
) -> None:
    """Each of these makes numpy read or reserve memory that the file does not hold."""
    compat.allow_own_checkpoints()
    torch.save({'message_hub': payload[1]}, tmp_path / 'evil.pth')
    with pytest.raises((pickle.UnpicklingError, TypeError)):
        torch.load(tmp_path / 'evil.pth')


def test_a_url_is_data_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mmengine loads URLs without weights_only; after ``compat.apply`` it does not."""
    compat.apply()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    (tmp_path / 'served').mkdir()
    marker = tmp_path / 'ran'
    torch.save({'state_dict': {}}, tmp_path / 'served/good.pth')
    torch.save({'a': Call(os.mkdir, str(marker))}, tmp_path / 'served/evil.pth')
    with serve(tmp_path / 'served') as address:
        assert CheckpointLoader.load_checkpoint(f'{address}/good.pth') == {'state_dict': {}}
        with pytest.raises(pickle.UnpicklingError, match='Weights only'):
            CheckpointLoader.load_checkpoint(f'{address}/evil.pth')
    assert not marker.exists()


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The address of a web server for a folder."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def test_resume_does_not_execute_a_config_in_the_file(
    train: Callable[..., Runner], tmp_path: Path
) -> None:
    """``Runner.resume`` hands ``meta.config`` to ``Config.fromstring``, which executes it."""
    compat.apply()
    train('honest', 2)
    marker = tmp_path / 'ran'
    content = torch.load(tmp_path / 'honest/iter_2.pth')
    content['meta']['config'] = f'import os\nos.mkdir({str(marker)!r})\n'
    torch.save(content, tmp_path / 'evil.pth')
    assert train('resumed', 2, resume_from=str(tmp_path / 'evil.pth')).iter == 2
    assert not marker.exists()

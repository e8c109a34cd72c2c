# SPDX-License-Identifier: Apache-2.0
"""Runs that are interrupted and resumed, against the same ones left alone."""

import random
from pathlib import Path

import numpy as np
import pytest
import survivor
import torch
from mmengine.runner import ValLoop
from mmpretrain.registry import LOOPS

from prmim_adapters.openmmlab.data_order import EndlessBatches
from prmim_adapters.openmmlab.resumable_checkpoint import ResumableCheckpointHook
from prmim_adapters.openmmlab.whole_files import damage


def interrupted(kind, folder, iteration, **options):
    with pytest.raises(survivor.InterruptedRunError):
        survivor.build(kind, folder, hooks=[survivor.InterruptHook(iteration)], **options).train()
    torch.rand(7)  # the next process would not have this state either
    np.random.rand(7)
    random.random()


def trained(kind, folder, begins=0, **options):
    """Weights at the end of a run that begins at iteration ``begins``."""
    hook = survivor.InterruptHook()
    runner = survivor.build(kind, folder, hooks=[hook], **options)
    runner.train()
    assert hook.first == begins
    return {name: value.clone() for name, value in runner.model.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, f'{len(different)} of {len(first)} tensors differ'


@pytest.mark.parametrize(
    ('kind', 'begins'),
    [('mae-by-epoch', 15), ('mae-by-iteration', 15), ('mae-mid-epoch', 15), ('ibot', 16)],
)
def test_resumed_equals_uninterrupted(kind, begins, tmp_path):
    expected = trained(kind, tmp_path / 'whole')
    interrupted(kind, tmp_path / 'cut', 7)
    interrupted(kind, tmp_path / 'cut', 17)
    assert_same(trained(kind, tmp_path / 'cut', begins), expected)


@pytest.mark.parametrize(
    ('kind', 'infinite'), [('mae-mid-epoch', False), ('mae-by-iteration', True)]
)
def test_workers_do_not_change_that(kind, infinite, tmp_path):
    options = dict(num_workers=2, infinite=infinite)
    expected = trained(kind, tmp_path / 'whole', **options)
    interrupted(kind, tmp_path / 'cut', 11, **options)
    assert_same(trained(kind, tmp_path / 'cut', 9, **options), expected)


def test_the_seed_that_nobody_set_is_resumed_too(tmp_path):
    numbers = iter((5, 6))
    with pytest.MonkeyPatch.context() as patch:  # what mmengine draws for want of a seed
        patch.setattr('mmengine.runner.utils.sync_random_seed', lambda: next(numbers))
        interrupted('mae-mid-epoch', tmp_path / 'cut', 11, seed=None)
        resumed = trained('mae-mid-epoch', tmp_path / 'cut', 9, seed=None)
    assert_same(resumed, trained('mae-mid-epoch', tmp_path / 'whole', seed=5))


def write_torn(folder, name, share=0.5):
    """The newest checkpoint again, under another name and cut off."""
    whole = max(folder.glob('*.pth'), key=lambda path: path.stat().st_mtime_ns).read_bytes()
    (folder / name).write_bytes(whole[: int(share * len(whole))])


def test_every_changed_bit_is_damage_or_harmless(tmp_path):
    path = tmp_path / 'epoch_1.pth'
    torch.save(dict(state_dict={'weight': torch.zeros(8)}, meta=dict(epoch=1)), path)
    whole = path.read_bytes()
    assert damage(path) is None
    draw, found = random.Random(0), 0
    for place in draw.sample(range(8 * len(whole)), 600):
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        reason = damage(path)  # whatever it is, it raises nothing
        found += reason is not None
        if reason is None:
            assert torch.equal(torch.load(path)['state_dict']['weight'], torch.zeros(8))
    assert found > 200


def test_what_a_checkpoint_asks_for_is_no_damage(tmp_path):
    """Its loading is refused by what it asks for, and nobody removes it as a torn one."""
    path = tmp_path / 'epoch_1.pth'
    torch.save(dict(mine=survivor.InterruptHook()), path)
    assert damage(path) is None


def test_a_damaged_checkpoint_is_skipped_by_name(tmp_path):
    interrupted('mae-mid-epoch', tmp_path, 11, checkpoint=dict(max_keep_ckpts=3))
    write_torn(tmp_path, 'iter_12.pth')
    changed = bytearray((tmp_path / 'iter_9.pth').read_bytes())
    changed[len(changed) // 2] ^= 1
    (tmp_path / 'iter_13.pth').write_bytes(changed)
    (tmp_path / 'iter_14.pth').touch()
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_12.pth'))
    trained('mae-mid-epoch', tmp_path, 9)
    log = ' '.join(''.join(path.read_text() for path in tmp_path.rglob('*.log')).split())
    for number, reason in ((12, 'File is not'), (13, 'differs from its checksum'), (14, 'File is')):
        assert f'iter_{number}.pth is not resumed from, as it is damaged' in log
        assert reason in log


def test_without_any_whole_checkpoint_nothing_is_trained_over_them(tmp_path):
    interrupted('mae-mid-epoch', tmp_path, 4)
    write_torn(tmp_path, 'iter_3.pth')
    with pytest.raises(
        ValueError, match=r'every checkpoint in .* is damaged: iter_3\.pth \(.*Remove'
    ):
        trained('mae-mid-epoch', tmp_path)


def test_an_unknown_option_is_refused_before_training():
    with pytest.raises(TypeError, match=r"no option 'every'\. Its options are interval, by_epoch"):
        ResumableCheckpointHook(every=1)


def test_the_old_checkpoint_is_there_until_the_new_one_is(tmp_path, monkeypatch):
    class KillError(Exception):
        pass

    interrupted('mae-mid-epoch', tmp_path, 4)
    replace = Path.replace

    def die(path, target):
        if str(target).endswith('.pth'):
            raise KillError
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, 'replace', die)  # as late as a write can be interrupted
        with pytest.raises(KillError):
            trained('mae-mid-epoch', tmp_path, 3)
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['iter_3.pth']
    resumed = trained('mae-mid-epoch', tmp_path, 3)
    assert sorted(path.name for path in tmp_path.glob('*.pth*')) == ['iter_20.pth']
    assert_same(resumed, torch.load(tmp_path / 'iter_20.pth')['state_dict'])


def test_the_number_of_processes_has_changed(tmp_path):
    interrupted('mae-by-iteration', tmp_path, 4)
    path = tmp_path / 'iter_3.pth'
    checkpoint = torch.load(path)
    checkpoint['meta']['prmim_resume']['ranks'] *= 2
    torch.save(checkpoint, path)
    trained('mae-by-iteration', tmp_path, 3)
    log = ' '.join(''.join(path.read_text() for path in tmp_path.rglob('*.log')).split())
    assert 'the random states of 2 process(es), and this run 1; they draw anew' in log


def validated_by(loop):
    return dict(
        val_dataloader=dict(
            dataset=survivor.Drawn(0), batch_size=5, sampler=dict(type='DefaultSampler')
        ),
        val_cfg=dict(type=loop),
        val_evaluator=dict(type='Accuracy'),
    )


@LOOPS.register_module()
class DrawingValLoop(ValLoop):
    """A validation that uses up random numbers."""

    def run(self):
        self.runner.call_hook('before_val')
        torch.rand(3), np.random.rand(3), random.random()
        self.runner.call_hook('after_val')


def test_a_validation_after_the_checkpoint_does_not_change_that(tmp_path):
    validation = validated_by('DrawingValLoop')
    expected = trained('mae-by-epoch', tmp_path / 'whole', **validation)
    interrupted('mae-by-epoch', tmp_path / 'cut', 11, **validation)
    assert_same(trained('mae-by-epoch', tmp_path / 'cut', 10, **validation), expected)


@LOOPS.register_module()
class NotedValLoop(ValLoop):
    """Notes where it runs, and is interrupted at one place."""

    places: list[int] = []
    ends_at = None

    def run(self):
        loop = self.runner.train_loop
        place = loop.iter if loop.max_epochs == 1 else loop.epoch
        if place == self.ends_at:
            raise survivor.InterruptedRunError
        self.places.append(place)


@pytest.mark.parametrize(
    ('kind', 'interval', 'ends_at', 'expected'),
    [
        ('mae-by-epoch', 1, 2, [2, 3, 4]),
        ('mae-by-epoch', 3, 4, [4]),
        ('mae-by-epoch', 3, 3, [3, 4]),
        ('mae-by-iteration', 6, 12, [12, 18, 20]),
        ('mae-by-iteration', 30, 20, [20]),
    ],
)
def test_a_validation_that_was_interrupted_is_done(
    kind, interval, ends_at, expected, tmp_path, monkeypatch
):
    loop = dict(survivor.KINDS[kind][1], val_interval=interval)
    validation = dict(validated_by('NotedValLoop'), train_cfg=loop)
    monkeypatch.setattr(NotedValLoop, 'ends_at', ends_at)
    with pytest.raises(survivor.InterruptedRunError):
        survivor.build(kind, tmp_path, **validation).train()
    monkeypatch.setattr(NotedValLoop, 'ends_at', None)
    monkeypatch.setattr(NotedValLoop, 'places', [])
    survivor.build(kind, tmp_path, **validation).train()
    assert NotedValLoop.places == expected


def test_no_validation_in_the_middle_of_an_epoch(tmp_path, monkeypatch):
    validation = validated_by('NotedValLoop')
    interrupted('mae-mid-epoch', tmp_path, 7, **validation)  # iteration 6 is the newest saved
    monkeypatch.setattr(NotedValLoop, 'places', [])
    trained('mae-mid-epoch', tmp_path, 6, **validation)
    assert NotedValLoop.places == [2, 3, 4]


def test_the_loop_of_the_fork_drops_batches_by_a_call():
    batches = EndlessBatches(iter(range(5)))
    batches.skip_iter(2)
    assert list(batches) == [2, 3, 4]

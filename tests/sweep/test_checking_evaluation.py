# SPDX-License-Identifier: Apache-2.0
"""What would fail after a point has been trained is refused before the first point begins."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import yaml
from mmengine.config import Config
from mmpretrain.utils import register_all_modules
from PIL import Image

import prmim_adapters.openmmlab  # noqa: F401, registers InMemoryImages
from prmim_adapters.sweep import load_spec
from prmim_adapters.sweep.checking import check_arms, check_configs
from prmim_adapters.sweep.checking_evaluation import check_evaluation, check_metric
from prmim_adapters.sweep.local import LocalEngine
from prmim_adapters.sweep.runner import run_sweep
from prmim_adapters.sweep.spec import Framework, SpecError

register_all_modules()


@pytest.fixture
def spec(own_spec, tmp_path, monkeypatch, example):
    """The documented example on three images of each of two classes."""
    monkeypatch.syspath_prepend(example)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split in ('train', 'test'):
        for label in range(2):
            folder = tmp_path / 'images' / split / str(label)
            folder.mkdir(parents=True)
            for number in range(3):
                pixels = rng.integers(0, 255, (20, 18, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f'{number}.png')
    data = copy.deepcopy(own_spec)
    data['evaluation']['k'] = 2
    (tmp_path / 'spec.yaml').write_text(yaml.safe_dump(data))
    return load_spec(tmp_path / 'spec.yaml')


def with_images(spec, part='train', inside=None, **changes):
    """The spec with changes of the data set, or of the one inside it, of a loader."""
    loader = copy.deepcopy(getattr(spec.evaluation, part))
    loader['dataset'].update(changes)
    loader['dataset']['dataset'].update(inside or {})
    return replace(spec, evaluation=replace(spec.evaluation, **{part: loader}))


def evaluated(spec, **changes):
    return replace(spec, evaluation=replace(spec.evaluation, **changes))


class Never(LocalEngine):
    """Begins no point."""

    def run(self, points, spec, out, display):
        raise AssertionError('a point began')


def test_a_good_spec_gives_an_image_of_each_loader(spec):
    check_configs(spec)
    batches = check_evaluation(spec)
    assert [tuple(batch['inputs'].shape) for batch in batches] == [(1, 3, 16, 16)] * 2
    check_arms(spec, batches)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: evaluated(s, k=7), r'evaluation\.train: k=7 neighbours asked of the 6 images'),
        (
            lambda s: with_images(s, per_class=4),
            r'evaluation\.train: per_class=4, but one class has',
        ),
        (
            lambda s: evaluated(with_images(s, per_class=1), k=3),
            r'k=3 neighbours asked of the 2 im',
        ),
        (
            lambda s: with_images(s, inside=dict(with_label=False)),
            r'evaluation\.train: an image has no label',
        ),
        (
            lambda s: with_images(s, 'test', inside=dict(with_label=False)),
            r'evaluation\.test: an image has no label',
        ),
        (
            lambda s: with_images(s, inside=dict(data_prefix='images/nowhere')),
            r'evaluation\.train: .*images/nowhere',
        ),
        (
            lambda s: with_images(s, inside=dict(indices=3)),
            'of one class, and the linear probe needs',
        ),
        (
            lambda s: with_images(s, inside=dict(type='CustomDatset')),
            r'evaluation\.train: .*CustomDatset',
        ),
        (
            lambda s: evaluated(s, train=dict(s.evaluation.train, collate_fn=dict(type='raedy'))),
            r"evaluation\.train: collate_fn: type='raedy' is not registered",
        ),
        (
            lambda s: replace(
                s, frameworks={'mine': replace(s.frameworks['mine'], backbone='enocder')}
            ),
            r"frameworks\.mine.*backbone='enocder': MyMIM has no such network",
        ),
    ],
)
def test_mistakes_are_named_before_the_first_point(spec, tmp_path, change, message):
    with pytest.raises(SpecError, match=message):
        run_sweep(change(spec), tmp_path / 'out', Never())
    assert not (tmp_path / 'out').exists()


def test_labels_beyond_the_classes(spec, tmp_path):
    (tmp_path / 'images' / 'test' / '2').mkdir()
    Image.new('RGB', (20, 20)).save(tmp_path / 'images' / 'test' / '2' / 'a.png')
    with pytest.raises(SpecError, match=r'evaluation\.test: num_classes=2, .*label 2: set num_c'):
        check_evaluation(spec)


def test_files_that_only_the_jobs_have_are_passed_over(spec):
    elsewhere = with_images(spec, inside=dict(data_prefix='images/nowhere'))
    assert check_evaluation(elsewhere, must_exist=False) == []


def tuning(**changes):
    keys = dict(
        model=dict(head=dict(num_classes=10)),
        val_cfg=dict(),
        val_evaluator=dict(type='Accuracy', topk=(1, 5)),
    )
    return Config(keys | changes)


@pytest.mark.parametrize(
    ('changes', 'metric'),
    [
        (dict(), 'accuracy/top5'),
        (dict(val_evaluator=dict(type='Accuracy')), 'accuracy/top1'),
        (
            dict(val_evaluator=[dict(type='Accuracy'), dict(type='SingleLabelMetric')]),
            'single-label/recall',
        ),
        (dict(val_evaluator=dict(type='Accuracy', thrs=(0.0, 0.5))), 'accuracy/top1_thr-0.50'),
    ],
)
def test_metrics_of_transfers_that_are_there(changes, metric):
    check_metric('tune', metric, tuning(**changes))


@pytest.mark.parametrize(
    ('changes', 'metric', 'message'),
    [
        (dict(), 'acuracy/top1', "'acuracy/top1' is no .* gives accuracy/top1, accuracy/top5"),
        (
            dict(val_evaluator=dict(type='mmpretrain.SingleLabelMetric')),
            'accuracy/top1',
            'gives single-label/f1-score',
        ),
        (dict(val_evaluator=None), 'accuracy/top1', 'the config has no val_evaluator'),
        (dict(val_cfg=None), 'accuracy/top1', 'the config has no val_cfg'),
    ],
)
def test_metrics_of_transfers_that_are_not(changes, metric, message):
    with pytest.raises(SpecError, match=message):
        check_metric('tune', metric, tuning(**changes))


def test_a_framework_is_tried_on_its_image(spec):
    """A peer that takes other images is named, though its configs are read without mistake."""
    check_configs(spec)
    batch = check_evaluation(spec)[0]
    grey = dict(batch, inputs=batch['inputs'][:, :1])
    with pytest.raises(SpecError, match=r'frameworks\.mine'):
        check_arms(spec, [grey])
    assert isinstance(spec.frameworks['mine'], Framework)

# SPDX-License-Identifier: Apache-2.0
"""Real training runs of a tiny MAE: arms of one seed are paired, and end at equal cost."""

import copy
import math
from functools import partial

import pytest
import small_models
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch.utils.data import DataLoader

from prmim_adapters import attach, openmmlab  # noqa: F401 (registers the preprocessor)
from prmim_adapters.accounting import make_batch, training_macs
from prmim_adapters.accounting.batch import first_batch
from prmim_adapters.accounting.scheduled import average_over_run
from prmim_adapters.adapters import partial_of
from prmim_adapters.openmmlab.throw_ratio import ThrowRatioHook
from prmim_adapters.sweep.cost import counted_macs
from prmim_adapters.sweep.equal_cost import EqualCostEpochLoop, EqualCostIterLoop, stretched
from prmim_adapters.sweep.pairing import PairedDrawsHook

MAE = small_models.mae(
    16,
    4,
    neck=dict(decoder_depth=2),
    head=dict(norm_pix=True),
    init_cfg=[dict(type='Xavier', layer='Linear', distribution='uniform')],
)
PREPROCESSOR = dict(
    type='DeviceAugment',
    mean=[127.5] * 3,
    std=[127.5] * 3,
    augment=[dict(type='BatchRandomResizedCrop', size=16, scale=(0.5, 1.0))],
)
COSINE = dict(type='CosineAnnealingLR', T_max=2, end=2, convert_to_iter_based=True)


@pytest.fixture
def run(tmp_path):
    """Function (ratio or None, train_cfg, scheduler) -> runner after training, and what it saw."""

    def train(ratio, train_cfg, scheduler=None, seed=3, hooks=(), **arm):
        torch.manual_seed(0)
        images = torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8)
        torch.manual_seed(seed)
        model = MODELS.build(dict(MAE, data_preprocessor=copy.deepcopy(PREPROCESSOR)))
        if ratio is not None:
            attach(model, ratio, **arm)
        seen = dict(start=None, batches=[], masks=[], kept=[])

        def look(_, inputs, outputs):
            if len(inputs[0]) != 4:  # the copy that MACs are counted on
                return
            if seen['start'] is None:
                seen['start'] = copy.deepcopy(model.state_dict())
            seen['batches'].append(inputs[0])
            seen['masks'].append(outputs[1])

        model.backbone.register_forward_hook(look)
        if ratio is not None:
            partial_of(model).register_forward_hook(lambda *args: seen['kept'].append(args[2].kept))
        runner = Runner(
            model,
            work_dir=str(tmp_path / f'{ratio}-{len(list(tmp_path.iterdir()))}'),
            train_dataloader=DataLoader(images, batch_size=4, collate_fn=as_batch),
            train_cfg=train_cfg,
            optim_wrapper=OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1)),
            param_scheduler=copy.deepcopy(scheduler),
            default_hooks=dict(checkpoint=None, logger=None),
            custom_hooks=[PairedDrawsHook(), *hooks],
            randomness=dict(seed=seed),
            default_scope='mmpretrain',
            experiment_name=f'paired-{len(list(tmp_path.iterdir()))}',
        )
        runner.train()
        return runner, seen

    return train


def as_batch(images):
    return dict(inputs=torch.stack(images), data_samples=[DataSample() for _ in images])


def test_arms_of_a_seed_share_weights_images_and_masks(run):
    loop = dict(by_epoch=True, max_epochs=2)
    _, framework = run(None, loop)
    _, thrown = run(0.5, loop)
    _, other = run(None, loop, seed=4)
    assert all(
        torch.equal(framework['start'][key], thrown['start'][key]) for key in framework['start']
    )
    assert len(thrown['start']) > len(framework['start'])
    for key in ('batches', 'masks'):
        assert len(framework[key]) == 10
        assert all(map(torch.equal, framework[key], thrown[key]))
        assert not any(map(torch.equal, framework[key], other[key]))
        assert not any(torch.equal(framework[key][0], entry) for entry in framework[key][1:])


class Elsewhere(Hook):
    """The sampler's source is somewhere else, as in a run that was resumed."""

    def before_train(self, runner):
        partial_of(runner.model).randomness.seed(99)


def test_arms_with_one_sampler_keep_the_same_tokens(run):
    loop = dict(by_epoch=True, max_epochs=2)
    _, these = run(0.5, loop, aggregator='nearest')
    _, those = run(0.5, loop, hooks=[Elsewhere()])
    assert len(these['kept']) == 10
    assert all(map(torch.equal, these['kept'], those['kept']))


def macs_of(ratio):
    model = MODELS.build(dict(MAE, data_preprocessor=copy.deepcopy(PREPROCESSOR)))
    count = training_macs(model if ratio is None else attach(model, ratio), make_batch(model))
    return count.forward.total + count.backward.total


def test_equal_cost_spends_the_frameworks_macs(run):
    factor = macs_of(None) / macs_of(0.5)
    assert factor > 1.2
    loop = dict(type='EqualCostEpochLoop', max_epochs=2, framework=MAE)
    runner, seen = run(0.5, loop, COSINE)
    assert isinstance(runner.train_loop, EqualCostEpochLoop)
    assert runner.iter == runner.max_iters == round(10 * factor)
    assert runner.epoch == runner.max_epochs == math.ceil(runner.iter / 5)
    (scheduler,) = runner.param_schedulers
    assert scheduler.T_max == pytest.approx(10 * factor)
    # The same images as the framework sees, and then more of them.
    _, framework = run(None, dict(by_epoch=True, max_epochs=2))
    assert all(
        torch.equal(*pair) for pair in zip(framework['batches'], seen['batches'], strict=False)
    )


def test_equal_cost_of_an_iteration_based_run(run):
    runner, _ = run(0.5, dict(type='EqualCostIterLoop', max_iters=7, framework=MAE))
    assert isinstance(runner.train_loop, EqualCostIterLoop)
    assert runner.iter == round(7 * macs_of(None) / macs_of(0.5))


def test_equal_cost_counts_every_ratio_of_a_schedule(run):
    hook = ThrowRatioHook('step', start=0.625, end=0.25, at=0.6)
    macs = 0.6 * macs_of(0.625) + 0.4 * macs_of(0.25)
    runner, _ = run(0.5, dict(type='EqualCostEpochLoop', max_epochs=2, framework=MAE), hooks=[hook])
    assert runner.iter == round(10 * macs_of(None) / macs)
    count = partial(counted_macs, batch=first_batch(runner.train_dataloader, runner.model))
    found = average_over_run(runner, count, 10)
    assert found['training_gmacs'] == pytest.approx(macs / 1e9)
    assert found['throw_ratio'] == pytest.approx(0.6 * 0.625 + 0.4 * 0.25)


def test_at_equal_cost_the_framework_itself_trains_as_long_as_ever(run):
    runner, _ = run(None, dict(type='EqualCostEpochLoop', max_epochs=2, framework=MAE))
    assert runner.iter == 10


def test_schedules_are_stretched():
    ends = {True: 4, False: 100}
    got = stretched(
        [
            dict(type='LinearLR', start_factor=0.1, end=1, convert_to_iter_based=True),
            dict(type='CosineAnnealingLR', T_max=3, begin=1, by_epoch=True, eta_min=2),
            dict(type='MultiStepLR', milestones=[30, 61], by_epoch=False),
        ],
        1.5,
        ends,
    )
    assert got == [
        dict(type='LinearLR', start_factor=0.1, end=1.5, convert_to_iter_based=True),
        dict(type='CosineAnnealingLR', T_max=4, begin=2, by_epoch=True, eta_min=2, end=6),
        dict(type='MultiStepLR', milestones=[45, 92], by_epoch=False, end=150),
    ]
    assert stretched(None, 1.5, ends) is None

# SPDX-License-Identifier: Apache-2.0
import time

import cv2
import numpy as np
import pytest
from mmengine.registry import DefaultScope
from mmpretrain.registry import TRANSFORMS

from prmim_adapters.accounting.data import DataCost, data_cost


@TRANSFORMS.register_module()
class Computes:
    """5 ms of a core."""

    def __call__(self, data):
        end = time.process_time() + 0.005
        while time.process_time() < end:
            pass
        return data


@TRANSFORMS.register_module()
class Waits:
    """20 ms of nobody's core, as for a disk."""

    def __call__(self, data):
        time.sleep(0.02)
        return data


@pytest.fixture
def config(tmp_path):
    (tmp_path / 'images').mkdir()
    for number in range(6):
        cv2.imwrite(str(tmp_path / f'images/{number}.png'), np.zeros((8, 8, 3), dtype=np.uint8))
    dataset = dict(type='CustomDataset', data_root=str(tmp_path / 'images'), with_label=False)
    dataset['pipeline'] = [
        dict(type='LoadImageFromFile'),
        dict(type='Computes'),
        dict(type='Waits'),
        dict(type='PackInputs'),
    ]
    loader = dict(
        batch_size=512,
        num_workers=1,
        persistent_workers=True,
        prefetch_factor=2,
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(type='default_collate'),
        dataset=dataset,
    )
    (tmp_path / 'config.py').write_text(
        f"default_scope = 'mmpretrain'\nmodel = dict(type='MAE')\ntrain_dataloader = {loader!r}\n"
    )
    return str(tmp_path / 'config.py')


def test_an_image_costs_what_its_transforms_compute_not_what_they_wait(config):
    with DefaultScope.overwrite_default_scope('mmengine'):  # as a command starts
        cost = data_cost(config, batch_size=2, images=4, batches=1)
    assert list(cost.transforms) == ['LoadImageFromFile', 'Computes', 'Waits', 'PackInputs']
    assert cost.transforms['Computes'] >= 0.005
    assert cost.transforms['Waits'] < 0.005
    assert cost.core_seconds >= 0.005
    assert (cost.workers, cost.batch_size) == (1, 2)
    assert cost.batch_seconds > 0


@pytest.mark.parametrize('wrapper', ['ConcatDataset', 'RepeatDataset'])
def test_steps_are_found_inside_wrappers(config, wrapper, tmp_path):
    """Two copies of the six images; in ConcatDataset those of the second lack a step."""
    inner = (
        "other = dict(dataset, pipeline=[s for s in dataset['pipeline'] if s['type'] != 'Computes'])\n"
        'datasets = [dataset, other]\n'
    )
    given = 'datasets=datasets' if wrapper == 'ConcatDataset' else 'dataset=dataset, times=2'
    text = (tmp_path / 'config.py').read_text()
    (tmp_path / 'config.py').write_text(
        f"{text}dataset = train_dataloader.pop('dataset')\n{inner}"
        f"train_dataloader['dataset'] = dict(type='{wrapper}', {given})\n"
    )
    cost = data_cost(config, batch_size=2, images=12, batches=1)
    assert list(cost.transforms) == ['LoadImageFromFile', 'Computes', 'Waits', 'PackInputs']
    share = 0.5 if wrapper == 'ConcatDataset' else 1  # of the images that are computed
    assert share * 0.005 <= cost.transforms['Computes'] < share * 0.005 + 0.002


def test_cores_are_images_a_second_times_their_cost():
    cost = DataCost(0.002, dict(Load=0.0015, Pack=0.0005), 8, 0.5, 100)
    assert cost.cores(750) == 1.5
    assert cost.markdown(dict(framework=750, ours=1000)) == (
        'Data: an image takes 2.00 ms of a core (Load 1.50, Pack 0.50). Cores that keep up with one '
        "process: framework 1.5, ours 2.0. The config's 8 worker(s) took 5.00 ms an image here."
    )

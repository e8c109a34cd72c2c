# SPDX-License-Identifier: Apache-2.0
"""Masks of random ratio, and views that keep their masks."""

import numpy as np
import pytest
import torch
from mmengine.dataset import default_collate
from mmpretrain.models.utils import SelfSupDataPreprocessor
from mmpretrain.registry import TRANSFORMS
from mmpretrain.utils import register_all_modules

import prmim_adapters.openmmlab.transforms  # noqa: F401, registers

register_all_modules()

PUBLISHED = dict(input_size=14, mask_ratio=(0.0, 0.3), variance=(0.0, 0.2))


def masks(number, **options):
    np.random.seed(0)
    generator = TRANSFORMS.build(dict(type='RandomRatioMask', **options))
    return np.stack([generator.transform({})['mask'] for _ in range(number)])


def test_published_masks_have_the_original_s_statistics():
    """12,000 masks of the original loader: 50.2 % empty, mean 28.7, the others 14..97."""
    found = masks(1200, **PUBLISHED)
    counts = found.reshape(1200, -1).sum(1)
    assert found.dtype == bool
    assert 0.47 < (counts == 0).mean() < 0.55
    assert 25 < counts.mean() < 31
    assert counts[counts > 0].min() >= 12
    assert counts.max() <= 0.5 * 196


def test_block_masks_never_exceed_the_drawn_ratio_and_mostly_fill_it():
    counts = masks(200, input_size=14, mask_ratio=0.3, variance=0.0).reshape(200, -1).sum(1)
    assert counts.max() <= 58  # 0.3 * 196 = 58.8
    assert counts.min() >= 40
    assert 55 < counts.mean() < 58.5  # the original's mean is 57


def test_block_masks_reach_every_border():
    share = masks(400, input_size=(6, 9), mask_ratio=0.4, variance=0.0).mean(0)
    assert share.shape == (6, 9)
    assert share.min() > 0.1


def test_blocks_are_made_of_rectangles():
    """Neighbours agree far more often than in a random mask of the same ratio."""
    blocks = masks(100, input_size=14, mask_ratio=0.3, variance=0.0)
    tokens = masks(100, input_size=14, mask_ratio=0.3, variance=0.0, shape='random')
    agreement = [(m[:, :, 1:] == m[:, :, :-1]).mean() for m in (blocks, tokens)]
    assert agreement[0] > 0.85
    assert 0.52 < agreement[1] < 0.64  # 0.3^2 + 0.7^2 = 0.58


@pytest.mark.parametrize(
    ('size', 'ratio', 'count'), [(14, 0.7, 137), ((6, 10), 0.25, 15), (10, 0.29, 29)]
)
def test_random_masks_without_variance_have_one_size(size, ratio, count):
    found = masks(50, input_size=size, mask_ratio=ratio, variance=0, shape='random')
    assert set(found.reshape(50, -1).sum(1)) == {count}
    assert len({mask.tobytes() for mask in found}) == 50
    assert found.mean(0).std() < 0.12  # uniform over positions


def test_ratios_are_drawn_within_their_variance():
    found = masks(300, input_size=20, mask_ratio=[0.2, 0.7], variance=[0, 0.1], shape='random')
    ratios = found.reshape(300, -1).mean(1)
    low = ratios < 0.4
    assert 0.4 < low.mean() < 0.6
    assert set(ratios[low]) == {0.2}
    assert ratios[~low].min() >= 0.595
    assert ratios[~low].max() <= 0.8
    assert ratios[~low].std() > 0.04


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(mask_ratio=0.1, variance=0.2), r'mask_ratio=0.1 with variance=0.2'),
        (dict(mask_ratio=1.1, variance=0.0), r'between 0 and 1'),
        (
            dict(mask_ratio=[0.1, 0.2, 0.3], variance=[0, 0]),
            r'e=\(0, 0\) for mask_ratio=\(0\.1, ',
        ),
        (dict(mask_ratio=0.3, variance=0, shape='rand'), "allowed are 'block', 'random'"),
    ],
)
def test_bad_options_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        masks(1, input_size=14, **options)


def pipeline(with_mask=True):
    crop = dict(type='RandomResizedCrop', backend='pillow')
    mask = [dict(type='RandomRatioMask', input_size=4, mask_ratio=0.5, variance=0, shape='random')]
    views = [
        [dict(crop, scale=32), *(mask if with_mask else [])],
        [dict(crop, scale=16)],
    ]
    multi = TRANSFORMS.build(dict(type='MaskedMultiView', num_views=[2, 3], transforms=views))
    pack = TRANSFORMS.build(dict(type='PackInputs'))
    return lambda results: pack(multi(results))


def test_views_and_masks_pass_through_collate_and_preprocessor():
    np.random.seed(0)
    make = pipeline()
    image = np.random.randint(0, 256, (40, 50, 3), dtype=np.uint8)
    data = default_collate([make(dict(img=image.copy())) for _ in range(4)])
    preprocessor = SelfSupDataPreprocessor(mean=[1.0] * 3, std=[2.0] * 3, bgr_to_rgb=True)

    result = preprocessor(data, training=True)

    crops, samples = result['inputs'], result['data_samples']
    assert [tuple(crop.shape) for crop in crops] == [(4, 3, 32, 32)] * 2 + [(4, 3, 16, 16)] * 3
    assert all(sample.mask.shape == (2, 4, 4) for sample in samples)
    assert all(sample.mask.dtype == torch.bool for sample in samples)
    assert all(sample.mask.sum() == 16 for sample in samples)
    assert not torch.equal(samples[0].mask[0], samples[0].mask[1])
    assert not torch.equal(crops[0][0], crops[1][0])


def test_the_mask_belongs_to_its_view():
    """A later step of the view's own pipeline sees the mask that is packed."""
    seen = []
    views = [[dict(type='RandomRatioMask', input_size=4, mask_ratio=0.5, variance=0)]]
    multi = TRANSFORMS.build(dict(type='MaskedMultiView', num_views=[2], transforms=views))
    multi.transforms = [
        lambda r, step=step: (r := step(r), seen.append(r['mask']))[0] for step in multi.transforms
    ]
    out = multi(dict(img=np.zeros((8, 8, 3), np.uint8)))
    assert np.array_equal(out['mask'], np.stack(seen))


def test_without_generators_there_is_no_mask():
    packed = pipeline(with_mask=False)(dict(img=np.zeros((40, 50, 3), np.uint8)))
    assert 'mask' not in packed['data_samples']
    assert len(packed['inputs']) == 5

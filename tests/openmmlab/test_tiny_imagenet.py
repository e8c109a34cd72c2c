# SPDX-License-Identifier: Apache-2.0
"""Tiny-ImageNet as it is unpacked."""

import cv2
import numpy as np
import pytest
from mmpretrain.registry import DATASETS

import prmim_adapters.openmmlab  # noqa: F401

LOAD = [dict(type='LoadImageFromFile')]


@pytest.fixture
def root(tmp_path):
    """Two classes, not in alphabetical order, of two training and one or two val images."""
    root = tmp_path / 'tiny-imagenet-200'
    (root / 'val' / 'images').mkdir(parents=True)
    (root / 'wnids.txt').write_text('n02\nn01\n')
    for label, wnid in enumerate(('n02', 'n01')):
        (root / 'train' / wnid / 'images').mkdir(parents=True)
        (root / 'train' / wnid / f'{wnid}_boxes.txt').write_text('')
        for number in range(2):
            write(root / 'train' / wnid / 'images' / f'{wnid}_{number}.JPEG', 100 * label)
    rows = [
        'val_1.JPEG\tn02\t0\t32\t44\t62',
        'val_0.JPEG\tn01\t1\t2\t3\t4',
        'val_2.JPEG\tn02\t1\t2\t3\t4',
    ]
    (root / 'val' / 'val_annotations.txt').write_text('\n'.join(rows) + '\n')
    for number, value in enumerate((100, 0, 0)):
        write(root / 'val' / 'images' / f'val_{number}.JPEG', value)
    return root


def write(path, value):
    cv2.imwrite(str(path), np.full((64, 64), value, np.uint8))


def build(root, **options):
    return DATASETS.build(dict(type='TinyImageNet', data_root=str(root), pipeline=LOAD, **options))


def test_labels_are_the_lines_of_wnids(root):
    train, val = build(root), build(root, split='val')
    assert train.metainfo['classes'] == ['n02', 'n01']
    assert [train[i]['gt_label'] for i in range(4)] == [1, 1, 0, 0]
    assert [val[i]['gt_label'] for i in range(3)] == [1, 0, 0]
    for images in (train, val):
        for entry in images:
            assert abs(int(entry['img'].mean()) - 100 * entry['gt_label']) < 3
            assert entry['img'].shape == (64, 64, 3)


def test_both_layouts_go_into_memory(root):
    official = dict(type='TinyImageNet', data_root=str(root), split='val', pipeline=LOAD)
    images = DATASETS.build(dict(type='InMemoryImages', dataset=official, per_class=1))
    assert images.labels.tolist() == [1, 0]
    assert images.images.shape == (2, 3, 64, 64)


def test_mistakes_are_named(root, tmp_path):
    with pytest.raises(ValueError, match="split='test': allowed are 'train', 'val'"):
        build(root, split='test')
    with pytest.raises(ValueError, match=r"no .*wnids\.txt: data_root .* type='CustomDataset'"):
        build(tmp_path)
    (root / 'wnids.txt').write_text('n02\n')
    with pytest.raises(ValueError, match=r'3 val images .* not in wnids\.txt: n01'):
        build(root, split='val').full_init()
    (root / 'wnids.txt').write_text('n02\nn01\nn02\n')
    with pytest.raises(ValueError, match=r'wnids\.txt lists a class twice'):
        build(root)


@pytest.mark.parametrize('line', ['val_9.JPEG', 'val_9.JPEG n01', '../a.JPEG\tn01', '/a.JPEG\tn01'])
def test_a_line_that_is_none_is_named(root, line):
    with (root / 'val' / 'val_annotations.txt').open('a') as stream:
        stream.write(f'{line}\n')
    with pytest.raises(
        ValueError, match=r'val_annotations\.txt: row 4: expected the name of an im'
    ):
        build(root, split='val').full_init()

# SPDX-License-Identifier: Apache-2.0
"""200 damaged or odd images among good ones, each accounted for by name."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from mmpretrain.datasets import CustomDataset
from mmpretrain.registry import DATASETS, TRANSFORMS
from PIL import Image

from prmim_adapters.openmmlab.images import LoadImageFromFile, UnreadableImageError

SIDE, GOOD = 16, 20
FORMATS = {'.png': 'PNG', '.jpg': 'JPEG', '.webp': 'WEBP', '.bmp': 'BMP', '.tif': 'TIFF'}


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


def damaged(rng: np.random.Generator) -> dict[str, bytes]:
    """170 files that hold no image: cut short, without a header, empty, of another kind."""
    files = {}
    for ending, kind in FORMATS.items():
        whole = encoded(noise(rng), kind)
        for number in range(10):
            files[f'cut{number}{ending}'] = whole[: len(whole) * number // 12]
            files[f'header{number}{ending}'] = bytes(8 + number) + whole[8 + number :]
            files[f'text{number}{ending}'] = f'not an image {number}'.encode() * (number + 1)
    for number in range(10):
        files[f'empty{number}.png'] = b''
        files[f'zeros{number}.jpg'] = bytes(1 + 100 * number)
    return files


def odd(rng: np.random.Generator) -> dict[str, bytes]:
    """30 files that are images all the same: other modes, depths, and endings that do not fit."""
    files = {}
    for number in range(3):
        image = noise(rng)
        for mode, kind in (
            *[('L', 'PNG'), ('LA', 'PNG'), ('RGBA', 'PNG'), ('P', 'PNG'), ('1', 'PNG')],
            *[('CMYK', 'JPEG'), ('L', 'JPEG'), ('P', 'GIF')],
        ):
            files[f'{mode}{number}.{kind.lower()}'] = encoded(image.convert(mode), kind)
        deep = Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 257)
        files[f'deep{number}.png'] = encoded(deep, 'PNG')
        files[f'wrong_ending{number}.jpg'] = encoded(image, 'PNG')
    return files


@pytest.fixture(scope='module')
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, set[str]]]:
    """Folder of two classes, and the names of what is in it by kind."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp('images')
    kinds = {
        'damaged': damaged(rng),
        'odd': odd(rng),
        'good': {f'good{n}.png': encoded(noise(rng), 'PNG') for n in range(GOOD)},
    }
    for files in kinds.values():
        for number, (name, content) in enumerate(files.items()):
            label = folder / f'class{number % 2}'
            label.mkdir(exist_ok=True)
            (label / name).write_bytes(content)
    return folder, {kind: set(files) for kind, files in kinds.items()}


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What mmengine's current logger warns of."""
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def source(folder: Path, **options: object) -> dict[str, object]:
    return dict(
        type='mmpretrain.CustomDataset',
        data_prefix=str(folder),
        with_label=True,
        extensions=('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.tif', '.gif'),
        pipeline=[dict(type='LoadImageFromFile', **options)],
    )


def named_in(warnings: list[str]) -> list[str]:
    return [Path(text.split(' cannot be read')[0]).name for text in warnings if 'cannot' in text]


def test_there_are_200(images: tuple[Path, dict[str, set[str]]]) -> None:
    assert len(images[1]['damaged']) + len(images[1]['odd']) == 200


def test_configs_get_this_transform() -> None:
    assert TRANSFORMS.get('LoadImageFromFile') is LoadImageFromFile


def test_every_file_is_read_or_refused_by_name(
    images: tuple[Path, dict[str, set[str]]],
) -> None:
    folder, kinds = images
    load, refused = LoadImageFromFile(), set()
    for path in sorted(folder.glob('*/*')):
        try:
            assert load(dict(img_path=str(path)))['img'].shape == (SIDE, SIDE, 3)
        except UnreadableImageError as error:
            message = str(error)
            assert message.startswith(f'{path} cannot be read as an image: ')
            assert '\n' not in message
            refused.add(path.name)
    assert refused == kinds['damaged']


def test_a_training_set_takes_others_and_names_each_once(
    images: tuple[Path, dict[str, set[str]]], warnings: list[str]
) -> None:
    folder, kinds = images
    dataset = DATASETS.build(source(folder, unreadable='skip'))
    assert isinstance(dataset, CustomDataset)
    for _ in range(2):
        for index in range(len(dataset)):
            assert dataset[index]['img'].shape == (SIDE, SIDE, 3)
    assert sorted(named_in(warnings)) == sorted(kinds['damaged'])
    assert any('170 so far in this process' in text for text in warnings)


def test_images_in_memory_skip_and_keep_their_labels(
    images: tuple[Path, dict[str, set[str]]], warnings: list[str]
) -> None:
    folder, kinds = images
    options = dict(type='mmpretrain.InMemoryImages', dataset=source(folder), unreadable='skip')
    whole = DATASETS.build(options)
    assert sorted(named_in(warnings)) == sorted(kinds['damaged'])
    assert warnings[-1] == 'InMemoryImages: 170 unreadable images skipped, 50 read'
    load = LoadImageFromFile()
    kept = kinds['odd'] | kinds['good']
    paths = [p for label in (0, 1) for p in sorted((folder / f'class{label}').glob('*'))]
    expected = [(p, int(p.parent.name[-1])) for p in paths if p.name in kept]
    assert whole.labels.tolist() == [label for _, label in expected]
    for image, (path, _) in zip(whole.images, expected, strict=True):
        same = load(dict(img_path=str(path)))['img'].transpose(2, 0, 1)
        np.testing.assert_array_equal(image.numpy(), same)
    few = DATASETS.build(dict(options, per_class=7))
    assert few.labels.tolist() == [0] * 7 + [1] * 7
    assert np.array_equal(few.images[:7], whole.images[:7])
    with pytest.raises(ValueError, match='per_class=80, but one class has 25 readable images'):
        DATASETS.build(dict(options, per_class=80))


def test_images_in_memory_stop_at_the_first(images: tuple[Path, dict[str, set[str]]]) -> None:
    with pytest.raises(UnreadableImageError, match=r'class0/.* cannot be read as an image'):
        DATASETS.build(dict(type='mmpretrain.InMemoryImages', dataset=source(images[0])))


def test_other_images_are_never_given_under_a_label(
    images: tuple[Path, dict[str, set[str]]],
) -> None:
    inner = source(images[0], unreadable='skip')
    with pytest.raises(ValueError, match="give InMemoryImages itself unreadable='skip'"):
        DATASETS.build(dict(type='mmpretrain.InMemoryImages', dataset=inner))


def test_no_image_at_all_is_said(tmp_path: Path) -> None:
    (tmp_path / 'class0').mkdir()
    (tmp_path / 'class0' / 'a.png').write_bytes(b'')
    options = dict(type='mmpretrain.InMemoryImages', dataset=source(tmp_path), unreadable='skip')
    with pytest.raises(ValueError, match='not one image could be read'):
        DATASETS.build(options)


def test_unreadable_is_one_of_two() -> None:
    with pytest.raises(ValueError, match="unreadable='ignore': allowed are 'stop', 'skip'"):
        LoadImageFromFile(unreadable='ignore')


def test_a_worker_names_the_file(tmp_path: Path) -> None:
    """Through the process of a data loader, as in training: cv2.error alone names none."""
    (tmp_path / 'class0').mkdir()
    (tmp_path / 'class0' / 'empty.png').write_bytes(b'')
    loader = Runner.build_dataloader(
        dict(
            dataset=source(tmp_path),
            batch_size=1,
            num_workers=1,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
        )
    )
    with pytest.raises(UnreadableImageError, match=r'class0/empty.png cannot be read as an image'):
        next(iter(loader))


@pytest.mark.parametrize('flat', [True, False])
@pytest.mark.parametrize('color', ['color', 'grayscale', 'unchanged'])
def test_folders_without_classes_and_grey_images(tmp_path: Path, flat: bool, color: str) -> None:
    """Grey images come as (H, W) or (H, W, 1), and a folder without classes gives no labels."""
    folder = tmp_path if flat else tmp_path / 'class0'
    folder.mkdir(exist_ok=True)
    pixels = np.arange(2 * SIDE * SIDE, dtype=np.uint8).reshape(2, SIDE, SIDE)
    for number in range(2):
        Image.fromarray(pixels[number]).save(folder / f'{number}.png')
    dataset = {**source(tmp_path, color_type=color), 'with_label': not flat}
    made = DATASETS.build(dict(type='mmpretrain.InMemoryImages', dataset=dataset))
    channels = 3 if color == 'color' else 1
    expected = pixels[:, None].repeat(channels, axis=1)
    np.testing.assert_array_equal(made.images.numpy(), expected)
    batch = made.__getitems__([1])
    assert ('gt_label' in batch['data_samples'][0]) is not flat
    assert (made.labels is None) is flat
    if flat:
        options = dict(type='mmpretrain.InMemoryImages', dataset=dataset, per_class=1)
        with pytest.raises(ValueError, match='images have no labels: leave per_class out'):
            DATASETS.build(options)

# SPDX-License-Identifier: Apache-2.0
"""Pictures of other people's images: colour order, channels, readers, shapes, pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models
import torch
from click.testing import CliRunner
from mmcv.transforms import RandomFlip
from mmengine.config import Config
from mmpretrain.registry import TRANSFORMS
from PIL import Image

from prmim_adapters.commands.show import show
from prmim_adapters.visualization import (
    Observation,
    display_of,
    load_images,
    load_model,
    observe,
    panels,
)

ARCH = small_models.arch(48, 1, 3)
NORM = dict(mean=[120.0, 110.0, 100.0], std=[60.0, 50.0, 40.0])
CROP = dict(type='RandomResizedCrop', scale=64)


def mae(load: dict[str, Any] | None, crop: Any = CROP, channels: int = 3, **preprocessor: Any):
    """A small MAE on 64 px images."""
    framework = small_models.mae(
        64,
        16,
        width=48,
        heads=3,
        backbone=dict(patch_cfg=dict(in_channels=channels)),
        neck=dict(in_chans=channels),
        head=dict(in_channels=channels),
    )
    pipeline = [*([load] if load else []), crop, dict(type='PackInputs')]
    return Config(
        dict(
            model=dict(type='PRMIM', framework=framework, throw_ratio=0.25),
            data_preprocessor=dict(type='SelfSupDataPreprocessor', **preprocessor),
            train_dataloader=dict(dataset=dict(type='CustomDataset', pipeline=pipeline)),
        )
    )


def look(config: Config, images: list[str], **options: Any) -> Observation:
    model = load_model(config)
    display = display_of(config, model, **options)
    return observe(model, load_images(config, model, images), 0, display)


def fed(config: Config, images: list[str]) -> torch.Tensor:
    """What the model is given, before normalisation."""
    model = load_model(config)
    return model.data_preprocessor(load_images(config, model, images), False)['inputs']


@pytest.fixture
def photo(tmp_path: Path) -> tuple[str, torch.Tensor]:
    """A 64 x 64 colour image, and its pixels (3, 64, 64) in [0, 1]."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'photo.png')
    return str(tmp_path / 'photo.png'), torch.from_numpy(pixels).permute(2, 0, 1) / 255


FILES = dict(type='LoadImageFromFile')
TO_PIL = dict(type='NumpyToPIL', to_rgb=True)


@pytest.mark.parametrize(
    ('load', 'steps', 'preprocessor', 'model_sees'),
    [
        (FILES, [], dict(to_rgb=True), 'rgb'),
        (FILES, [], dict(to_rgb=False), 'bgr'),
        (FILES, [], dict(to_rgb=True, **NORM), 'rgb'),
        (FILES, [], dict(to_rgb=False, **NORM), 'bgr'),
        (dict(FILES, imdecode_backend='pillow'), [], dict(to_rgb=False), 'bgr'),
        (dict(FILES, to_float32=True), [], dict(to_rgb=False, **NORM), 'bgr'),
        (FILES, [TO_PIL], dict(to_rgb=False), 'rgb'),
        (FILES, [TO_PIL, dict(type='PILToNumpy', to_bgr=True)], dict(to_rgb=False), 'bgr'),
        (None, [], dict(to_rgb=False), 'rgb'),  # arrays in memory, as CIFAR10's
        (None, [], dict(to_rgb=True), 'rgb'),
    ],
)
def test_colours_are_the_files_whatever_order_the_model_is_fed(
    photo, load, steps, preprocessor, model_sees
):
    path, pixels = photo
    config = mae(load, **preprocessor)
    config.train_dataloader.dataset.pipeline[-1:-1] = steps
    torch.testing.assert_close(look(config, [path]).images[0], pixels, rtol=0, atol=1e-5)
    given = fed(config, [path])[0]
    if 'mean' in preprocessor:
        mean, std = (torch.tensor(NORM[key])[:, None, None] for key in ('mean', 'std'))
        given = given * std + mean
    expected = pixels if model_sees == 'rgb' else pixels.flip(0)
    torch.testing.assert_close(given / 255, expected, rtol=0, atol=1e-5)


def test_grey_images(photo):
    path, _ = photo
    config = mae(dict(FILES, color_type='grayscale'), channels=1, mean=[120.0], std=[60.0])
    observation = look(config, [path])
    assert observation.images.shape == observation.reconstruction.shape == (1, 3, 64, 64)
    grey = torch.from_numpy(np.asarray(Image.open(path).convert('L'))) / 255
    for channel in observation.images[0]:
        torch.testing.assert_close(channel, grey, rtol=0, atol=2 / 255)
    in_memory = mae(None, channels=1, mean=[120.0], std=[60.0])
    torch.testing.assert_close(look(in_memory, [path]).images[0, 0], grey, rtol=0, atol=1e-5)


def test_images_with_an_alpha_channel(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'a.png')
    config = mae(dict(FILES, color_type='unchanged'), channels=4)
    observation = look(config, [str(tmp_path / 'a.png')])
    expected = torch.from_numpy(pixels).permute(2, 0, 1)[:3] / 255
    torch.testing.assert_close(observation.images[0], expected, rtol=0, atol=1e-5)
    assert observation.reconstruction is not None


class LoadBands:
    """A reader of a user's own: bands (H, W, C) from an npz file."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        bands = np.load(results['img_path'])['bands']
        return dict(results, img=bands, img_shape=bands.shape[:2], ori_shape=bands.shape[:2])


class Middle:
    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        return dict(results, img=results['img'][8:72, 8:72])


def test_twelve_bands_of_a_reader_of_its_own(tmp_path: Path) -> None:
    bands = np.random.default_rng(0).normal(3000, 900, (80, 80, 12)).astype(np.float32)
    np.savez(tmp_path / 'a.npz', bands=bands)
    config = mae(dict(type=LoadBands), dict(type=Middle), channels=12)
    model = load_model(config)
    display = display_of(config, model)
    assert display.note.startswith('Channels 0, 1, 2 are shown as red, green and blue (--channels)')
    seen = torch.from_numpy(bands[8:72, 8:72]).permute(2, 0, 1)
    for channels in ((0, 1, 2), (3, 2, 1)):
        shown = look(config, [str(tmp_path / 'a.npz')], channels=channels).images[0]
        for got, channel in zip(shown, channels, strict=True):
            low, high = seen[channel].min(), seen[channel].max()
            torch.testing.assert_close(got, (seen[channel] - low) / (high - low))
    with pytest.raises(ValueError, match=r'--channels \(0, 1, 12\): the model takes channels 0 to'):
        display_of(config, model, (0, 1, 12))


def test_bands_without_a_step_that_reads_them_are_refused(tmp_path: Path) -> None:
    (tmp_path / 'a.png').write_bytes(b'')
    with pytest.raises(ValueError, match='no step of the training pipeline reads files'):
        look(mae(None, channels=12), [str(tmp_path / 'a.png')])


def test_a_crop_keeps_every_band(tmp_path: Path) -> None:
    """A linear ramp stays one: 96 px to 64 px, values and type kept."""
    ramp = np.arange(96, dtype=np.uint16)[None, :, None] * np.arange(1, 13, dtype=np.uint16) * 20
    np.savez(tmp_path / 'a.npz', bands=np.broadcast_to(ramp, (96, 96, 12)))
    config = mae(dict(type=LoadBands), channels=12)
    inputs = load_images(config, load_model(config), [tmp_path / 'a.npz'])['inputs'][0]
    assert inputs.shape == (12, 64, 64) and inputs.dtype == torch.uint16
    columns = (torch.arange(64) + 0.5) * 1.5 - 0.5
    middle = inputs.float()[:, 5, 2:-2] / (20 * torch.arange(1, 13)[:, None])
    torch.testing.assert_close(middle, columns[2:-2].expand(12, -1), rtol=0, atol=0.06)


def perfect(model: Any, loss: Any) -> Any:
    return loss.register_forward_pre_hook(lambda _, args: (args[1], args[1], *args[2:]))


@pytest.fixture
def spark() -> Config:
    """SparK on a tiny ConvNeXt V2; its head has no ``unpatchify`` and no ``loss_module``."""
    bn = dict(type='SparseBatchNorm2d')
    framework = dict(
        type='SparK',
        input_size=64,
        downsample_raito=32,
        mask_ratio=0.75,
        enc_dec_norm_cfg=bn,
        enc_dec_norm_dim=64,
        backbone=dict(
            type='SparseConvNeXt',
            arch=dict(depths=[1, 1, 1, 1], channels=[8, 16, 32, 64]),
            out_indices=(0, 1, 2, 3),
            gap_before_output=False,
        ),
        neck=dict(
            type='SparKLightDecoder', feature_dim=32, upsample_ratio=32, norm_cfg=dict(type='BN')
        ),
        head=dict(
            type='SparKPretrainHead',
            norm_pix=True,
            loss=dict(type='PixelReconstructionLoss', criterion='L2'),
        ),
    )
    config = mae(FILES, to_rgb=True, **NORM)
    config.model = dict(type='PRMIM', framework=framework, throw_ratio=0.25)
    return config


def test_spark_is_reconstructed(spark: Config, photo) -> None:
    path, pixels = photo
    model = load_model(spark)
    perfect(model, model.head.loss)
    batch = load_images(spark, model, [path])
    observation = observe(model, batch, 0, display_of(spark, model))
    torch.testing.assert_close(observation.reconstruction[0], pixels, rtol=0, atol=1e-4)
    assert observation.normalised
    assert panels(observation, 64).width == 5 * 70 + 6


def test_rectangles_are_reconstructed(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 256, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'wide.png')
    config = mae(FILES, dict(CROP, scale=(64, 256)), to_rgb=True)
    config.model.framework.backbone.img_size = (64, 256)
    config.model.framework.neck.num_patches = 64
    model = load_model(config)
    perfect(model, model.head.loss_module)
    batch = load_images(config, model, [tmp_path / 'wide.png'])
    observation = observe(model, batch, 0, display_of(config, model))
    assert observation.roles.shape == (1, 4, 16)
    expected = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    torch.testing.assert_close(observation.reconstruction[0], expected, rtol=0, atol=1e-5)


@pytest.fixture
def checkpoint(tmp_path: Path):
    """Function config -> files of it and of a checkpoint with initial weights."""

    def write(config: Config) -> tuple[str, str]:
        config.dump(tmp_path / 'config.py')
        torch.save({'state_dict': load_model(config).state_dict()}, tmp_path / 'weights.pth')
        return str(tmp_path / 'config.py'), str(tmp_path / 'weights.pth')

    return write


def test_notes_are_about_what_is_drawn(checkpoint, spark: Config, photo, tmp_path: Path) -> None:
    path, _ = photo
    features = dict(
        type='MaskFeat',
        backbone=dict(type='MaskFeatViT', arch=ARCH, img_size=112, patch_size=8),
        neck=dict(type='LinearNeck', in_channels=48, out_channels=27, gap_dim=0),
        head=dict(type='MIMHead', loss=dict(type='PixelReconstructionLoss', criterion='L2')),
        target_generator=dict(type='HOGGenerator', nbins=9, pool=8, gaussian_window=16),
    )
    mask = dict(type='RandomRatioMask', input_size=14, mask_ratio=0.6, variance=0, shape='random')
    maskfeat = mae(FILES, dict(CROP, scale=112), to_rgb=True)  # HOGs come in 14 x 14
    maskfeat.model.framework = features
    maskfeat.train_dataloader.dataset.pipeline.insert(2, mask)
    plain = mae(FILES, to_rgb=True)
    out = str(tmp_path / 'out.png')
    shown = {}
    for name, config, columns in (
        ('spark', spark, 5),
        ('features', maskfeat, 3),
        ('mae', plain, 5),
    ):
        result = CliRunner().invoke(
            show, [*checkpoint(config), path, '--out', out, '--side', '64', '--force']
        )
        assert result.exit_code == 0, result.output
        assert Image.open(out).width == columns * 70 + 6
        shown[name] = result.output.splitlines()[1:]
    assert shown['spark'][0].startswith('The target is normalised: predictions are shown')
    assert shown['features'] == [
        'The model predicts features, not pixels: there is no reconstruction to show.'
    ]
    assert shown['mae'] == []


class MyFlip(RandomFlip):
    pass


JITTER = dict(type='torchvision/ColorJitter', brightness=0.9)


@pytest.mark.parametrize(
    ('crop', 'steps'),
    [
        (CROP, [dict(type='mmpretrain.RandomFlip', prob=1.0), dict(type='Solarize', thr=9)]),
        (dict(CROP, type='mmpretrain.RandomResizedCrop'), [dict(type=MyFlip, prob=1.0)]),
        (CROP, [dict(type='mmcv.RandomFlip', prob=1.0)]),
        (CROP, [dict(type='RandomApply', prob=1.0, transforms=[dict(type='ColorJitter', hue=0.5)])]),
        (TO_PIL, [dict(type='torchvision/RandomResizedCrop', size=64), JITTER]),
        (TO_PIL, [dict(type='MAERandomResizedCrop', size=[64, 64], scale=(0.2, 1.0)), JITTER]),
        (dict(type='RandomCrop', crop_size=64, padding=8), [dict(type='RandAugment', **{
            'policies': 'timm_increasing', 'num_policies': 2, 'magnitude_level': 9,
        })]),
        (CROP, [dict(type='RandomGrayscale', prob=1.0, keep_channels=True)]),
    ],
)  # fmt: skip
def test_augmentations_are_left_out_however_they_are_named(photo, crop, steps):
    path, pixels = photo
    config = mae(FILES, crop, to_rgb=crop is not TO_PIL)
    config.train_dataloader.dataset.pipeline[-1:-1] = steps
    torch.testing.assert_close(look(config, [path]).images[0], pixels, rtol=0, atol=1e-5)


def test_views_are_still_too(photo) -> None:
    """The first view of a MultiView, the two sizes of BEiT's crop."""
    path, pixels = photo
    config = mae(FILES)
    crop = dict(type='MultiView', num_views=[2], transforms=[[CROP, dict(type='RandomFlip')]])
    config.train_dataloader.dataset.pipeline[1] = crop
    views = fed(config, [path])
    assert len(views) == 2 and torch.equal(views[0], views[1])
    torch.testing.assert_close(views[0][0] / 255, pixels.flip(0))
    two = dict(
        type='RandomResizedCropAndInterpolationWithTwoPic', size=64, second_size=32, scale=(0.1, 1)
    )
    config.train_dataloader.dataset.pipeline[1] = two
    views = fed(config, [path])
    assert [view.shape[-1] for view in views] == [64, 32]
    torch.testing.assert_close(views[0][0] / 255, pixels.flip(0))


def test_through_a_wrapper_of_data_sets(photo) -> None:
    path, pixels = photo
    config = mae(FILES, to_rgb=True)
    inner = config.train_dataloader.dataset
    config.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[inner, inner])
    torch.testing.assert_close(look(config, [path]).images[0], pixels, rtol=0, atol=1e-5)


def test_registered_names_are_not_compared_as_text(photo) -> None:
    TRANSFORMS.register_module(name='NotALoader', module=MyFlip, force=True)
    path, pixels = photo
    config = mae(FILES, to_rgb=True)
    config.train_dataloader.dataset.pipeline.insert(2, dict(type='NotALoader', prob=1.0))
    torch.testing.assert_close(look(config, [path]).images[0], pixels, rtol=0, atol=1e-5)

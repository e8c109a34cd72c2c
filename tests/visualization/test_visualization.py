# SPDX-License-Identifier: Apache-2.0
"""What the pictures show is what the model did."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import itpn
from click.testing import CliRunner
from mmengine.config import Config
from PIL import Image
from torch import nn
from torch.testing import assert_close

from prmim_adapters.adapters import attach, partial_of
from prmim_adapters.commands.show import show
from prmim_adapters.visualization import (
    KEPT,
    THROWN,
    VISIBLE,
    Observation,
    display_of,
    image_files,
    load_images,
    load_model,
    observe,
    panels,
)
from prmim_adapters.visualization.display import Display, default_channels
from prmim_adapters.visualization.observe import losses_by_role, recorded

DEMO = Path(__file__).with_name('small_mae.py')


@pytest.fixture
def config() -> Callable[..., Config]:
    """The demo config with changes to its model."""

    def build(**changes: Any) -> Config:
        config = Config.fromfile(DEMO)
        config.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
        return config

    return build


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """A colour photograph's worth of noise and a grey one, in other sizes than the model's."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / 'colour.png', tmp_path / 'grey.png']
    Image.fromarray(rng.integers(0, 255, (120, 180, 3), dtype=np.uint8)).save(paths[0])
    Image.fromarray(rng.integers(0, 255, (96, 96), dtype=np.uint8)).save(paths[1])
    return [str(path) for path in paths]


class Unchanged(nn.Module):
    """A data preprocessor."""

    def forward(self, batch: dict[str, Any], training: bool) -> dict[str, Any]:
        return batch


def look(settings: Config, images: list[str], model: Any = None, seed: int = 0) -> Observation:
    """What ``prmim show`` draws."""
    model = model or load_model(settings)
    batch = load_images(settings, model, images, seed)
    return observe(model, batch, seed, display_of(settings, model))


def test_roles_are_the_partition(config: Callable[..., Config], images: list[str]) -> None:
    settings = config(throw_ratio=0.5)
    observation = look(settings, images)
    counts = [(observation.roles == role).sum(dim=(1, 2)).tolist() for role in range(3)]
    assert counts == [[36, 36], [36, 36], [72, 72]]  # 144 tokens: 75 % masked, half thrown


def test_predictions_of_all_tokens_are_shown_where_they_are() -> None:
    """iTPN's decoder predicts in grid order; upstream's own layout of them is the reference."""
    model = attach(itpn.build_pixel(), 0.5)
    model.data_preprocessor = Unchanged()
    batch = dict(inputs=torch.randn(2, 3, 64, 64), data_samples=None)
    with recorded(model) as (partitions, losses):
        observation = observe(model, batch)
    (pred, target, mask), (partition,) = losses[0], partitions
    assert pred.shape == (2, 64, 192) and partition.thrown.shape == (2, 32)
    parts = losses_by_role(model, partition, pred, target, mask)
    error = (pred - target).square().mean(-1)
    expected = {
        'loss_kept': error.gather(1, partition.kept).mean().item(),
        'loss_thrown': error.gather(1, partition.thrown).mean().item(),
    }
    assert parts == pytest.approx(expected, rel=1e-5)

    patches = model.head.patchify(batch['inputs'])
    mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
    pixels = model.head.unpatchify(pred * (variance + 1e-6).sqrt() + mean)
    display = Display(default_channels(3)).fitted(batch['inputs'])
    masked = (observation.roles != VISIBLE).repeat_interleave(8, 1).repeat_interleave(8, 2)
    shown = torch.where(masked[:, None], display(pixels), display(batch['inputs']))
    assert_close(observation.reconstruction, shown)


def test_visible_pixels_are_the_image(config: Callable[..., Config], images: list[str]) -> None:
    """Un-normalised pixels are those of the file: 96 px, so the crop takes all of it."""
    settings = config()
    observation = look(settings, images)
    grey = torch.from_numpy(np.asarray(Image.open(images[1]))) / 255
    torch.testing.assert_close(observation.images[1, 0], grey, rtol=0, atol=1e-6)
    visible = (observation.roles == VISIBLE).repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert observation.reconstruction is not None
    same = (observation.reconstruction == observation.images).all(dim=1)
    assert same[visible].all()
    assert same[~visible].float().mean() < 0.05


@pytest.mark.parametrize('norm_pix', [True, False])
def test_reconstruction_of_a_perfect_prediction_is_the_image(
    config: Callable[..., Config], images: list[str], norm_pix: bool
) -> None:
    """With the targets in place of the predictions, every pixel comes back where it was."""
    settings = config(**{'framework.head.norm_pix': norm_pix})
    model = load_model(settings)
    hook = model.head.loss_module.register_forward_pre_hook(
        lambda _, args: (args[1], args[1], *args[2:])
    )
    observation = look(settings, images, model)
    hook.remove()
    torch.testing.assert_close(observation.reconstruction, observation.images, rtol=0, atol=1e-5)


def test_plain_partial_reconstruction_leaves_thrown_patches_open(
    config: Callable[..., Config], images: list[str]
) -> None:
    settings = config(aggregator=None, sampler='random')
    observation = look(settings, images)
    assert observation.reconstruction is not None
    unknown = observation.reconstruction.isnan().all(dim=1)
    thrown = (observation.roles == THROWN).repeat_interleave(8, 1).repeat_interleave(8, 2)
    torch.testing.assert_close(unknown, thrown)


def test_observing_changes_nothing(config: Callable[..., Config], images: list[str]) -> None:
    settings = config()
    model = load_model(settings).train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    first = look(settings, images, model, 3)
    second = look(settings, images, model, 3)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training
    assert not partial_of(model)._forward_hooks
    assert not model.head.loss_module._forward_pre_hooks
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert torch.equal(first.roles, second.roles)
    assert not torch.equal(first.roles, look(settings, images, model, 4).roles)


def test_panels_show_the_roles(config: Callable[..., Config], images: list[str]) -> None:
    """Middle of a patch: the colour of its role in the map, grey where hidden."""
    settings = config()
    observation = look(settings, images)
    sheet = np.asarray(panels(observation, side=96))
    top, left, step = 22 + 6, 6, 96 + 6  # header + gap, gap, panel + gap
    expected = {KEPT: (31, 102, 184), THROWN: (245, 168, 64)}
    for index in range(2):
        for row, column in [(0, 0), (5, 7), (11, 11), (3, 9)]:
            y, x = top + index * step + row * 8 + 4, left + column * 8 + 4
            role = int(observation.roles[index, row, column])
            if role == VISIBLE:
                np.testing.assert_array_equal(sheet[y, x + step], sheet[y, x])
            else:
                assert tuple(sheet[y, x + step]) == (204, 204, 204)
                assert tuple(sheet[y, x + 2 * step]) == expected[role]


def test_a_checkpoint_of_another_model_is_refused(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    path = tmp_path / 'other.pth'
    torch.save({'state_dict': {'backbone.cls_token': torch.zeros(1, 1, 192)}}, path)
    with pytest.raises(ValueError, match=r'is not a checkpoint of .*Missing key'):
        load_model(config(), str(path))
    path.write_bytes(b'not a checkpoint')
    with pytest.raises(ValueError, match='cannot be read as a checkpoint'):
        load_model(config(), str(path))


def test_ratio_0_reads_the_checkpoint_of_another_ratio(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    model = load_model(config())
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'own.pth')
    settings = config()
    settings.model.throw_ratio = 0.0
    framework = load_model(settings, str(tmp_path / 'own.pth'))
    for name, value in framework.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_a_crop_of_another_aspect_ratio_takes_the_largest_middle(
    config: Callable[..., Config], images: list[str]
) -> None:
    settings = config()
    settings.train_dataloader.dataset.pipeline[1].scale = (48, 96)
    inputs = load_images(settings, load_model(settings), images)['inputs']
    assert inputs.shape == (2, 3, 48, 96)
    # The grey image has 96 x 96 pixels: nothing to resample.
    np.testing.assert_array_equal(inputs[1, 0], np.asarray(Image.open(images[1]))[24:72])
    # Of the colour image, 120 x 180, rows 15 to 105 count, and no others.
    pixels = np.asarray(Image.open(images[0])).copy()
    pixels[:13], pixels[107:] = 0, 255
    Image.fromarray(pixels).save(images[0])
    assert torch.equal(load_images(settings, load_model(settings), images)['inputs'], inputs)


def in_memory(settings: Config, size: int, **options: Any) -> Config:
    """The config with its data in memory; crops of ``size`` and masks are made on the device."""
    source = dict(type='CustomDataset', pipeline=[dict(type='LoadImageFromFile')])
    settings.train_dataloader.dataset = dict(type='InMemoryImages', dataset=source)
    settings.data_preprocessor.type = 'DeviceAugment'
    settings.data_preprocessor.augment = [
        dict(type='BatchRandomResizedCrop', size=size),
        dict(type='ColorJitter', brightness=0.4),
    ]
    settings.data_preprocessor.update(options)
    return settings


def test_images_of_a_config_with_its_data_in_memory(
    config: Callable[..., Config], images: list[str]
) -> None:
    ordinary, settings = config(), in_memory(config(), 96)
    expected = look(ordinary, images)
    observation = look(settings, images)
    assert torch.equal(observation.images, expected.images)
    assert torch.equal(observation.roles == VISIBLE, expected.roles == VISIBLE)


def test_a_data_set_without_a_pipeline_is_refused(
    config: Callable[..., Config], images: list[str]
) -> None:
    settings = config()
    settings.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[])
    with pytest.raises(ValueError, match='nor one in a data set inside it'):
        look(settings, images)


def test_command(config: Callable[..., Config], images: list[str], tmp_path: Path) -> None:
    checkpoint, out = tmp_path / 'epoch.pth', tmp_path / 'pictures' / 'out.png'
    torch.save({'state_dict': load_model(config()).state_dict()}, checkpoint)
    arguments = [str(DEMO), str(checkpoint), *images, '--out', str(out), '--side', '96']
    result = CliRunner().invoke(show, arguments)
    assert result.exit_code == 0, result.output
    assert Image.open(out).size == (5 * 102 + 6, 22 + 2 * 102 + 6 + 26)  # one line of legend


def test_weights_that_diverged_are_not_drawn(config: Callable[..., Config], tmp_path: Path) -> None:
    weights = load_model(config()).state_dict()
    weights['neck.mask_token'][0, 0, 3] = float('nan')
    torch.save({'state_dict': weights}, tmp_path / 'nan.pth')
    with pytest.raises(ValueError, match=r'nan.pth: neck.mask_token is not finite'):
        load_model(config(), str(tmp_path / 'nan.pth'))


def test_a_picture_does_not_replace_what_it_is_of(images: list[str]) -> None:
    before = Path(images[0]).read_bytes()
    checkpoint = Path(images[0]).with_name('epoch.pth')
    checkpoint.touch()
    arguments = [str(DEMO), str(checkpoint), *images, '--out', images[0], '--force']
    result = CliRunner().invoke(show, arguments)
    assert result.exit_code == 2 and 'which is read' in result.output
    assert Path(images[0]).read_bytes() == before


def png(width: int, height: int) -> bytes:
    """A PNG that says this size and has no pixels."""
    chunks = {b'IHDR': struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0), b'IDAT': b''}
    parts = [
        struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
        for name, data in chunks.items()
    ]
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


@pytest.mark.parametrize(
    ('content', 'what'),
    [
        (b'', 'error'),
        (b'text', 'AssertionError: failed to load'),
        (png(20_000, 20_000), 'DecompressionBombError'),
        (png(64, 64), ''),
        (b'GIF89a' + bytes(40), ''),
    ],
    ids=['empty', 'text', '20,000 px', 'no pixels', 'gif'],
)
def test_a_damaged_image_is_named(
    config: Callable[..., Config], tmp_path: Path, content: bytes, what: str
) -> None:
    path = tmp_path / 'damaged.png'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f'damaged.png cannot be read as an image: {what}'):
        load_images(config(), load_model(config()), [path])


@pytest.fixture
def simmim(tmp_path: Path) -> Config:
    """SimMIM on a small Swin, whose adapter predicts a column of patches; masks from the data."""
    path = tmp_path / 'simmim.py'
    path.write_text(
        "_base_ = 'mmpretrain::simmim/simmim_swin-base-w6_8xb256-amp-coslr-100e_in1k-192px.py'\n"
        "custom_imports = dict(imports=['prmim_adapters.openmmlab'], allow_failed_imports=False)\n"
        "model = dict(_delete_=True, type='PRMIM', framework={{_base_.model}}, throw_ratio=0.5)\n"
    )
    config = Config.fromfile(path)
    arch = dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1])
    config.model.framework.backbone.arch = arch
    config.model.framework.neck.in_channels = 64
    return config


@pytest.mark.parametrize('norm_window', [None, 47])
def test_simmim_patches_come_back_where_they_were(
    simmim: Config, images: list[str], norm_window: int | None
) -> None:
    if norm_window:
        simmim.model.framework.head.update(type='NormTargetSimMIMHead', norm_window=norm_window)
    model = load_model(simmim)
    hook = model.head.loss_module.register_forward_pre_hook(
        lambda _, args: (args[1], args[1], *args[2:])
    )
    observation = look(simmim, images, model)
    hook.remove()
    counts = [(observation.roles == role).sum(dim=(1, 2)).tolist() for role in range(3)]
    assert counts == [[14, 14], [4, 4], [18, 18]]  # 36 units, 22 masked, 18 thrown
    assert observation.normalised == bool(norm_window)
    torch.testing.assert_close(observation.reconstruction, observation.images, rtol=0, atol=1e-5)


def test_ratio_0_is_said_to_have_nothing_to_show(simmim: Config, images: list[str]) -> None:
    simmim.model.throw_ratio = 0.0
    with pytest.raises(ValueError, match='throw_ratio=0'):
        look(simmim, images)


def test_no_image_is_a_program_for_ghostscript(
    simmim: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran, gs, picture = (tmp_path / name for name in ('ran', 'gs', 'a.png'))
    gs.write_text(f'#!/bin/sh\ntouch {ran}\n')
    gs.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    picture.write_bytes(
        b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n%%EOF\n'
    )
    settings = in_memory(simmim, 192)
    settings.train_dataloader.dataset.dataset.pipeline = []  # as CIFAR's: no step reads files
    with pytest.raises(
        ValueError, match=r'a\.png cannot be read as an image: UnidentifiedImageError'
    ):
        load_images(settings, load_model(settings), [picture])
    assert not ran.exists()
    (tmp_path / 'b.eps').write_bytes(picture.read_bytes())
    (tmp_path / 'c.pdf').touch()
    assert image_files([tmp_path]) == [picture]


def test_masks_that_the_device_draws_are_drawn(simmim: Config, images: list[str]) -> None:
    *_, generator, _ = simmim.train_dataloader.dataset.pipeline
    settings = in_memory(simmim, 192, mask_generator=generator)
    roles = look(settings, images).roles
    counts = [(roles == role).sum(dim=(1, 2)).tolist() for role in range(3)]
    assert counts == [[14, 14], [4, 4], [18, 18]]  # 36 units, 22 masked, 18 thrown

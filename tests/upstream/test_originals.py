# SPDX-License-Identifier: Apache-2.0
"""What the contract matrix does not ask of the original repositories' classes and shims."""

import logging
from types import SimpleNamespace

import pytest
import torch
from contract_case import images
from originals import build_fcmae, build_ibot, build_simmim_swin, build_simmim_vit, unit_masks
from originals_declared import build_audiomae, build_videomae_v2, masks, unfolded
from torch.testing import assert_close

import prmim_adapters as prmim
from prmim_adapters.upstream.shims import SHIMS


def test_simmim_with_a_bias_in_every_block_is_refused(upstream_modules):
    upstream_modules('simmim')
    model = build_simmim_vit(use_shared_rel_pos_bias=False, use_rel_pos_bias=True)
    with pytest.raises(ValueError, match='USE_RPB=True'):
        prmim.attach(model)


def test_simmim_with_a_mask_that_cuts_units_is_refused(upstream_modules):
    upstream_modules('simmim')
    model = prmim.attach(build_simmim_swin())
    with pytest.raises(ValueError, match='not constant inside'):
        model(images(size=48), unit_masks(22, 2, side=12))


SIMMIM = {'vit': (build_simmim_vit, 4, 12), 'swin': (build_simmim_swin, 8, 24)}


@pytest.mark.parametrize('kind', SIMMIM)
def test_simmim_with_a_reconstruction_of_another_size_is_refused(upstream_modules, kind):
    upstream_modules('simmim')
    build, stride, _ = SIMMIM[kind]
    model = build()
    model.encoder_stride = 2 * stride
    with pytest.raises(ValueError, match=rf'encoder_stride={2 * stride}.*_stride={stride}$'):
        prmim.attach(model)


@pytest.mark.parametrize('kind', SIMMIM)
@pytest.mark.parametrize('shape', [(3, 36), (3, 6, 6), (3, 48, 48)])
def test_simmim_with_a_mask_of_another_size_is_refused(upstream_modules, kind, shape):
    upstream_modules('simmim')
    build, _, side = SIMMIM[kind]
    with pytest.raises(ValueError, match=rf'mask of shape .*expected \(B, {side}, {side}\)'):
        prmim.attach(build())(images(size=48), torch.ones(shape))


def test_fcmae_without_a_visible_unit_is_refused(upstream_modules):
    upstream_modules('convnextv2')
    with pytest.raises(ValueError, match='no unit is left to compute'):
        prmim.attach(build_fcmae())(images(size=128), mask_ratio=1.0)


@pytest.mark.parametrize('dtype', [torch.int64, torch.float32])
def test_ibot_with_masks_of_numbers_is_refused(upstream_modules, dtype):
    """Upstream itself takes integers for indices of rows."""
    upstream_modules('ibot')
    crops, masks = [images(2)], [torch.zeros(2, 8, 8, dtype=dtype)]
    with pytest.raises(TypeError, match=rf'mask of {dtype}: expected torch\.bool'):
        prmim.attach(build_ibot(), throw_ratio=0.5)(crops, mask=masks)


def test_ibot_local_crops_and_empty_masks(upstream_modules):
    upstream_modules('ibot')
    upstream, ours = build_ibot(), prmim.attach(build_ibot(), throw_ratio=0.5)
    ours.load_state_dict(upstream.state_dict(), strict=False)
    crops, empty = [images(2)], [torch.zeros(2, 8, 8, dtype=torch.bool)]
    expected, actual = upstream(crops, mask=empty), ours(crops, mask=empty)
    assert torch.equal(actual[1], expected[1])
    (actual[0].sum() + actual[1].sum()).backward()
    assert [n for n, p in ours.named_parameters() if p.requires_grad and p.grad is None] == []
    for model in (upstream, ours):
        model.backbone.masked_im_modeling = False
    local = [images(2, 16)]
    assert torch.equal(ours(local)[0], upstream(local)[0])


def test_ibot_teacher_and_swin_are_refused(upstream_modules):
    upstream_modules('ibot')
    with pytest.raises(ValueError, match='this is the teacher'):
        prmim.attach(build_ibot(masked_im_modeling=False))
    import models
    import utils

    swin = utils.MultiCropWrapper(models.swin_tiny(window_size=7, masked_im_modeling=True))
    with pytest.raises(TypeError, match='not Swin'):
        prmim.attach(swin)


def test_fcmae_encoder_equals_this_packages(upstream_modules):
    """The stand-in for MinkowskiEngine against mmpretrain's dense masked ConvNeXt, weights remapped."""
    fcmae = pytest.importorskip('prmim_adapters.frameworks.fcmae')
    upstream_modules('convnextv2')
    import utils

    torch.manual_seed(0)
    theirs = build_fcmae().encoder
    for module in theirs.modules():
        for name in ('kernel', 'gamma', 'beta'):
            if hasattr(module, name):
                torch.nn.init.normal_(getattr(module, name), std=0.3)
    ours = fcmae.FCMAEConvNeXt(
        arch=dict(depths=[1, 1, 1, 1], channels=[8, 12, 16, 24]),
        img_size=128,
        mask_ratio=0.6,
        execution='dense',
        grn_scope='batch',
    )
    state = utils.remap_checkpoint_keys({f'encoder.{k}': v for k, v in theirs.state_dict().items()})
    ours.load_state_dict(
        {
            k.replace('dwconv', 'depthwise_conv').replace('pwconv', 'pointwise_conv'): v.flatten()
            if 'grn' in k
            else v
            for k, v in state.items()
        }
    )
    order = torch.rand(3, 16, generator=torch.Generator().manual_seed(0)).argsort(1)
    mask = torch.ones(3, 16).scatter(1, order[:, :6], 0.0)
    expected = ours(images(size=128), mask.bool())[0]
    assert_close(theirs(images(size=128), mask), expected, rtol=1e-4, atol=1e-4)


def test_mae_linear_probe_crops(upstream_modules, monkeypatch):
    functional = pytest.importorskip('torchvision.transforms.functional')
    folder = upstream_modules('mae')
    from util.crop import RandomResizedCrop

    shown = getattr(functional, '_get_image_size', None)
    monkeypatch.setattr(functional, '_get_image_size', shown, raising=False)
    if shown is None:
        del functional._get_image_size
    SHIMS['torchvision-image-size'](folder / 'main_linprobe.py', [])
    assert RandomResizedCrop(8)(torch.rand(3, 5, 30)).shape == (3, 8, 8)
    top, left, height, width = RandomResizedCrop.get_params(torch.rand(3, 5, 30), (1, 1), (6, 6))
    assert (top, left, height, width) == (0, 0, 5, 30)


def test_simmim_fine_tuning_with_another_window(upstream_modules, monkeypatch):
    """Position biases that rise linearly rise as they did, from window 6 to 7 and 6 x 6 to 7 x 7."""
    interpolate = pytest.importorskip('scipy.interpolate')
    folder = upstream_modules('simmim')
    import utils

    monkeypatch.setattr(interpolate, 'interp2d', getattr(interpolate, 'interp2d', None))
    SHIMS['scipy-interp2d'](folder / 'main_finetune.py', [])

    def ramp(positions):
        y, x = torch.meshgrid(positions, positions, indexing='ij')
        return torch.stack([2 * x - y, x + 3 * y + 1], -1).flatten(0, 1)

    root = torch.linalg.eigvals(  # 1 + r + r^2 + r^3 + r^4 = 6: upstream's distances end at 6
        torch.tensor(
            [[-1.0, -1, -1, 5], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], dtype=torch.double
        )
    )
    r = root.real[(root.imag == 0) & (root.real > 1)]
    distances = torch.cat([r**i for i in range(5)]).cumsum(0)
    before = ramp(torch.cat([-distances.flip(0), torch.zeros(1), distances])).float()
    expected = ramp(torch.arange(-6.0, 7))

    key = 'relative_position_bias_table'
    swin = SimpleNamespace(state_dict=lambda: {key: torch.zeros(13 * 13, 2)})
    tables = utils.remap_pretrained_keys_swin(swin, {key: before}, logging.getLogger())
    assert_close(tables[key], expected, rtol=0, atol=1e-4)

    extra = torch.tensor([[7.0, 8.0]] * 3)
    name = f'blocks.0.attn.{key}'
    vit = SimpleNamespace(
        get_num_layers=lambda: 1,
        patch_embed=SimpleNamespace(patch_shape=(7, 7)),
        state_dict=lambda: {name: torch.zeros(13 * 13 + 3, 2)},
    )
    shared = {f'rel_pos_bias.{key}': torch.cat([before, extra])}
    tables = utils.remap_pretrained_keys_vit(vit, shared, logging.getLogger())
    assert_close(tables[name], torch.cat([expected, extra]), rtol=0, atol=1e-4)


def test_videomae_v2_with_a_decoder_mask_of_its_own_is_refused(upstream_modules):
    upstream_modules('videomae-v2')
    model = prmim.attach(build_videomae_v2())
    clips, mask = unfolded(torch.randn(2, 6, 128, 16), 8, 2), masks(32, 24, batch=2)
    assert model(clips, mask).shape == model(clips, mask, ~mask).shape == (2, 24, 384)
    left_out = ~mask | (torch.rand(2, 32) < 0.5)
    with pytest.raises(ValueError, match='decode_mask leaves masked tokens out'):
        model(clips, mask, left_out)


def test_audiomae_with_windows_is_refused(upstream_modules):
    upstream_modules('audiomae')
    model = build_audiomae()
    assert prmim.adapters.ADAPTERS.find(type(model)).endswith('(AudioMAE)')
    model.decoder_mode = 1
    with pytest.raises(ValueError, match='decoder_mode=1: the decoder has windows'):
        prmim.attach(model)

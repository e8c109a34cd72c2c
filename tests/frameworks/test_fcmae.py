# SPDX-License-Identifier: Apache-2.0
"""FCMAE against the original's code, and its way into mmpretrain's ConvNeXt V2 classifier."""

from __future__ import annotations

import pytest
import torch
from mmpretrain.registry import MODELS
from torch.testing import assert_close

from prmim_adapters.accounting import count_macs
from prmim_adapters.frameworks.fcmae import FCMAEConvNeXt, masked_units

ARCH = {'depths': [1, 1, 2, 1], 'channels': [8, 16, 24, 32]}
VISIBLE = torch.tensor([[0, 4, 5], [1, 2, 7]])


def config(arch=ARCH, embed_dim=32, decoder_embed_dim=16, **backbone):
    return {
        'type': 'FCMAE',
        'backbone': {'type': 'FCMAEConvNeXt', 'arch': arch, **backbone},
        'neck': {
            'type': 'FCMAEPretrainDecoder',
            'embed_dim': embed_dim,
            'decoder_embed_dim': decoder_embed_dim,
        },
        'head': {
            'type': 'MAEPretrainHead',
            'norm_pix': True,
            'patch_size': 32,
            'loss': {'type': 'PixelReconstructionLoss', 'criterion': 'L2'},
        },
    }


def wave_weights(model):
    """Weights that any implementation can reproduce: one sine wave per parameter name."""
    state = model.state_dict()
    for i, name in enumerate(sorted(state)):
        wave = torch.arange(state[name].numel(), dtype=torch.float64) * 0.7 + i
        is_norm = name.endswith('norm.weight') or name == 'backbone.downsample_layers.0.1.weight'
        state[name].copy_(float(is_norm) + 0.2 * torch.sin(wave).reshape(state[name].shape))


def wave_images(size=96):
    wave = torch.sin(torch.arange(2 * 3 * size * size, dtype=torch.float64) * 0.013)
    return wave.reshape(2, 3, size, size).float()


@pytest.mark.parametrize('execution', ['packed', 'dense'])
def test_equals_the_original_implementation(execution, monkeypatch):
    # Golden numbers: models/fcmae.py of facebookresearch/ConvNeXt-V2 at 2553895 with depths
    # [1, 1, 2, 1], dims [8, 16, 24, 32], decoder_embed_dim 16, norm_pix_loss, img_size 96, the
    # weights of wave_weights (translated as its remap_checkpoint_keys does), these
    # images and these visible units. Its MinkowskiEngine was replaced by dense convolutions on
    # zero-filled maps; normalisation, blocks, decoder and loss ran as published.
    model = MODELS.build(config(img_size=96, execution=execution))
    wave_weights(model)
    monkeypatch.setattr(model.backbone, 'random_visible', lambda batch, device: VISIBLE)
    latent, mask, visible = model.backbone(wave_images())
    assert torch.equal(mask, masked_units(VISIBLE, 9)) and torch.equal(visible, VISIBLE)
    pred = model.neck(latent, visible)
    assert pred.shape == (2, 9, 3072)
    golden = [1.4121451, -1.3860111, 0.7395569, -1.4138554, 0.9377323, -0.7230902]
    maps = pred.transpose(1, 2).flatten()
    assert_close(maps[::3001][:6], torch.tensor(golden), rtol=1e-5, atol=1e-5)
    loss = model.loss(wave_images(), None)['loss']
    assert_close(loss.item(), 2.0449342728, rtol=1e-6, atol=0)
    loss.backward()
    grad = model.backbone.stages[0][0].grn.gamma.grad[:4]
    golden = [1.4203887e-06, 1.8572935e-06, 1.7207049e-07, -6.6594083e-07]
    assert_close(grad, torch.tensor(golden), rtol=2e-4, atol=0)


def test_mask_has_the_originals_count_and_is_uniform():
    backbone = FCMAEConvNeXt(arch=ARCH)
    assert backbone.num_visible == 19  # int(49 * 0.4)
    torch.manual_seed(0)
    visible = backbone.random_visible(4000, torch.device('cpu'))
    assert visible.shape == (4000, 19)
    assert (visible[:, 1:] > visible[:, :-1]).all()
    share = masked_units(visible, 49).float().mean(dim=0)
    assert_close(share, torch.full((49,), 30 / 49), rtol=0, atol=0.04)


def test_a_given_mask_is_used():
    backbone = FCMAEConvNeXt(arch=ARCH, img_size=96)
    _, mask, visible = backbone(wave_images(), masked_units(VISIBLE, 9))
    assert torch.equal(mask, masked_units(VISIBLE, 9)) and torch.equal(visible, VISIBLE)


@pytest.mark.parametrize('scope', ['batch', 'image', 'image_with_inactive'])
@pytest.mark.parametrize('execution', ['packed', 'dense'])
def test_weights_load_into_the_classifier_with_equal_features(scope, execution):
    model = MODELS.build(config(img_size=96, execution=execution, grn_scope=scope))
    wave_weights(model)
    classifier = MODELS.build(
        {
            'type': 'ImageClassifier',
            'backbone': {
                'type': 'ConvNeXt',
                'arch': ARCH,
                'use_grn': True,
                'layer_scale_init_value': 0.0,
                'gap_before_final_norm': False,
            },
            'neck': None,
            'head': {'type': 'LinearClsHead', 'num_classes': 5, 'in_channels': 32},
        }
    )
    missing, unexpected = classifier.load_state_dict(model.state_dict(), strict=False)
    assert set(missing) == {
        'backbone.norm3.weight',  # the pre-training has no final norm
        'backbone.norm3.bias',
        'head.fc.weight',
        'head.fc.bias',
    }
    assert all(name.startswith('neck.') for name in unexpected)
    # features before the final norm; images of another size than in pre-training
    seen = []
    classifier.backbone.stages[3].register_forward_hook(
        lambda module, args, output: seen.append(output)
    )
    images = wave_images(128)
    classifier.extract_feat(images)
    (features,) = model.extract_feat(images)
    assert_close(features, seen[0], rtol=1e-5, atol=1e-4)


def test_loss_reads_masked_units_only():
    torch.manual_seed(0)
    model = MODELS.build(config(img_size=96))
    model.init_weights()
    seen = []
    model.head.loss_module.register_forward_pre_hook(lambda module, args: seen.append(args))
    loss = model.loss(wave_images(), None)['loss']
    pred, target, mask = seen[0]
    squared = ((pred - target) ** 2).mean(-1)
    assert mask.sum().item() == 2 * 6
    assert_close(loss, squared[mask].mean())
    # norm_pix: targets of one patch have mean 0 and variance 1
    assert_close(target.mean(-1), torch.zeros(2, 9), rtol=0, atol=1e-5)
    assert_close(target.var(-1), torch.ones(2, 9), rtol=1e-4, atol=0)


def test_non_square_images():
    backbone = FCMAEConvNeXt(arch=ARCH, img_size=(64, 160))
    latent, mask, visible = backbone(torch.randn(2, 3, 64, 160))
    assert latent.shape == (2, 32, 2, 5)
    assert visible.shape == (2, 4)
    norms = latent.abs().sum(1).flatten(1)
    assert torch.equal(norms == 0, mask)


def test_units_of_images_that_are_not_square():
    """Those of a rectangle are the squares' that it is cut of."""
    head = MODELS.build({**config()['head'], 'norm_pix': False})
    square = torch.randn(2, 3, 96, 96)
    units = head.patchify(square)
    assert torch.equal(head.patchify(square[:, :, :64]), units[:, :6])
    columns = units.unflatten(1, (3, 3))[:, :, :1].flatten(1, 2)
    assert torch.equal(head.patchify(square[..., :32]), columns)


@pytest.mark.parametrize('ratio', [0.0, 0.95, 1.0])
def test_masks_of_nothing_or_everything_are_refused(ratio):
    with pytest.raises(ValueError, match=rf'mask_ratio={ratio} leaves'):
        FCMAEConvNeXt(arch=ARCH, img_size=96, mask_ratio=ratio)
    with pytest.raises(TypeError, match=r"mask_ratio='0\.5'"):
        FCMAEConvNeXt(arch=ARCH, img_size=96, mask_ratio='0.5')


@pytest.mark.slow
@pytest.mark.parametrize(
    ('arch', 'width', 'dense', 'at_most'),
    [('tiny', 768, 4.461, 0.43), ('base', 1024, 15.366, 0.42)],
)
def test_packed_encoder_macs(arch, width, dense, at_most):
    batch = {'inputs': torch.randn(2, 3, 224, 224), 'data_samples': None}
    full = count_macs(MODELS.build(config(arch, width, 512, execution='dense')), batch)
    packed = count_macs(MODELS.build(config(arch, width, 512)), batch)
    assert full.by_module['backbone'] / 1e9 == pytest.approx(dense, rel=2e-4)
    assert packed.by_module['backbone'] <= at_most * full.by_module['backbone']
    assert packed.by_module['backbone'] == pytest.approx(closed_form(arch), rel=1e-4)


def closed_form(arch, visible=19):
    """MACs per image of the packed encoder, from the layer shapes."""
    settings = FCMAEConvNeXt.arch_settings[arch]
    macs, before = 0, 3
    for i, (depth, width) in enumerate(zip(settings['depths'], settings['channels'], strict=True)):
        side = 8 // 2**i
        tokens, kernel = visible * side**2, 4 if i == 0 else 2
        macs += tokens * kernel**2 * before * width
        # LayerNorm counts 5 per element; it follows the stem and precedes the other convolutions
        macs += 5 * (tokens * width if i == 0 else tokens * 4 * before)
        pointwise = tokens * (8 * width**2 + 5 * width)
        depthwise = 49 * (7 * side) ** 2 * width
        macs += depth * (pointwise + depthwise)
        before = width
    return macs


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'img_size': 100}, 'is not a multiple of the masked unit of 32 pixels'),
        ({'img_size': (64, 96), 'execution': 'dense'}, 'take square images only'),
    ],
)
def test_sizes_that_cannot_be_masked_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FCMAEConvNeXt(arch=ARCH, **options)


def test_images_of_another_size_are_refused_under_a_mask():
    with pytest.raises(ValueError, match=r'images of \(64, 64\) pixels, but img_size=\(96, 96\)'):
        FCMAEConvNeXt(arch=ARCH, img_size=96)(torch.zeros(1, 3, 64, 64))

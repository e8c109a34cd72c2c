# SPDX-License-Identifier: Apache-2.0
"""SimMIMViT against the original implementation, and its way into mmpretrain's fine-tuning."""

from __future__ import annotations

import pytest
import small_models
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from prmim_adapters.frameworks.simmim_vit import SimMIMViT

ARCH = {'embed_dims': 32, 'num_layers': 2, 'num_heads': 4, 'feedforward_channels': 128}


@pytest.fixture
def model():
    backbone = {'type': 'SimMIMViT', 'arch': ARCH, 'img_size': 64, 'patch_size': 16}
    return MODELS.build(small_models.simmim(backbone, 32, stride=16, cell=16))


@pytest.fixture
def images():
    return (
        torch.sin(torch.arange(2 * 3 * 64 * 64, dtype=torch.float64) * 0.013)
        .reshape(2, 3, 64, 64)
        .float()
    )


@pytest.fixture
def mask():
    units = torch.tensor([[[0, 1], [1, 0]], [[1, 0], [0, 1]]])
    return units.repeat_interleave(2, 1).repeat_interleave(2, 2)


def wave_weights(model):
    """Weights that any implementation can reproduce: one sine wave per parameter name."""
    state = model.state_dict()
    for i, name in enumerate(sorted(state)):
        if state[name].is_floating_point():
            wave = torch.arange(state[name].numel(), dtype=torch.float64) * 0.7 + i
            centre = 1.0 if name.endswith(('ln1.weight', 'ln2.weight')) else 0.0
            state[name].copy_(centre + 0.1 * torch.sin(wave).reshape(state[name].shape))


def loss_of(model, images, mask):
    return model.loss(images, [DataSample().set_mask(m) for m in mask])['loss']


def test_equals_the_original_implementation(model, images, mask):
    # Golden numbers: models/simmim.py of microsoft/SimMIM at d3e29bc, built with img_size=64,
    # embed_dim=32, depth=2, num_heads=4 and the switches of its ViT-B pre-training config, given
    # the weights of wave_weights (names translated), these images and this mask, in eval mode.
    wave_weights(model)
    model.eval()
    with torch.no_grad():
        (features,) = model.backbone(images, mask)
        loss = loss_of(model, images, mask)
    assert features.shape == (2, 32, 4, 4)
    golden = [0.15102144, 1.61936831, 1.11222518, 0.05426133, 1.61917543, 1.60739362]
    torch.testing.assert_close(features[:, :3].flatten()[::13][:6], torch.tensor(golden))
    torch.testing.assert_close(loss.item(), 1.2771567106, rtol=1e-6, atol=0)


def test_loss_ignores_visible_pixels_of_the_target(model, images, mask):
    model.init_weights()
    model.train()
    seen = loss_of(model, images, mask)
    pixels = mask.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None]
    (features,) = model.backbone(images, mask)
    prediction = model.neck(features)
    by_hand = ((prediction - images).abs() * pixels).sum() / pixels.sum() / 3
    torch.testing.assert_close(seen, by_hand)


def test_default_initialisation_is_the_original_one():
    backbone = SimMIMViT(arch={**ARCH, 'num_layers': 4}, img_size=64, patch_size=16)
    backbone.init_weights()
    assert backbone.mask_token.abs().max() > 0
    assert backbone.cls_token.abs().max() > 0
    for depth, layer in enumerate(backbone.layers, start=1):
        scale = 0.02 / (2 * depth) ** 0.5
        assert layer.ffn.layers[1].weight.std().item() == pytest.approx(scale, rel=0.1)
        assert layer.attn.proj.weight.std().item() == pytest.approx(scale, rel=0.1)
        assert layer.gamma_1.unique().tolist() == pytest.approx([0.1])


def test_checkpoint_fine_tunes_in_mmpretrain(model, images, tmp_path):
    model.init_weights()
    torch.nn.init.normal_(model.backbone.rel_pos_bias.relative_position_bias_table)
    torch.save(model.state_dict(), tmp_path / 'simmim.pth')
    tuned = MODELS.build(
        {
            'type': 'BEiTViT',
            'arch': ARCH,
            'img_size': 64,
            'patch_size': 16,
            'use_rel_pos_bias': True,
            'init_cfg': {
                'type': 'Pretrained',
                'checkpoint': str(tmp_path / 'simmim.pth'),
                'prefix': 'backbone.',
            },
        }
    )
    tuned.init_weights()
    tuned.eval()
    model.eval()
    tuned.out_type = 'raw'
    with torch.no_grad():
        (expected,) = model.extract_feat(images)
        (found,) = tuned(images)
    # The fine-tuning network has no final norm over tokens; apply the pre-trained one.
    torch.testing.assert_close(model.backbone.ln1(found), expected)


def test_refuses_a_mask_off_the_patch_grid(model, images):
    with pytest.raises(ValueError, match=r'mask is \(2, 2\), the patch grid \(4, 4\)'):
        model.backbone(images, torch.ones(2, 2, 2, dtype=torch.long))

# SPDX-License-Identifier: Apache-2.0
"""mmpretrain's MAE and iTPN on images that are not square, with and without partial reconstruction."""

from __future__ import annotations

import pytest
import small_models
import torch
from mmpretrain.models import MAEPretrainHead
from mmpretrain.models.utils import build_2d_sincos_position_embedding
from mmpretrain.registry import MODELS
from mmpretrain.utils import register_all_modules

import prmim_adapters as prmim
from prmim_adapters.accounting import make_batch
from prmim_adapters.accounting.report import compare
from prmim_adapters.accounting.variants import variants_of
from prmim_adapters.adapters import partial_of
from prmim_adapters.frameworks import cross_mae  # noqa: F401, registers CrossMAE
from prmim_adapters.frameworks.rectangles import allow_rectangles

register_all_modules()
allow_rectangles()


def build(img_size, num_patches, head='MAEPretrainHead', settings_only=False, **changes):
    torch.manual_seed(0)
    framework = small_models.mae(
        img_size,
        16,
        width=48,
        depth=2,
        heads=3,
        neck=dict(num_patches=num_patches),
        head=dict(norm_pix=True),
    )
    framework['head'] = head if isinstance(head, dict) else {**framework['head'], 'type': head}
    if settings_only:
        return framework
    model = MODELS.build({**framework, **changes})
    model.init_weights()
    return model


def positions_by_hand(grid, width):
    """Rows by the first half of the channels, columns by the second: sine, then cosine."""
    omega = 10000.0 ** -(torch.arange(width // 4) / (width // 4))
    found = []
    for row in range(grid[0]):
        for column in range(grid[1]):
            y, x = row * omega, column * omega
            found.append(torch.cat((y.sin(), y.cos(), x.sin(), x.cos())))
    return torch.stack(found)


HIVIT = dict(
    arch=dict(embed_dims=32, depths=[1, 1, 2], num_heads=2), img_size=(64, 256), patch_size=16
)


def build_hivit(framework):
    backbone = dict(HIVIT, type='MAEHiViT' if framework == 'MAE' else 'iTPNHiViT')
    neck = dict(
        type='MAEPretrainDecoder' if framework == 'MAE' else 'iTPNPretrainDecoder',
        num_patches=64,
        embed_dim=32,
        decoder_embed_dim=48,
        decoder_depth=1,
        decoder_num_heads=3,
    )
    if framework == 'iTPN':
        backbone |= dict(reconstruction_type='pixel', out_indices=[1])
        neck |= dict(reconstruction_type='pixel', fpn_dim=16, fpn_depth=1)
    return build((64, 256), 64, type=framework, backbone=backbone, neck=neck)


@pytest.mark.parametrize('framework', ['MAE', 'iTPN'])
def test_hivit_has_the_positions_of_the_grid_in_every_pass(framework):
    """Of 4 x 16 patches upstream would stretch a square of 8 x 8 in each."""
    model = build_hivit(framework)
    backbone, images = model.backbone, torch.randn(2, 3, 64, 256)
    expected = positions_by_hand((4, 16), 32)
    found = backbone.interpolate_pos_encoding(torch.zeros(2, 64, 32), 64, 256)
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-5)
    tables = model.neck.decoder_pos_embed[0, -64:]
    torch.testing.assert_close(tables, positions_by_hand((4, 16), 48), rtol=0, atol=1e-5)
    prmim.attach(model, 0.25)
    assert partial_of(model).grid == (4, 16)
    assert model.loss(images, None)['loss'].isfinite()


@pytest.mark.parametrize(('img_size', 'grid'), [((64, 256), (4, 16)), ((32, 64), (2, 4))])
def test_initial_positions_are_those_of_the_grid(img_size, grid):
    """Of 64 patches, upstream's are those of 8 x 8; of 8 patches it has none."""
    model = build(img_size, grid[0] * grid[1])
    expected = positions_by_hand(grid, 48)
    for table in (model.backbone.pos_embed, model.neck.decoder_pos_embed):
        torch.testing.assert_close(table[0, 1:], expected, rtol=0, atol=1e-5)
        assert not table[0, 0].any()


def test_squares_keep_mmpretrains_positions_and_patches():
    model = build(64, 16)
    expected = build_2d_sincos_position_embedding(4, 48, cls_token=True)
    assert torch.equal(model.backbone.pos_embed, expected)
    assert torch.equal(model.neck.decoder_pos_embed, expected)
    images = torch.randn(2, 3, 64, 64)
    patches = torch.einsum('nchpwq->nhwpqc', images.reshape(2, 3, 4, 16, 4, 16)).reshape(2, 16, -1)
    assert torch.equal(model.head.patchify(images), patches)
    assert torch.equal(model.head.unpatchify(patches), images)


def test_patches_of_a_rectangle_are_those_of_the_squares_in_it():
    head = build((64, 256), 64).head
    images = torch.randn(2, 3, 64, 256)
    patches = head.patchify(images).unflatten(1, (4, 16))
    for left in range(4):
        square = head.patchify(images[..., 64 * left : 64 * left + 64]).unflatten(1, (4, 4))
        assert torch.equal(patches[:, :, 4 * left : 4 * left + 4], square)


MFF = dict(
    type='MFFViT',
    arch=small_models.arch(48, 2, 3),
    img_size=(64, 128),
    patch_size=16,
    out_indices=[0, 1],
)


@pytest.mark.parametrize('backbone', [None, MFF])
@pytest.mark.parametrize('ratio', [0.0, 0.25])
def test_losses_are_finite_and_ratio_0_is_the_frameworks(backbone, ratio):
    changes = {} if backbone is None else dict(type='MFF', backbone=backbone)
    framework, ours = (build((64, 128), 32, **changes) for _ in range(2))
    prmim.attach(ours, ratio)
    assert partial_of(ours).grid == (4, 8)
    images, losses = torch.randn(2, 3, 64, 128), []
    for model in (framework, ours):
        torch.manual_seed(1)
        losses.append(model.loss(images, None)['loss'])
    losses[1].backward()
    assert torch.isfinite(losses[1])
    if ratio == 0:
        assert torch.equal(*losses)


def test_the_cost_of_a_rectangle_is_compared_with_the_frameworks():
    model = prmim.attach(build((64, 256), 64), 0.5)
    report = compare(variants_of(model), make_batch(model), full=False)
    assert report.inputs == (3, 64, 256)
    for cost in report.costs[1:]:
        assert report.closed_form_error(cost) == pytest.approx(0, abs=0.01)


class MyHead(MAEPretrainHead):
    """What users of mmpretrain write for rectangles."""

    def patchify(self, imgs):
        return 2 * super().patchify(imgs)


def test_a_patchify_of_a_users_own_stays():
    MODELS.register_module(name='MyHead', module=MyHead, force=True)
    model = prmim.attach(build((64, 256), 64, head='MyHead'), 0.25)
    images = torch.randn(1, 3, 64, 256)
    plain = build((64, 256), 64).head
    assert torch.equal(model.head.patchify(images), 2 * plain.patchify(images))
    assert torch.isfinite(model.loss(images, None)['loss'])


class Tokenizer(torch.nn.Module):
    """In the place of EVA's CLIP: features (B, 1 + L, 24) that depend on the position."""

    def __init__(self, length):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.register_buffer('features', torch.randn(1, 1 + length, 24, generator=generator))

    def forward(self, images):
        return self.features.expand(len(images), -1, -1), None


def eva(img_size, num_patches):
    model = build(
        img_size,
        num_patches,
        type='EVA',
        neck=dict(
            type='MAEPretrainDecoder',
            num_patches=num_patches,
            embed_dim=48,
            decoder_embed_dim=48,
            decoder_depth=1,
            decoder_num_heads=3,
            predict_feature_dim=24,
        ),
        head=dict(
            type='MIMHead', loss=dict(type='CosineSimilarityLoss', shift_factor=2, scale_factor=2)
        ),
    )
    model.target_generator = Tokenizer(num_patches)
    return model


@pytest.mark.parametrize(('img_size', 'grid'), [((32, 128), (2, 8)), ((96, 32), (6, 2))])
def test_eva_takes_rectangles(img_size, grid):
    """At ratio 0 EVA's own loss; thrown tokens are compared with their own targets."""
    model, images = eva(img_size, grid[0] * grid[1]), torch.randn(2, 3, *img_size)
    expected = positions_by_hand(grid, 48)
    torch.testing.assert_close(model.backbone.pos_embed[0, 1:], expected, rtol=0, atol=1e-5)
    torch.manual_seed(0)
    own = model.loss(images, None)['loss']
    torch.manual_seed(0)
    assert torch.equal(prmim.attach(model, 0.0).loss(images, None)['loss'], own)
    prmim.attach(prmim.detach(model), 0.25)
    assert partial_of(model).grid == grid
    partitions, losses = [], []
    partial_of(model).register_forward_hook(lambda _, args, made: partitions.append(made))
    model.head.loss_module.register_forward_pre_hook(lambda _, args: losses.append(args))
    model.loss(images, None)['loss'].backward()
    features = model.target_generator.features[0, 1:]
    assert torch.equal(losses[0][1], features[partitions[0].masked])


def test_the_cross_attention_decoder_has_the_positions_of_the_grid():
    neck = dict(
        type='CrossAttentionDecoder',
        patch_size=16,
        embed_dim=48,
        decoder_embed_dim=24,
        decoder_depth=1,
        decoder_num_heads=2,
    )
    for img_size, grid in (((32, 128), (2, 8)), ((96, 32), (6, 2)), (64, (4, 4))):
        length = grid[0] * grid[1]
        model = build(img_size, length, type='CrossMAE', neck=dict(neck, num_patches=length))
        expected = positions_by_hand(grid, 24)
        torch.testing.assert_close(model.neck.positions, expected, rtol=0, atol=1e-5)
        images = torch.randn(2, 3, 16 * grid[0], 16 * grid[1])
        assert model.loss(images, None)['loss'].isfinite()
    with pytest.raises(ValueError, match=r'neck\.num_patches=16, .* 2x4 = 8 patches: set neck'):
        build((32, 64), 8, type='CrossMAE', neck=dict(neck, num_patches=16))
    for ratio in (0.0, 0.9):  # no loss; more than are masked
        with pytest.raises(ValueError, match=rf'predict_ratio={ratio} .* of 16 .* 12 are masked'):
            build(64, 16, type='CrossMAE', neck=dict(neck, num_patches=16), predict_ratio=ratio)


@pytest.mark.parametrize(
    ('part', 'changes', 'message'),
    [
        ('backbone', dict(patch_cfg=dict(in_channels=4)), r'4 channels, and 3 are predicted'),
        ('neck', dict(in_chans=1), r'3 channels, and 1 are predicted.*neck\.in_chans'),
        ('neck', dict(patch_size=8), r'head\.patch_size=16.*192 values'),
        ('head', dict(patch_size=8), r'head\.patch_size=8.*\(16, 16\).*768 values'),
    ],
)
def test_parts_that_disagree_about_a_patch_are_refused_at_attach(part, changes, message):
    settings = build(64, 16, settings_only=True)
    settings[part] |= changes
    with pytest.raises(ValueError, match=message):
        prmim.attach(MODELS.build(settings), 0.25)

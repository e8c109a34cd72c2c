# SPDX-License-Identifier: Apache-2.0
"""BEiT, BEiTv2 and SimMIM's ViT against the dense encoder with thrown keys masked."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

import prmim_adapters as prmim
import prmim_adapters.frameworks.simmim_vit
from prmim_adapters.adapters import partial_of
from prmim_adapters.adapters.mmpretrain.beit import encode_present

ARCH = dict(embed_dims=24, num_layers=3, num_heads=2, feedforward_channels=48)
GRID, MASKED, THROWN = (6, 8), 20, 12


class Tokens(BaseModule):
    """Tokenizer: (B, 3, 24, 32) -> classes (B, 48), or their logits (B, 5, 6, 8)."""

    def __init__(self, logits: bool) -> None:
        super().__init__()
        self.logits, self.project = logits, torch.nn.Conv2d(3, 5, 4, 4)
        self.requires_grad_(False)

    def forward(self, x):
        logits = self.project(x)
        return logits if self.logits else logits.argmax(1).flatten(1)


def build(version=1, **backbone):
    torch.manual_seed(0)
    head = dict(embed_dims=24, num_embed=5, loss=dict(type='CrossEntropyLoss'))
    neck = dict(
        type='BEiTV2Neck',
        num_layers=2,
        early_layers=2,
        backbone_arch=dict(**ARCH, depth=3),
        layer_scale_init_value=0.5,
    )
    model = MODELS.build(
        dict(
            type='BEiT',
            backbone=dict(
                type='BEiTPretrainViT',
                arch=ARCH,
                img_size=(48, 64),
                patch_size=8,
                layer_scale_init_value=0.5,
                out_indices=[-1] if version == 1 else [1, 2],
                final_norm=version == 1,
                **backbone,
            ),
            neck=None if version == 1 else neck,
            head=dict(type=f'BEiTV{version}Head', **head),
        )
    )
    model.init_weights()
    for name, parameter in model.named_parameters():
        if 'bias_table' in name or 'pos_embed' in name:
            torch.nn.init.normal_(parameter)
    model.target_generator = Tokens(logits=version == 1)
    return model


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    order = torch.rand(2, 48, generator=generator).argsort(dim=1)
    mask = torch.zeros_like(order).scatter(1, order[:, :MASKED], 1).view(2, *GRID)
    return dict(
        inputs=[
            torch.randn(2, 3, 48, 64, generator=generator),
            torch.randn(2, 3, 24, 32, generator=generator),
        ],
        data_samples=[DataSample().set_mask(m) for m in mask],
    )


def mask_of(batch):
    return torch.stack([sample.mask for sample in batch['data_samples']])


def masked_bias(backbone, thrown):
    """(B, heads, 1 + L, 1 + L): the shared bias, and -inf where the key is thrown."""
    absent = torch.zeros(len(thrown), 1 + GRID[0] * GRID[1])
    absent = absent.scatter(1, thrown + 1, float('-inf'))[:, None, None]
    bias = 0.0 if backbone.rel_pos_bias is None else backbone.rel_pos_bias()
    return bias + absent


class Fixed(torch.nn.Module):
    """In place of the relative position bias."""

    def __init__(self, bias):
        super().__init__()
        self.bias = bias

    def forward(self):
        return self.bias


def at_present(tokens, partition):
    rows = torch.nn.functional.pad(partition.present + 1, (1, 0))
    return tokens.gather(1, rows[..., None].expand(-1, -1, tokens.shape[-1]))


BACKBONES = {
    'shared bias': {},
    'no bias, absolute positions': dict(use_shared_rel_pos_bias=False, use_abs_pos_emb=True),
    'both': dict(use_abs_pos_emb=True),
}


@pytest.mark.parametrize('options', BACKBONES.values(), ids=BACKBONES)
@pytest.mark.parametrize('version', [1, 2])
def test_encoder_equals_the_dense_one_with_thrown_keys_masked(version, options, batch):
    model = build(version, **options).eval()
    dense = copy.deepcopy(model.backbone)
    prmim.attach(model, throw_ratio=THROWN / 48)
    images, mask = batch['inputs'][0], mask_of(batch)
    encoded = encode_present(model.backbone, images, mask)
    partition = encoded.partition
    assert partition.thrown.shape == (2, THROWN)
    dense.rel_pos_bias = Fixed(masked_bias(dense, partition.thrown))
    expected = dense(images, mask)
    assert len(encoded.features) == len(expected) == version
    for mine, theirs in zip(encoded.features, expected, strict=True):
        torch.testing.assert_close(mine, at_present(theirs, partition), rtol=1e-5, atol=1e-5)


def test_neck_runs_on_present_tokens(batch):
    model = build(2).eval()
    dense = copy.deepcopy(model)
    prmim.attach(model, throw_ratio=THROWN / 48)
    images, mask = batch['inputs'][0], mask_of(batch)
    encoded = model.backbone(images, mask)
    bias = masked_bias(dense.backbone, encoded.partition.thrown)
    dense.backbone.rel_pos_bias = Fixed(bias)
    expected = dense.neck(dense.backbone(images, mask), rel_pos_bias=bias)
    found = model.neck(encoded.features, rel_pos_bias=encoded.bias)
    for mine, theirs in zip(found, expected, strict=True):
        theirs = torch.nn.functional.pad(theirs, (0, 0, 1, 0))  # where cls was
        theirs = at_present(theirs, encoded.partition)[:, 1:]
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('version', [1, 2])
@pytest.mark.parametrize(
    ('options', 'weight'),
    [({}, 1.0), ({'thrown_weight': 0.25}, 0.25), ({'aggregator': None}, 0.0)],
    ids=['all masked tokens', 'thrown ones at a quarter', 'kept ones only'],
)
def test_loss_is_the_weighted_mean_over_masked_tokens(version, options, weight, batch):
    """Cross entropy token by token, by hand, from the head's logits."""
    model = prmim.attach(build(version), throw_ratio=THROWN / 48, **options)
    logits, targets = [], []
    hooks = [
        model.head.cls_head.register_forward_hook(lambda m, a, out: logits.append(out)),
        model.head.loss_module.register_forward_pre_hook(lambda m, a: targets.append(a[1])),
    ]
    losses = model.loss(**batch)
    for hook in hooks:
        hook.remove()
    sums, counts = torch.zeros(version), 0.0
    calls = len(logits) // version  # one for all, or one for kept and one for thrown tokens
    for call in range(calls):
        weight_here = weight if call == 1 else 1.0
        for i in range(version):
            entropy = torch.nn.functional.cross_entropy(
                logits[call * version + i], targets[call * version + i], reduction='sum'
            )
            sums[i] += weight_here * entropy.detach()
        counts += weight_here * len(targets[call * version])
    expected_tokens = 2 * (MASKED - THROWN) + weight * 2 * THROWN
    assert counts == pytest.approx(expected_tokens)
    found = torch.stack(list(losses.values())).detach()
    torch.testing.assert_close(found, sums / counts)
    assert set(losses) == ({'loss'} if version == 1 else {'loss_1', 'loss_2'})


@pytest.mark.parametrize('version', [1, 2])
def test_every_token_is_compared_with_its_own_target(version, batch):
    """A head that knows the target's embedding has no loss only if rows and targets agree."""
    model = prmim.attach(build(version), throw_ratio=THROWN / 48, aggregator='distance')
    classes = torch.arange(48) % 5
    seen = {}

    def reconstruct(partition, features, queries):
        index = model.backbone.partial.supervised(partition)
        seen['n'] = index.shape[1]
        rows = torch.nn.functional.one_hot(classes[index], 24).float()
        return rows + 0 * features.sum()

    logits = torch.nn.functional.one_hot(classes, 5).float().T.view(5, *GRID)
    target = logits.expand(2, -1, -1, -1)
    model.target_generator = Fixed(target if version == 1 else classes.expand(2, -1))
    model.target_generator.forward = lambda _: model.target_generator.bias
    with torch.no_grad():
        model.head.cls_head.weight.zero_()
        model.head.cls_head.bias.zero_()
        model.head.cls_head.weight[:, :5] = 50 * torch.eye(5)
    partial_of(model).reconstruct = reconstruct
    losses = model.loss(**batch)
    assert seen['n'] == MASKED
    assert max(loss.item() for loss in losses.values()) < 1e-6


def test_can_be_copied_after_a_step(batch):
    model = prmim.attach(build(2), throw_ratio=0.25)
    sum(model.loss(**batch).values()).backward()
    twin = copy.deepcopy(model)  # upstream leaves a non-leaf tensor on the backbone and cannot
    assert partial_of(twin) is twin.backbone.partial is twin.partial


def test_features_of_whole_images_are_unchanged(batch):
    model = build().eval()
    expected = model.extract_feat(batch['inputs'][0])
    found = prmim.attach(model, throw_ratio=0.25).extract_feat(batch['inputs'][0])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_refuses_a_bias_per_layer():
    model = build(use_rel_pos_bias=True, use_shared_rel_pos_bias=False)
    with pytest.raises(ValueError, match='use_rel_pos_bias=True: every layer adds a bias'):
        prmim.attach(model, throw_ratio=0.25)


def test_says_how_much_can_be_thrown(batch):
    model = prmim.attach(build(), throw_ratio=0.5)
    with pytest.raises(ValueError, match=r'cannot throw 24 tokens.*20 masked tokens.*0 to 19'):
        model.loss(**batch)

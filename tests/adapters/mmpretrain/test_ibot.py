# SPDX-License-Identifier: Apache-2.0
"""iBOT's student: ragged masks, packed sequences, and what a ViT-S step costs."""

import math

import numpy as np
import pytest
import small_models
import torch
from mmpretrain.registry import MODELS, TRANSFORMS
from mmpretrain.structures import DataSample
from mmpretrain.utils import register_all_modules
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import prmim_adapters as prmim
import prmim_adapters.openmmlab
from prmim_adapters.adapters import partial_of
from prmim_adapters.testing import recorded_partitions

register_all_modules()

GRID, LENGTH, WIDTH = (4, 6), 24, 32
COUNTS = [12, 0, 18, 6, 6, 1, 24, 2]
# min(round(0.4 * 24), floor(2/3 * M)), by hand
THROWN = [8, 0, 10, 4, 4, 0, 10, 1]


def build(drop_path_rate=0.0, **options):
    torch.manual_seed(0)
    model = MODELS.build(
        small_models.ibot(width=WIDTH, depth=3, backbone=dict(drop_path_rate=drop_path_rate))
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return prmim.attach(model, **{'throw_ratio': 0.4, **options}) if options else model


def masks_of(counts, seed=3):
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(LENGTH, generator=generator) < count for count in counts]
    return torch.stack(rows)


def pixels(number, seed=4):
    return torch.randn(number, 3, 32, 48, generator=torch.Generator().manual_seed(seed))


def batch(counts):
    """Two global crops of len(counts) / 2 images, one local crop."""
    images = len(counts) // 2
    masks = masks_of(counts).view(images, 2, *GRID)
    crops = [pixels(images, 4), pixels(images, 5), pixels(images, 6)[:, :, :16, :24]]
    return crops, [DataSample().set_mask(mask) for mask in masks]


def dense_with_thrown_keys_masked(backbone, image, mask, thrown):
    """(1 + L, C): the whole sequence, of which no token attends to a thrown one."""
    x = backbone.embed(image[None], mask[None])[0]
    bias = torch.zeros(1 + LENGTH)
    bias[1:][thrown] = -math.inf
    for layer in backbone.layers:
        query, key, value = (
            layer.attn.qkv(layer.ln1(x)).reshape(1 + LENGTH, 3, 2, -1).permute(1, 2, 0, 3)
        )
        weights = (query @ key.mT / math.sqrt(WIDTH // 2) + bias).softmax(-1)
        x = x + layer.attn.proj((weights @ value).transpose(0, 1).flatten(1))
        x = x + layer.ffn.layers(layer.ln2(x))
    return backbone.ln1(x)


@pytest.fixture
def recorded():
    """The partitions that a model makes, per image, in the order of the images."""

    def run(model, mask, function):
        with recorded_partitions(model) as seen:
            result = function()
        thrown = [set(row.tolist()) for _, partition in seen for row in partition.thrown]
        order = mask.sum(1).argsort(stable=True).tolist()
        return result, [thrown[order.index(image)] for image in range(len(mask))]

    return run


def test_ragged_masks_encode_each_image_as_if_alone_without_its_thrown_tokens(recorded):
    model = build(aggregator='cross_attention')
    mask = masks_of(COUNTS)
    images = pixels(len(COUNTS))

    tokens, thrown = recorded(model, mask, lambda: model.backbone(images, mask))

    assert [len(t) for t in thrown] == THROWN
    assert tokens.log['thrown_share'].item() == pytest.approx(sum(THROWN) / len(COUNTS) / LENGTH)
    assert torch.equal(tokens.weight, mask.float())
    assert sorted(tokens.rows.tolist()) == mask.flatten().nonzero()[:, 0].tolist()
    found = dict(zip(tokens.rows.tolist(), tokens.patches, strict=True))
    for image in range(len(COUNTS)):
        gone = torch.zeros(LENGTH, dtype=torch.bool)
        gone[list(thrown[image])] = True
        expected = dense_with_thrown_keys_masked(model.backbone, images[image], mask[image], gone)
        torch.testing.assert_close(tokens.cls[image], expected[0], rtol=1e-5, atol=2e-6)
        for position in (mask[image] & ~gone).nonzero()[:, 0].tolist():
            kept = found[image * LENGTH + position]
            torch.testing.assert_close(kept, expected[1 + position], rtol=1e-5, atol=2e-6)


def test_thrown_tokens_come_from_the_aggregator_of_their_own_image():
    """Another image of the batch, or one more of the same count, changes nothing."""
    model = build(aggregator='cross_attention', sampler='grid').eval()
    mask, images = masks_of(COUNTS), pixels(len(COUNTS))

    def run(index):
        torch.manual_seed(0)
        # kept tokens must not depend on the batch: choose the first ones of each image
        partial_of(model).sampler = lambda m, count, *_: m & (m.cumsum(1) <= count[:, None])
        return model.backbone(images[index], mask[index])

    together, alone = run([0, 2, 3, 4]), [run([image]) for image in (0, 2, 3, 4)]
    features = dict(zip(together.rows.tolist(), together.patches, strict=True))
    for place, single in enumerate(alone):
        torch.testing.assert_close(together.cls[place], single.cls[0], rtol=1e-5, atol=2e-6)
        for row, patch in zip(single.rows.tolist(), single.patches, strict=True):
            expected = features[place * LENGTH + row]
            torch.testing.assert_close(patch, expected, rtol=1e-5, atol=2e-6)


def test_a_batch_without_masks_is_the_framework_and_uses_every_parameter():
    framework, ours = build(), build(aggregator='cross_attention')
    losses = [model.loss(*batch([0] * 6)) for model in (framework, ours)]
    assert losses[1].pop('thrown_share') == 0
    assert losses[0].keys() == losses[1].keys()
    for name, value in losses[0].items():
        assert torch.equal(losses[1][name], value), name
    ours.parse_losses(losses[1])[0].backward()
    trained = {n: p for n, p in ours.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in trained.values())
    assert not any(p.grad.any() for p in partial_of(ours).parameters())


def test_thrown_tokens_weigh_as_asked():
    mask, images = masks_of(COUNTS), pixels(len(COUNTS))
    half = build(aggregator='distance', thrown_weight=0.25).backbone(images, mask).weight
    dropped = build(aggregator=None).backbone(images, mask)
    for image, (count, thrown) in enumerate(zip(COUNTS, THROWN, strict=True)):
        assert half[image].sum() == pytest.approx(count - 0.75 * thrown)
        assert dropped.weight[image].sum() == count - thrown
    assert len(dropped.rows) == sum(COUNTS) - sum(THROWN)
    assert torch.equal(dropped.weight.flatten().nonzero()[:, 0], dropped.rows.sort().values)


def test_teacher_and_local_crops_are_untouched():
    framework, ours = build(), build(aggregator='cross_attention')
    assert type(ours.teacher.module.backbone) is type(framework.backbone)
    assert type(ours.backbone) is not type(framework.backbone)
    images = pixels(2)
    local = images[:, :, :16, :24]
    assert torch.equal(ours.teach(images)[1], framework.teach(images)[1])
    assert torch.equal(ours.project_locals(local), framework.project_locals(local))
    assert torch.equal(ours.backbone(images)[0], framework.backbone(images)[0])


# ---- cost ------------------------------------------------------------------------------------


def vit_small(throw_ratio, max_masked_share=2 / 3):
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type='IBOT',
            backbone=dict(type='IBOTViT', arch='deit-small'),
            neck=dict(type='IBOTNeck', in_channels=384),
            head=dict(type='IBOTHead'),
        )
    )
    return prmim.attach(model, throw_ratio=throw_ratio, max_masked_share=max_masked_share)


def masks_by(number, **options):
    np.random.seed(0)
    generator = TRANSFORMS.build(dict(type='RandomRatioMask', input_size=14, **options))
    masks = [generator.transform({})['mask'] for _ in range(number)]
    return torch.from_numpy(np.stack(masks)).flatten(1)


@torch.no_grad()
def gmacs(function):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = function()
    return sum(counter.get_flop_counts()['Global'].values()) / 2e9, result


def test_student_global_crop_of_vit_small_saves_38_percent_with_the_full_head():
    """Upstream counts 4.598 backbone + 1.498 head on 197 tokens = 6.096 GMACs per crop."""
    mask = masks_by(1, mask_ratio=0.7, variance=0.0, shape='random')
    assert mask.sum() == 137
    image = torch.randn(1, 3, 224, 224)
    head = 197 * (384 * 2048 + 2048 * 2048 + 2048 * 256 + 256 * 8192) / 1e9
    costs = {}
    for ratio in (0.0, 0.5):
        model = vit_small(ratio, max_masked_share=0.75)
        costs[ratio], (_, _, tokens) = gmacs(lambda m=model: m.project_globals(image, mask))
        # what the framework reads of the head: cls and the masked tokens, at either ratio
        costs[ratio] -= 138 / 197 * head
        assert tokens.log == {} if not ratio else tokens.log['thrown_share'] == ratio
    assert costs[0.0] + head == pytest.approx(6.096, abs=0.002)
    assert 1 - (costs[0.5] + head) / (costs[0.0] + head) >= 0.38
    read = 138 / 197 * head
    assert 1 - (costs[0.5] + read) / (costs[0.0] + read) >= 0.41


def test_published_masks_never_cost_more_than_the_framework():
    mask = masks_by(8)
    assert len(mask.sum(1).unique()) >= 4  # ragged
    images = torch.randn(8, 3, 224, 224)
    framework, _ = gmacs(lambda: vit_small(0.0).backbone(images, mask))
    ours, tokens = gmacs(lambda: vit_small(0.5).backbone(images, mask))
    share = tokens.log['thrown_share'].item()
    expected = (mask.sum(1) * 2 // 3).clamp(max=98).float().mean() / 196
    assert share == pytest.approx(expected.item())
    assert 0.02 < share < 0.2
    assert 0.9 * share < 1 - ours / framework < 1.1 * share

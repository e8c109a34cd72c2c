# SPDX-License-Identifier: Apache-2.0
"""iBOT against the formulas of arXiv 2111.07832 and 2104.14294, computed here in float64."""

import copy
import math
import pickle

import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from small_ibot import GLOBAL, GRID, IMAGES, LOCAL, batch, build, still


def tokens_of(backbone, image, mask=None):
    """(1 + L, C): one image, block by block, with explicit attention."""
    patches = backbone.patch_embed.projection(image[None])[0]
    height, width = patches.shape[1:]
    x = patches.flatten(1).T.clone()
    if mask is not None:
        x[mask.flatten()] = backbone.mask_token[0, 0]
    table = backbone.pos_embed[0, 1:]
    if (height, width) != GRID:
        table = table.T.reshape(1, -1, *GRID)
        table = torch.nn.functional.interpolate(
            table, size=(height, width), mode='bicubic', align_corners=False
        )[0]
        table = table.flatten(1).T
    x = torch.cat((backbone.cls_token[0] + backbone.pos_embed[0, :1], x + table))
    for layer in backbone.layers:
        y = layer.ln1(x)
        query, key, value = layer.attn.qkv(y).reshape(len(y), 3, 2, 16).permute(1, 2, 0, 3)
        weights = (query @ key.mT / math.sqrt(16)).softmax(-1)
        x = x + layer.attn.proj((weights @ value).permute(1, 0, 2).flatten(1))
        first, second = layer.ffn.layers[0][0], layer.ffn.layers[1]
        x = x + second(gelu(first(layer.ln2(x))))
    return backbone.ln1(x)


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def logits_of(neck, tokens):
    hidden = gelu(tokens @ neck.mlp[0].weight.T + neck.mlp[0].bias)
    hidden = gelu(hidden @ neck.mlp[2].weight.T + neck.mlp[2].bias)
    bottleneck = hidden @ neck.mlp[4].weight.T + neck.mlp[4].bias
    bottleneck = bottleneck / bottleneck.norm(dim=-1, keepdim=True)
    v, g = neck.last_layer.weight_v, neck.last_layer.weight_g
    return bottleneck @ (g * v / v.norm(dim=1, keepdim=True)).T


def softmax(x):
    exp = (x - x.max()).exp()
    return exp / exp.sum()


def by_the_formulas(model, crops, samples):
    """Losses, entropies and new centres, one image, crop and token at a time."""
    model, head = copy.deepcopy(model).double(), model.head
    crops = [crop.double() for crop in crops]
    teacher = model.teacher.module
    center, patch_center = head.center.double(), head.patch_center.double()
    cls_loss = patch_loss = 0.0
    entropies, patch_entropies, all_cls, all_patch = [], [], [], []
    for image in range(IMAGES):
        student_cls = []
        for crop, pixels in enumerate(crops):
            mask = samples[image].mask[crop] if crop < GLOBAL else None
            student = logits_of(model.neck, tokens_of(model.backbone, pixels[image], mask))
            student_cls.append(softmax(student[0] / head.student_temp))
            if crop >= GLOBAL:
                continue
            logits = logits_of(teacher.neck, tokens_of(teacher.backbone, pixels[image]))
            all_cls.append(logits[0])
            all_patch.append(logits[1:])
            masked = mask.flatten().nonzero()[:, 0].tolist()
            for token in masked:
                p = softmax((logits[1 + token] - patch_center) / head.teacher_patch_temp)
                q = softmax(student[1 + token] / head.student_temp)
                patch_loss += -(p * q.log()).sum() / len(masked) / (IMAGES * GLOBAL)
                patch_entropies.append(-(p * p.log()).sum())
        for u in range(GLOBAL):
            p = softmax((all_cls[-GLOBAL + u] - center) / head.teacher_temp)
            entropies.append(-(p * p.log()).sum())
            for v in range(GLOBAL + LOCAL):
                if u != v:
                    pairs = GLOBAL * (GLOBAL + LOCAL - 1)
                    cls_loss += -(p * student_cls[v].log()).sum() / pairs / IMAGES
    losses = dict(
        loss_cls=cls_loss,
        loss_patch=patch_loss,
        teacher_entropy=torch.stack(entropies).mean(),
        teacher_patch_entropy=torch.stack(patch_entropies).mean(),
    )
    new_center = 0.9 * center + 0.1 * torch.stack(all_cls).mean(0)
    new_patch_center = 0.9 * patch_center + 0.1 * torch.stack(all_patch).mean((0, 1))
    return losses, new_center, new_patch_center


def test_losses_and_centres_are_those_of_the_paper():
    model = still(build())
    crops, samples = batch()
    expected, center, patch_center = by_the_formulas(model, crops, samples)

    losses = model.loss(crops, samples)

    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name].double(), value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.head.center.double(), center, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.head.patch_center.double(), patch_center, rtol=1e-6, atol=1e-6)


def test_gradients_are_those_of_the_paper():
    model = still(build())
    crops, samples = batch()
    reference = copy.deepcopy(model).double()
    # by_the_formulas works on a copy: differentiate numerically along one random direction.
    parameters = [p for n, p in reference.named_parameters() if not n.startswith('teacher')]
    generator = torch.Generator().manual_seed(2)
    direction = [torch.randn(p.shape, generator=generator).double() for p in parameters]
    step = 1e-5
    totals = []
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, change in zip(parameters, direction, strict=True):
                parameter.add_(sign * step * change)
            values, _, _ = by_the_formulas(reference, crops, samples)
            totals.append(values['loss_cls'] + values['loss_patch'])
            for parameter, change in zip(parameters, direction, strict=True):
                parameter.sub_(sign * step * change)
    slope = (totals[0] - totals[1]) / (2 * step)

    model.parse_losses(model.loss(crops, samples))[0].backward()
    ours = [p for n, p in model.named_parameters() if not n.startswith('teacher')]

    assert all(p.grad is not None for p in ours)
    assert all(p.grad is None for p in model.teacher.parameters())
    total = sum((p.grad.double() * d).sum() for p, d in zip(ours, direction, strict=True))
    torch.testing.assert_close(total, slope, rtol=1e-4, atol=1e-6)


def test_projection_head_is_that_of_dino():
    neck = build().neck
    tokens = torch.randn(5, 7, 32)
    expected = logits_of(copy.deepcopy(neck).double(), tokens.double())
    torch.testing.assert_close(neck(tokens).double(), expected, rtol=1e-6, atol=1e-6)


def test_norm_last_layer_fixes_the_length_of_the_prototypes():
    fixed = build(neck=dict(norm_last_layer=True)).neck.last_layer
    assert not fixed.weight_g.requires_grad
    assert build().neck.last_layer.weight_g.requires_grad
    fresh = MODELS.build(dict(type='IBOTNeck', in_channels=8, out_channels=5)).last_layer
    unit = torch.eye(256)[:4]
    rows = fresh(unit).T  # (5, 4): the first four entries of each prototype
    torch.testing.assert_close(rows.norm(dim=1) <= 1, torch.ones(5, dtype=torch.bool))
    torch.testing.assert_close(fresh(torch.eye(256)).norm(dim=0), torch.ones(5))


def test_evaluation_mode_changes_no_state():
    model = build().eval()
    before = copy.deepcopy(model.state_dict())
    model.loss(*batch())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_crop_without_mask_counts_but_adds_nothing():
    model = still(build()).eval()
    crops, samples = batch(ratios=(0.6, 0.0, 0.0))
    one = model.loss(crops, samples)['loss_patch']
    only = model.loss([crop[:1] for crop in crops], samples[:1])['loss_patch']
    torch.testing.assert_close(one, only / 3)


def test_without_any_mask_every_parameter_keeps_a_gradient():
    model = build()
    losses = model.loss(*batch(ratios=(0.0, 0.0, 0.0)))
    assert losses['loss_patch'].item() == 0
    assert 'teacher_patch_entropy' not in losses
    model.parse_losses(losses)[0].backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in trained.values())
    assert trained['backbone.mask_token'].grad.abs().sum() == 0


def test_patch_loss_reads_masked_positions_only():
    model = still(build()).eval()
    crops, samples = batch()
    calls = []
    model.neck.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    model.loss(crops, samples)
    masked = sum(int(sample.mask.sum()) for sample in samples)
    assert calls == [GLOBAL * IMAGES + masked, LOCAL * IMAGES]


def test_neck_and_head_must_agree_about_the_prototypes():
    with pytest.raises(ValueError, match=r'neck\.out_channels=24, but head\.out_channels=21'):
        build(head=dict(out_channels=21))


def test_wrong_masks_and_crops_are_errors():
    model = build()
    crops, samples = batch()
    with pytest.raises(ValueError, match=r'1 crops and masks for 2.*at least 2 crops'):
        model.loss(crops[:1], samples)
    bad = [DataSample().set_mask(sample.mask[:1]) for sample in samples]
    with pytest.raises(ValueError, match='masks for 1; num_global_crops=2'):
        model.loss(crops, bad)
    bad = [DataSample().set_mask(sample.mask[:, :, :4]) for sample in samples]
    with pytest.raises(ValueError, match=r'masks \(6, 16\) for 6 images of 4x6 patches'):
        model.loss(crops, bad)


def test_model_can_be_copied_and_pickled():
    model = still(build())
    crops, samples = batch()
    model.parse_losses(model.loss(crops, samples))[0].backward()
    expected = copy.deepcopy(model).eval().loss(crops, samples)
    again = pickle.loads(pickle.dumps(model)).eval().loss(crops, samples)
    assert all(torch.equal(expected[name], again[name]) for name in expected)

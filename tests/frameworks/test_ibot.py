# SPDX-License-Identifier: Apache-2.0
"""iBOT against the formulas of arXiv 2111.07832 and 2104.14294, computed here in float64."""

import copy
import itertools
import math
import os
import pickle

import pytest
import torch
import torch.distributed as dist
from mmengine.logging import MessageHub
from mmengine.model import MMDistributedDataParallel
from mmpretrain.models.utils import CosineEMA
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from mmpretrain.utils import register_all_modules
from torch.multiprocessing import start_processes

from prmim_adapters.frameworks.ibot.algorithm import TeacherEMA, _Network

register_all_modules()

IMAGES, GLOBAL, LOCAL, PROTOTYPES = 3, 2, 2, 24
GRID = (4, 6)


def build(**changes):
    torch.manual_seed(0)
    arch = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
    config = dict(
        type='IBOT',
        backbone=dict(type='IBOTViT', arch=arch, img_size=(32, 48), patch_size=8),
        neck=dict(
            type='IBOTNeck',
            in_channels=32,
            hidden_channels=48,
            bottleneck_channels=16,
            out_channels=PROTOTYPES,
            norm_last_layer=False,
        ),
        head=dict(type='IBOTHead', out_channels=PROTOTYPES),
        base_momentum=0.1,
    )
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    model = MODELS.build(config).train()
    with torch.no_grad():  # far from the symmetric start: every term of the formulas matters
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for network in (model.backbone, model.neck):
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        model.head.center.normal_()
        model.head.patch_center.normal_()
    model.teacher.steps += 1  # past the first update, which copies the student
    return model


def batch(seed=0, ratios=(0.5, 0.0, 0.8)):
    generator = torch.Generator().manual_seed(seed)
    crops = [torch.randn(IMAGES, 3, 32, 48, generator=generator) for _ in range(GLOBAL)]
    crops += [torch.randn(IMAGES, 3, 16, 24, generator=generator) for _ in range(LOCAL)]
    masks = [torch.rand(GLOBAL, *GRID, generator=generator) < ratio for ratio in ratios]
    return crops, [DataSample().set_mask(mask) for mask in masks]


def still(model):
    """Keep the teacher where it is, so that a test can look at the losses alone."""
    model.teacher.interval = 10**9
    return model


# ---- the definition --------------------------------------------------------------------------


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


@pytest.mark.parametrize('max_iters', [None, 8])
def test_teacher_is_the_moving_average_with_a_cosine_momentum(max_iters):
    hub = MessageHub.get_current_instance()
    hub.update_info('max_iters', max_iters)
    model = build()
    model.teacher.steps.zero_()
    crops, samples = batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    average = None
    for step in range(4):
        student = {
            f'{part}.{name}': parameter.detach().double().clone()
            for part in ('backbone', 'neck')
            for name, parameter in getattr(model, part).named_parameters()
        }
        fraction = 0 if max_iters is None else step / max_iters
        moving = 0.1 * (math.cos(math.pi * fraction) + 1) / 2
        if average is None:
            average = student
        else:
            average = {k: (1 - moving) * v + moving * student[k] for k, v in average.items()}
        optimizer.zero_grad()
        model.parse_losses(model.loss(crops, samples))[0].backward()
        optimizer.step()
    hub.update_info('max_iters', None)

    teacher = dict(model.teacher.module.named_parameters())
    assert teacher.keys() == average.keys()
    for name, value in average.items():
        torch.testing.assert_close(teacher[name].double(), value, rtol=1e-6, atol=1e-6)
    assert any((teacher[k].double() - student[k]).abs().max() > 1e-4 for k in teacher)


@pytest.mark.parametrize('interval', [1, 2])
def test_teacher_moves_as_upstreams_moving_average(interval):
    """Parameters and buffers, with steps counted by others in between: a checkpoint, an assignment."""
    torch.manual_seed(0)
    student = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    ours, upstream = (cls(student, 0.1, 0.02, interval) for cls in (TeacherEMA, CosineEMA))
    hub = MessageHub.get_current_instance()
    hub.update_info('max_iters', 9)
    for step in range(8):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter))
        student(torch.randn(5, 3))
        for average in (ours, upstream):
            average.update_parameters(student)
            if step == 2:
                average.steps += 1
            if step == 5:
                average.load_state_dict({**average.state_dict(), 'steps': torch.tensor(3)})
        assert ours.steps == upstream.steps == ours.steps_done()
        for key, value in upstream.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-6, atol=1e-6)
    hub.update_info('max_iters', None)


def test_teacher_starts_as_the_student():
    model = build()
    model.teacher.steps.zero_()
    before = model.teacher.module.backbone.cls_token.clone()
    model.init_weights()
    teacher = dict(model.teacher.module.named_parameters())
    student = dict(_Network(model.backbone, model.neck).named_parameters())
    assert teacher.keys() == student.keys()
    assert all(torch.equal(teacher[name], student[name]) for name in teacher)
    assert not torch.equal(model.teacher.module.backbone.cls_token, before)
    assert model.teacher.steps == 0  # the cosine of the momentum is where it was


def test_initialising_again_leaves_a_trained_teacher_alone():
    model = build()
    before = copy.deepcopy(model.teacher.state_dict())
    model.init_weights()
    torch.testing.assert_close(model.teacher.state_dict(), before, rtol=0, atol=0)
    assert not torch.equal(model.teacher.module.backbone.cls_token, model.backbone.cls_token)


def test_gradient_accumulation_updates_the_teacher_once_per_step():
    model = build(momentum_interval=3)
    crops, samples = batch()
    states = []
    for _ in range(6):
        model.loss(crops, samples)
        states.append(model.teacher.module.backbone.cls_token.clone())
    changed = [not torch.equal(a, b) for a, b in itertools.pairwise(states)]
    assert changed == [False, True, False, False, True]  # steps started at 1


def test_evaluation_mode_changes_no_state():
    model = build().eval()
    before = copy.deepcopy(model.state_dict())
    model.loss(*batch())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_teacher_has_no_stochastic_depth():
    model = still(build(backbone=dict(drop_path_rate=0.5)))
    images = batch()[0][0]
    assert not any(module.training for module in model.teacher.modules())
    assert torch.equal(model.teach(images)[0], model.teach(images)[0])
    student = [model.backbone(images)[0] for _ in range(8)]
    assert not all(torch.equal(student[0], other) for other in student)


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


def two_steps(rank, port, path):
    """What each of two processes does: its own images, gradients averaged by DDP."""
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group('gloo', rank=rank, world_size=2)
    model = still(build())
    wrapped = MMDistributedDataParallel(model, device_ids=None, broadcast_buffers=False)
    for step in range(2):  # a parameter left out of the first step is reported in the second
        crops, samples = batch(seed=rank, ratios=((0.5, 0.0, 0.8), (0.0, 0.0, 0.0))[rank])
        losses = wrapped(crops, samples, mode='loss')
        if step == 0:
            torch.save([model.head.center, model.head.patch_center], f'{path}/{rank}.pth')
        model.parse_losses(losses)[0].backward()
    dist.destroy_process_group()


def test_centres_are_means_over_all_processes(tmp_path, free_port):
    start_processes(two_steps, args=(free_port, tmp_path), nprocs=2, start_method='fork')

    centers = [torch.load(tmp_path / f'{rank}.pth') for rank in range(2)]
    own = []
    for rank in range(2):  # what each process would have by itself
        model = still(build())
        model.loss(*batch(seed=rank, ratios=(0.5, 0.0, 0.8)))
        own.append([model.head.center, model.head.patch_center])
    for kind in range(2):
        assert torch.equal(centers[0][kind], centers[1][kind])
        expected = (own[0][kind] + own[1][kind]) / 2
        torch.testing.assert_close(centers[0][kind], expected, rtol=1e-6, atol=1e-6)
        assert (own[0][kind] - own[1][kind]).abs().max() > 1e-3

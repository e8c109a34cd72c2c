# SPDX-License-Identifier: Apache-2.0
"""CAE against its own neck on kept tokens, its losses by hand, and its teacher."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from cases.beit import MASKED, THROWN, batch
from cases.cae import build

import prmim_adapters as prmim
from prmim_adapters.core import gather_tokens, table_rows
from prmim_adapters.testing import recorded_partitions

KEPT = MASKED - THROWN


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build()


def recorded(model):
    """The losses of a step, its partition, and what the neck was called with and returned."""
    calls = []
    hook = model.neck.register_forward_hook(lambda m, args, out: calls.append((args, out)))
    with recorded_partitions(model) as seen:
        losses = model.loss(**batch())
    hook.remove()
    return losses, seen[0][1], *calls[0]


def test_neck_equals_upstreams_on_kept_tokens(model):
    upstream = copy.deepcopy(model.neck)
    prmim.attach(model, throw_ratio=THROWN / 64)
    _, partition, (unmasked, _, pos_unmasked), (logits, latent) = recorded(model)
    upstream.mask_token_num = KEPT
    pos_kept = table_rows(model.backbone.pos_embed[0, 1:], partition.kept)
    expected = upstream(unmasked, pos_kept, pos_unmasked)
    assert logits.shape == (3, MASKED, 64) and latent.shape == (3, MASKED, 24)
    torch.testing.assert_close(logits[:, :KEPT], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(latent[:, :KEPT], expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ('options', 'weight'),
    [({}, 1.0), ({'thrown_weight': 0.25}, 0.25), ({'aggregator': None}, 0.0)],
    ids=['all masked tokens', 'thrown ones at a quarter', 'kept ones only'],
)
def test_losses_are_weighted_means_over_masked_tokens(model, options, weight):
    prmim.attach(model, throw_ratio=THROWN / 64, **options)
    losses, partition, _, (logits, latent) = recorded(model)
    images, target_images = batch()['inputs']
    count = logits.shape[1]
    masked = partition.masked[:, :count]
    classes = model.target_generator(target_images).argmax(1).flatten(1).gather(1, masked)
    visible = partition.masked.new_ones(3, 64).scatter(1, partition.masked, 0).bool()
    taught = images.new_zeros(3, 64, 24)
    taught[~visible] = model.teacher(images, visible)[:, 1:].flatten(0, 1).detach()
    weights = torch.ones(3, count)
    weights[:, KEPT:] = weight
    main = F.cross_entropy(logits.transpose(1, 2), classes, reduction='none')
    align = 2 * (latent - gather_tokens(taught, masked)).square().mean(-1)
    for name, each in (('main', main), ('align', align)):
        torch.testing.assert_close(losses[name], (each * weights).sum() / weights.sum())


def test_each_set_of_features_has_a_light_stage_of_its_own(model):
    prmim.attach(model, throw_ratio=THROWN / 64, aggregator=['nearest', 'cross_attention'])
    stages = model.neck.partial.aggregators
    kinds = [type(stage).__name__ for stage in stages]
    assert kinds == ['Nearest', 'CrossAttention'] * 2
    sources = []
    for stage in stages:
        stage.register_forward_pre_hook(lambda m, args: sources.append(args[0].shape[1]))
    losses = model.loss(**batch())
    visible, first = 64 - MASKED, THROWN // 2
    assert sources == [visible + KEPT, visible + KEPT + first, KEPT, KEPT + first]
    losses['main'].backward()  # the decoder's queries are what the first set's stages made
    assert all(p.grad.any() for stage in stages for p in stage.parameters() if p.grad is not None)
    assert stages[1].project.weight.grad is not None


def test_the_teacher_follows_the_encoder_as_upstream():
    for throw_ratio in (0, THROWN / 64):
        torch.manual_seed(0)
        model = prmim.attach(build(momentum=0.75), throw_ratio=throw_ratio)
        assert not any('partial' in name for name, _ in model.teacher.named_modules())
        before = model.teacher.cls_token.clone()
        with torch.no_grad():
            model.backbone.cls_token.add_(1)
        model.loss(**batch())
        torch.testing.assert_close(model.teacher.cls_token, before + 0.25)


def test_features_of_whole_images_are_unchanged(model):
    image = batch()['inputs'][0]
    model.eval()
    expected = model.extract_feat(image)
    found = prmim.attach(model, throw_ratio=0.25).extract_feat(image)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_more_than_is_masked_is_refused_at_attach(model):
    with pytest.raises(ValueError, match='throws 26 of 64 tokens, but the model masks 26'):
        prmim.attach(model, throw_ratio=26 / 64)

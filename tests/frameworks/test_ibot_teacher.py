# SPDX-License-Identifier: Apache-2.0
"""iBOT's teacher: the moving average of the student, and when it moves."""

import copy
import itertools
import math

import pytest
import torch
from mmengine.logging import MessageHub
from mmpretrain.models.utils import CosineEMA
from small_ibot import batch, build, still

from prmim_adapters.frameworks.ibot.algorithm import TeacherEMA, _Network


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


def test_teacher_has_no_stochastic_depth():
    model = still(build(backbone=dict(drop_path_rate=0.5)))
    images = batch()[0][0]
    assert not any(module.training for module in model.teacher.modules())
    assert torch.equal(model.teach(images)[0], model.teach(images)[0])
    student = [model.backbone(images)[0] for _ in range(8)]
    assert not all(torch.equal(student[0], other) for other in student)

# SPDX-License-Identifier: Apache-2.0
import pytest
import survivor
import torch
from mmengine.hooks import Hook
from mmpretrain.structures import DataSample

from prmim_adapters.openmmlab.finite_loss import FiniteLossHook, NonFiniteLossError, origin


class BreakHook(Hook):
    """Does something to the model before an iteration; keeps the weights from before it."""

    def __init__(self, iteration, damage):
        self.iteration, self.damage = iteration, damage

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            self.damage(runner.model, data_batch)
            self.before = {k: v.clone() for k, v in runner.model.state_dict().items()}


def error_of(tmp_path, damage, kind='mae-by-epoch', iteration=3):
    hook = BreakHook(iteration, damage)
    runner = survivor.build(kind, tmp_path, hooks=[hook, FiniteLossHook()])
    with pytest.raises(NonFiniteLossError) as caught:
        runner.train()
    for name, value in runner.model.named_parameters():
        same = torch.equal(value.nan_to_num(), hook.before[name].nan_to_num())
        assert same or not value.requires_grad, name  # iBOT's teacher moves in each forward pass
    assert not runner.model._forward_hooks
    return str(caught.value)


def test_a_parameter(tmp_path):
    def damage(model, batch):
        model.neck.decoder_blocks[0].attn.proj.bias.data[0] = float('nan')

    message = error_of(tmp_path, damage)
    assert message.startswith('iteration 3: loss is nan. ')
    assert 'that of neck.decoder_blocks.0.attn.proj (Linear), and so are its parameters' in message
    assert (
        'neck.decoder_blocks.0.attn.proj.bias; images: number 0 of the batch, number 1' in message
    )


def test_one_image(tmp_path):
    def damage(model, batch):
        batch['inputs'][1, 0, 0, 0] = float('inf')
        batch['data_samples'][1].set_field('b.png', 'img_path', field_type='metainfo')

    message = error_of(tmp_path, damage)
    assert 'The images are not finite: b.png. No weight has been changed' in message


def test_one_image_that_overflows_on_the_way(tmp_path):
    def damage(model, batch):
        batch['inputs'][0] = 3e38  # finite, and so is nothing that a weight multiplies

    message = error_of(tmp_path, damage, iteration=0)
    assert 'backbone.patch_embed.projection (Conv2d); images: number 0 of the batch. No' in message


def test_a_loss_that_only_this_mask_gives(tmp_path):
    """The repeated pass draws the mask of the first."""

    def damage(model, batch):
        weights = model.backbone.layers[0].ln1.weight
        tokens = []

        def watch(module, args, output):
            tokens.append(float(output.sum()))
            return output / 0 if tokens == tokens[:1] * len(tokens) else output

        model.backbone.layers[0].ln1.register_forward_hook(watch)
        assert weights.isfinite().all()

    message = error_of(tmp_path, damage)
    assert (
        'that of backbone.layers.0.ln1 (LayerNorm); images: number 0 of the batch, num' in message
    )


def test_views(tmp_path):
    def damage(model, batch):
        model.neck.last_layer.weight_v.data.fill_(float('nan'))

    message = error_of(tmp_path, damage, kind='ibot')
    assert 'loss_cls is nan' in message
    assert 'neck.last_layer' in message


def test_what_cannot_be_repeated_is_said():
    class Once(torch.nn.Module):
        def forward(self, inputs, data_samples, mode):
            raise RuntimeError('only once')

    samples = [DataSample(metainfo=dict(sample_idx=index)) for index in range(10)]
    message = origin(Once(), (torch.zeros(10, 3),), dict(data_samples=samples, mode='loss'))
    assert message == (
        "The forward pass cannot be repeated (RuntimeError('only once')); images: sample 0, "
        'sample 1, sample 2, sample 3, sample 4, sample 5, sample 6, sample 7 and 2 more'
    )


def test_finite_losses_train_on_unchanged(tmp_path):
    weights = []
    for hooks in ([FiniteLossHook()], []):
        runner = survivor.build('mae-by-iteration', tmp_path / str(len(hooks)), hooks=hooks)
        runner.train()
        weights.append(runner.model.state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name

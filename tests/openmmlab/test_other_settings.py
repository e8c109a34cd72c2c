# SPDX-License-Identifier: Apache-2.0
"""Settings of people who pre-train: partial reconstruction beside each changes nothing of it."""

import copy

import numpy as np
import pytest
import small_models
import torch
from mmengine.dataset import default_collate
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner, load_checkpoint
from mmpretrain.models.utils import embed
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from mmpretrain.utils import register_all_modules
from scipy.interpolate import RegularGridInterpolator
from transformers import ViTMAEConfig, ViTMAEForPreTraining

import prmim_adapters as prmim
import prmim_adapters.openmmlab
from prmim_adapters.adapters import partial_of

register_all_modules()
RATIO = 0.5


def mae(patch=8, size=32, depth=1, **head):
    return small_models.mae(size, patch, depth=2, neck=dict(decoder_depth=depth), head=head)


def simmim(patch=8, size=32, **backbone):
    backbone = dict(
        type='SimMIMViT',
        arch=small_models.arch(depth=2),
        img_size=size,
        patch_size=patch,
        **backbone,
    )
    return small_models.simmim(backbone, 16, stride=patch, cell=patch)


def attached(framework, **options):
    return MODELS.build(dict(type='PRMIM', framework=framework, throw_ratio=RATIO, **options))


class Images(torch.utils.data.Dataset):
    """Eight images with masks of 12 of 4 x 4 patches."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        mask = torch.from_numpy((rng.permutation(16) < 12).reshape(4, 4).astype(int))
        image = torch.from_numpy(rng.integers(0, 255, (3, 32, 32))).float()
        return dict(inputs=image, data_samples=DataSample().set_mask(mask))


def runner_of(framework, tmp_path, *hooks, optim_wrapper=None, **options):
    return Runner(
        model=dict(type='PRMIM', framework=framework, throw_ratio=RATIO),
        data_preprocessor=dict(type='SelfSupDataPreprocessor', mean=[127.0] * 3, std=[60.0] * 3),
        work_dir=str(tmp_path),
        train_dataloader=dict(
            batch_size=4,
            dataset=Images(),
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=default_collate,
        ),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=optim_wrapper or dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(checkpoint=None),
        custom_hooks=list(hooks),
        default_scope='mmpretrain',
        experiment_name=tmp_path.name,
        log_level='ERROR',
        randomness=dict(seed=0),
        cfg=options,
    )


def counts_of(model):
    """A list that fills with (kept, thrown) of every step."""
    found = []
    partial_of(model).register_forward_hook(
        lambda _, args, made: found.append((made.kept.shape[1], made.thrown.shape[1]))
    )
    return found


def test_the_mask_ratio_may_change_while_training():
    model = attached(mae())
    counts = counts_of(model)
    for ratio in (0.75, 0.9, 0.6):
        model.backbone.mask_ratio = ratio
        model.loss(torch.randn(2, 3, 32, 32), None)['loss'].backward()
    assert counts == [(12 - 8, 8), (15 - 8, 8), (10 - 8, 8)]
    model.backbone.mask_ratio = 0.5
    with pytest.raises(ValueError, match='the mask has 8 masked tokens of 16, so 0 to 7 can be'):
        model.loss(torch.randn(2, 3, 32, 32), None)
    prmim.set_throw_ratio(model, 0.25)
    model.loss(torch.randn(2, 3, 32, 32), None)
    assert counts[-1] == (4, 4)


def test_the_mask_ratio_of_transformers_may_change_while_training():
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    decoder = {f'decoder_{key}': value for key, value in sizes.items()}
    config = ViTMAEConfig(image_size=32, patch_size=8, **sizes, **decoder)
    model = prmim.attach(ViTMAEForPreTraining(config), 0.25)
    counts = counts_of(model)
    for ratio in (0.75, 0.5):
        model.config.mask_ratio = model.vit.embeddings.config.mask_ratio = ratio
        model(torch.randn(2, 3, 32, 32)).loss.backward()
    assert counts == [(8, 4), (4, 4)]


@pytest.mark.parametrize('value', [0.0, 1.0, -3.0])
@pytest.mark.parametrize('ratio', [0.0, RATIO])
def test_targets_of_constant_images_are_zero_where_patches_are_normalised(value, ratio):
    model = prmim.attach(MODELS.build(mae(norm_pix=True)), ratio)
    seen = []
    model.head.loss_module.register_forward_pre_hook(lambda _, args: seen.append(args))
    loss = model.loss(torch.full((2, 3, 32, 32), value), None)['loss']
    prediction, target, mask = seen[0]
    assert target.abs().max() < 1e-3
    expected = (prediction.square().mean(-1) * mask).sum() / mask.sum()
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=0)


def test_ema_averages_the_light_stage_as_all_else(tmp_path):
    class Record(Hook):
        states = ()

        def before_train(self, runner):
            self.after_train_iter(runner, 0)

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            weights = {k: v.detach().clone() for k, v in runner.model.named_parameters()}
            self.states = [*self.states, weights]

    record, ema = Record(), EMAHook(momentum=0.25)
    runner_of(mae(), tmp_path, record, ema).train()
    averaged = ema.ema_model.module
    assert averaged.neck.partial is averaged.head.partial
    for name, value in averaged.named_parameters():
        expected = record.states[1][name]  # mmengine's first update copies
        for state in record.states[2:]:
            expected = 0.75 * expected + 0.25 * state[name]
        torch.testing.assert_close(value, expected)
    assert any('partial' in name for name, _ in averaged.named_parameters())


def test_accumulated_gradients_are_the_mean_over_the_steps():
    one = attached(mae())
    other = copy.deepcopy(one)
    images = torch.randn(2, 2, 3, 32, 32)
    wrapper = OptimWrapper(torch.optim.SGD(one.parameters(), 0.0), accumulative_counts=2)
    wrapper.initialize_count_status(one, 0, 4)
    wrapper.zero_grad = lambda: None  # keeps what the step has used
    torch.manual_seed(0)
    for part in images:
        wrapper.update_params(one.loss(part, None)['loss'])
    torch.manual_seed(0)
    for part in images:
        (other.loss(part, None)['loss'] / 2).backward()
    for (name, left), right in zip(one.named_parameters(), other.parameters(), strict=True):
        if left.requires_grad:
            torch.testing.assert_close(left.grad, right.grad, msg=name)


@pytest.mark.parametrize('framework', [mae, simmim])
def test_layer_decay_gives_the_light_stage_the_full_rate(framework, tmp_path):
    wrapper = dict(
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
        paramwise_cfg=dict(layer_decay_rate=0.5),
        constructor='LearningRateDecayOptimWrapperConstructor',
    )
    runner = runner_of(framework(), tmp_path, optim_wrapper=wrapper)
    wrapped = runner.build_optim_wrapper(runner.optim_wrapper)
    names = {id(value): name for name, value in runner.model.named_parameters()}
    rates = {
        names[id(value)]: group['lr']
        for group in wrapped.optimizer.param_groups
        for value in group['params']
    }
    assert {rates[name] for name in rates if '.partial.' in name} == {1.0}
    assert rates['backbone.layers.0.attn.qkv.weight'] == 0.25
    trained = {name for name, value in runner.model.named_parameters() if value.requires_grad}
    assert rates.keys() == trained


def test_a_frozen_encoder_stays_and_the_rest_trains():
    model = attached(simmim(frozen_stages=2))
    model.init_weights()
    model.train()
    batch = default_collate([Images()[i] for i in range(4)])
    model.loss(batch['inputs'] / 255, batch['data_samples'])['loss'].backward()
    for name, value in model.named_parameters():
        frozen = 'patch_embed' in name or '.layers.' in name
        assert (value.grad is None) == (frozen or not value.requires_grad), name


def test_the_light_stage_may_train_alone():
    model = MODELS.build(mae())
    model.requires_grad_(False)
    prmim.attach(model, RATIO).loss(torch.randn(2, 3, 32, 32), None)['loss'].backward()
    trained = {name for name, value in model.named_parameters() if value.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if '.partial.' in name}


@pytest.mark.parametrize('framework', [mae, simmim])
def test_weights_of_smaller_images_load_as_into_the_framework(framework, tmp_path):
    torch.save(dict(state_dict=attached(framework(size=32)).state_dict()), tmp_path / 'small.pth')
    torch.manual_seed(0)
    larger, plain = attached(framework(size=64)), MODELS.build(framework(size=64))
    plain.load_state_dict(larger.state_dict(), strict=False)
    for model in (larger, plain):
        load_checkpoint(model, str(tmp_path / 'small.pth'))
    found, saved = larger.state_dict(), torch.load(tmp_path / 'small.pth')['state_dict']
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(found[name], value, msg=name)
    for name in found.keys() - plain.state_dict().keys():
        if 'aggregators' in name:
            assert torch.equal(found[name], saved[name])
    samples = [
        DataSample().set_mask(torch.arange(64).reshape(8, 8).ge(16).long()) for _ in range(2)
    ]
    assert larger.loss(torch.randn(2, 3, 64, 64), samples)['loss'].isfinite()


def test_compile_in_the_config(tmp_path):
    """The same loss as without, step by step; the compiler's front end only, for time."""

    class Losses(Hook):
        def __init__(self):
            self.values = []

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            self.values.append(outputs['loss'].item())

    found = []
    for name, options in (('plain', {}), ('compiled', dict(compile=dict(backend='eager')))):
        losses = Losses()
        (tmp_path / name).mkdir()
        runner = runner_of(mae(), tmp_path / name, losses, **options)
        runner.train()
        found.append(losses.values)
    assert len(found[0]) == 4
    assert found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize(
    ('patch', 'size'), [(8, 64), (14, 56), (32, 128), (14, (42, 70)), (8, (16, 64))]
)
@pytest.mark.parametrize('framework', [mae, simmim])
def test_patch_sizes(framework, patch, size):
    height, width = (size, size) if isinstance(size, int) else size
    grid = height // patch, width // patch
    length = grid[0] * grid[1]
    rng = np.random.default_rng(0)
    masked = length * 3 // 4 + (framework is mae and bool(length * 3 % 4))  # MAE: int(L / 4) stay
    samples = [
        DataSample().set_mask(torch.from_numpy((rng.permutation(length) < masked).reshape(grid)).int())
        for _ in range(4)
    ]  # fmt: skip
    model = MODELS.build(framework(patch, size))
    images, losses = torch.randn(4, 3, height, width), []
    for ratio in (None, 0.0):
        if ratio is not None:
            prmim.attach(model, ratio)
        torch.manual_seed(0)
        losses.append(model.loss(images, samples)['loss'])
    assert torch.equal(*losses)
    prmim.attach(prmim.detach(model), RATIO)
    counts = counts_of(model)
    heavy = model.neck.decoder_blocks if framework is mae else model.backbone.layers
    heavy[0].register_forward_pre_hook(lambda _, args: counts.append(args[0].shape[1]))
    model.loss(images, samples)['loss'].backward()
    thrown = round(RATIO * length)
    assert counts == [(masked - thrown, thrown), 1 + length - thrown]


def test_position_biases_of_smaller_images_are_those_of_an_independent_spline():
    """RegularGridInterpolator, cubic, at the positions that upstream takes: 1, 1 + q, ... apart."""
    table = torch.randn(7 * 7, 2, generator=torch.Generator().manual_seed(0))
    found = embed.resize_relative_position_bias_table(7, 9, table, 2)
    q = next(q for q in np.linspace(1.01, 1.5, 400_000) if 1 + q + q * q > 4)
    steps = np.cumsum([1, q, q * q])
    places = np.concatenate((-steps[::-1], [0], steps))
    inside = np.arange(-4.0, 5.0).clip(places[0], places[-1])
    points = np.stack(np.meshgrid(inside, inside, indexing='ij'), -1)
    for head in range(2):
        values = table[:, head].view(7, 7).numpy()
        spline = RegularGridInterpolator((places, places), values, method='cubic')
        expected = torch.from_numpy(spline(points)).float().flatten()
        torch.testing.assert_close(found[:, head], expected, rtol=0, atol=2e-3)

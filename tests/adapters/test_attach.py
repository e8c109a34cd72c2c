# SPDX-License-Identifier: Apache-2.0
"""attach / detach: errors for the user, options, the config type, a framework of the user's own."""

import re
from pathlib import Path

import pytest
import small_models
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from torch import nn

import prmim_adapters as prmim
import prmim_adapters.openmmlab
from prmim_adapters.adapters import partial_of
from prmim_adapters.core.aggregation import CrossAttention
from prmim_adapters.core.cross_blocks import CrossBlocks
from prmim_adapters.testing import seed_everything

CONFIGS = Path(__file__).parents[2] / 'configs' / 'mmpretrain'
MAE = small_models.mae()


def mae(**changes) -> nn.Module:
    return MODELS.build({**MAE, **changes})


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(throw_ratio=-0.1), ValueError, r'throw_ratio=-0.1: must be between 0 and 1'),
        (dict(throw_ratio=float('nan')), ValueError, 'throw_ratio=nan is not finite'),
        (dict(throw_ratio=1.5), ValueError, r'throw_ratio=1.5: must be between 0 and 1'),
        (dict(throw_ratio='0.5'), TypeError, r"throw_ratio='0.5' \(str\): expected a number"),
        (dict(throw_ratio=True), TypeError, r'throw_ratio=True \(bool\): expected a number'),
        (
            dict(throw_ratio=0.75),
            ValueError,
            r'throw_ratio=0.75 throws 12 of 16 tokens.*masks 12 of them \(mask ratio 0.75\).*'
            r'the largest valid one is 0.6875',
        ),
        (dict(sampler='furthest'), KeyError, r"unknown sampler 'furthest'.*'farthest'"),
        (dict(aggregator='attention'), KeyError, r"unknown aggregator 'attention'.*nearest"),
        (
            dict(sampler=3),
            TypeError,
            r'sampler=3: give a name, a function or class, or dict\(',
        ),
        (
            dict(aggregator=dict(type='cross_attention', heads=3)),
            ValueError,
            'inner=4 must be a multiple of heads=3',
        ),
        (
            dict(sampler=dict(type='farthest', seed=1)),
            TypeError,
            r"'farthest' has no option 'seed'. Did you mean 'seeds'\? Its options are seeds$",
        ),
        (
            dict(sampler=dict(type='grid', step=2)),
            TypeError,
            r"sampler 'grid' has no option 'step'. It has none",
        ),
        (
            dict(aggregator=dict(type='cross_attention', iner=64)),
            TypeError,
            r"'cross_attention' has no option 'iner'. Did you mean 'inner'\? Its options are inner, h",
        ),
        (
            dict(aggregator=dict(type='distance', width=64)),
            TypeError,
            r"'distance' has no option 'width'. Its options are neighbours, sources",
        ),
        (
            dict(aggregator=nn.Linear),
            TypeError,
            r"aggregator 'Linear' must take width, grid: missing a required argument: 'in_features'",
        ),
        (
            dict(sampler=lambda mask, num_kept: mask),
            TypeError,
            r"sampler '<lambda>' must take mask, num_kept, grid, noise: too many positional",
        ),
        (
            dict(aggregator=['nearest', None]),
            ValueError,
            r"aggregator=\['nearest', None\]: .* plain partial reconstruction is aggregator=None",
        ),
        (dict(aggregator=[]), ValueError, r'aggregator=\[\]: a list names one light stage or more'),
        (dict(thrown_weight=-1), ValueError, r'thrown_weight=-1: must be between 0 and 1000'),
        (dict(throw_ratio=10**400), ValueError, r'throw_ratio=10+: must be between 0 and 1'),
        (dict(stop_gradient='no'), TypeError, r"stop_gradient='no' \(str\): expected True"),
        (dict(max_masked_share=2), ValueError, r'max_masked_share=2: must be between 0 and 1'),
    ],
)
def test_bad_options(options, error, message):
    model = mae()
    before = [type(m) for m in model.modules()]
    with pytest.raises(error, match=message):
        prmim.attach(model, **options)
    assert [type(m) for m in model.modules()] == before  # nothing half done


def test_largest_valid_ratio_works():
    model = prmim.attach(mae(), throw_ratio=0.6875)
    assert model.loss(torch.randn(2, 3, 32, 32), None)['loss'].isfinite()


def test_no_adapter():
    with pytest.raises(
        TypeError, match=r'no adapter for torch.nn.*Linear\. `prmim list` shows all'
    ):
        prmim.attach(nn.Linear(2, 2))
    beside = r'no adapter for mmpretrain\.models.*MAEViT\. In that package: MAE, EVA, SimMIM,'
    with pytest.raises(TypeError, match=beside) as raised:
        prmim.attach(mae().backbone)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    ('found', 'said'),
    [
        ('facebook/vit-mae-base', "'facebook/vit-mae-base' is a str, not a model"),
        (None, 'None is a NoneType, not a model'),
        (nn.Linear, 'Linear is a type, not a model'),
        (dict(type='MAE'), "{'type': 'MAE'} is a dict, not a model"),
    ],
)
@pytest.mark.parametrize('function', [prmim.attach, prmim.detach, prmim.is_attached])
def test_what_is_no_model(function, found, said):
    with pytest.raises(TypeError, match=re.escape(said) + ': build it first'):
        function(found)


@pytest.mark.parametrize(
    ('wrap', 'inside'), [(nn.DataParallel, 'module'), (torch.compile, '_orig_mod')]
)
def test_wrapped_model(wrap, inside):
    with pytest.raises(TypeError, match='attach before wrapping it'):
        prmim.attach(wrap(mae()))
    with pytest.raises(ValueError, match=rf'it wraps one: give its \.{inside}'):
        prmim.set_throw_ratio(wrap(prmim.attach(mae())), 0.25)


def test_changed_decoder_is_named():
    model = mae()
    model.neck.__class__ = nn.Linear
    with pytest.raises(TypeError, match=r'MAE.neck is a .*Linear: the adapter .*attaches to'):
        prmim.attach(model)
    assert not prmim.is_attached(model)


def test_subclass_of_a_supported_algorithm():
    class MyMAE(type(mae())):
        def loss(self, inputs, data_samples, **kwargs):
            return {k: 2 * v for k, v in super().loss(inputs, data_samples).items()}

    model = prmim.attach(mae())
    images = torch.randn(2, 3, 32, 32)
    seed_everything(model, 0)
    once = model.loss(images, None)['loss']
    mine = prmim.attach(MyMAE(**{k: v for k, v in MAE.items() if k != 'type'}))
    mine.load_state_dict(model.state_dict())
    seed_everything(mine, 0)
    assert torch.equal(mine.loss(images, None)['loss'], 2 * once)


def test_image_not_divisible_by_the_patch():
    model = mae(backbone={**MAE['backbone'], 'img_size': 36})
    with pytest.raises(ValueError, match=r'backbone.img_size=\(36, 36\) is not divisible by .*8'):
        prmim.attach(model)


def test_grids_that_disagree():
    model = mae(neck={**MAE['neck'], 'num_patches': 25})
    with pytest.raises(ValueError, match=r'4x4 = 16 patches, but neck.num_patches=25: set .*=16'):
        prmim.attach(model)


def test_detach_without_attach():
    with pytest.raises(ValueError, match='MAE has no partial reconstruction attached; call prmim'):
        prmim.detach(mae())


def test_attach_again_after_detach():
    model = prmim.attach(prmim.detach(prmim.attach(mae())), throw_ratio=0.25)
    assert partial_of(model).num_thrown == 4


def test_samplers_and_aggregators_take_options():
    model = prmim.attach(
        mae(),
        sampler=dict(type='farthest', seeds='none'),
        aggregator=[dict(type='nearest', neighbours=2), 'cross_attention'],
    )
    partial = partial_of(model)
    assert partial.sampler.keywords == dict(seeds='none')
    assert [type(a).__name__ for a in partial.aggregators] == ['Nearest', 'CrossAttention']
    assert partial.aggregators[0].neighbours == 2
    assert model.loss(torch.randn(2, 3, 32, 32), None)['loss'].isfinite()


def test_aggregator_follows_the_model():
    model = prmim.attach(mae().double().eval())
    aggregator = partial_of(model).aggregators[0]
    assert aggregator.query.weight.dtype == torch.float64
    assert not aggregator.training


def test_config_type_builds_the_framework_itself():
    preprocessor = dict(type='SelfSupDataPreprocessor', mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0])
    config = Config(
        dict(
            model=dict(
                type='PRMIM', framework=MAE, throw_ratio=0.25, data_preprocessor=preprocessor
            )
        )
    )
    model = MODELS.build(config.model)
    assert type(model).__name__ == 'MAE' and prmim.is_attached(model)
    assert model.data_preprocessor.mean.flatten().tolist() == [1.0, 2.0, 3.0]
    assert partial_of(model).throw_ratio == 0.25
    own = dict(MAE, data_preprocessor=dict(preprocessor, mean=[0.0, 0.0, 7.0]))
    model = MODELS.build(dict(type='PRMIM', framework=own, data_preprocessor=preprocessor))
    assert model.data_preprocessor.mean.flatten().tolist() == [0.0, 0.0, 7.0]


@pytest.mark.parametrize(
    ('name', 'epochs', 'width'), [('vitb', 300, 'b'), ('vitl', 300, 'l'), ('vith', 1600, 'h')]
)
def test_configs_change_the_model_only(name, epochs, width):
    config = Config.fromfile(CONFIGS / f'mae_prmim_{name}.py')
    assert config.model.type == 'PRMIM' and config.model.throw_ratio == 0.5
    assert config.model.framework.backbone.arch.startswith(width)
    assert config.train_cfg.max_epochs == epochs
    assert config.train_dataloader.batch_size == 512
    assert config.train_dataloader.collate_fn == dict(type='default_collate')


def test_a_framework_that_is_not_worth_it_is_refused_with_the_reason():
    from mmpretrain.models import MixMIM

    class Mine(MixMIM):
        def __init__(self):
            torch.nn.Module.__init__(self)

    with pytest.raises(TypeError, match=r'Mine: its encoder, 16\.35 of 19\.04 GMACs, has no mask'):
        prmim.attach(Mine())


def every_second(mask, num_kept, grid, noise, first=0):
    """A sampler of the user's own, never registered."""
    return prmim.SAMPLERS.get('random')(mask, num_kept, grid, noise)


class MyAttention(CrossAttention):
    """An aggregator of the user's own, never registered."""


@pytest.mark.parametrize(
    'aggregator',
    [
        MyAttention,
        dict(type=MyAttention),
        dict(type=f'{__name__}.MyAttention'),
        [dict(type=MyAttention, inner=8), 'nearest'],
    ],
)
@pytest.mark.parametrize(
    'sampler',
    [every_second, dict(type=every_second, first=1), dict(type=f'{__name__}.every_second')],
)
def test_types_are_names_or_the_thing_itself_as_in_mmengine(aggregator, sampler):
    model = prmim.attach(mae(), 0.25, sampler=sampler, aggregator=aggregator)
    assert type(partial_of(model).aggregators[0]) is MyAttention
    function = partial_of(model).sampler
    assert getattr(function, 'func', function).__name__ == 'every_second'


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        (dict(aggregator=nn.Identity()), r'aggregator=Identity\(\): give a name'),
        (dict(aggregator=dict(inner=8)), r"aggregator=\{'inner': 8\}: give a name"),
        (dict(aggregator=every_second), 'every_second'),
        (dict(sampler=nn.Identity()), r'sampler=Identity\(\): give a name'),
        (dict(sampler=lambda mask: mask), 'too many positional arguments|unexpected'),
    ],
)
def test_things_that_are_neither_sampler_nor_aggregator(option, message):
    with pytest.raises(TypeError, match=message):
        prmim.attach(mae(), 0.25, **option)


@pytest.mark.parametrize(
    ('kind', 'expected'),
    [
        ('cross_attention', CrossAttention),
        (CrossAttention, CrossAttention),
        (MyAttention, CrossAttention),
        ('again', CrossAttention),
        ('cross_blocks', CrossBlocks),
    ],
)
def test_keys_have_positions_where_features_have_none_whatever_the_type_is_called(
    kind, expected, monkeypatch
):
    monkeypatch.setitem(prmim.AGGREGATORS._entries, 'again', CrossAttention)
    layers = dict(arch=MAE['backbone']['arch'], img_size=32, patch_size=8)
    model = MODELS.build(
        dict(
            type='SimMIM',
            backbone=dict(type='SimMIMViT', **layers),
            neck=dict(type='SimMIMLinearDecoder', in_channels=16, encoder_stride=8),
            head=dict(
                type='SimMIMHead',
                patch_size=8,
                loss=dict(type='PixelReconstructionLoss', criterion='L1', channel=3),
            ),
        )
    )
    (light,) = partial_of(prmim.attach(model, 0.25, aggregator=dict(type=kind))).aggregators
    names = {name for name, _ in light.named_parameters()}
    given = expected(16, (4, 4), key_positions=True)
    assert names == {name for name, _ in given.named_parameters()}
    assert names != {name for name, _ in expected(16, (4, 4)).named_parameters()}

# SPDX-License-Identifier: Apache-2.0
"""What attach checks before it changes anything, where a user's class meets a seam, the one slot."""

import copy
import pickle
import sys
import types

import pytest
import small_models
import torch
from mmpretrain.models import MAE, MAEPretrainDecoder, MAEPretrainHead, MAEViT
from mmpretrain.registry import MODELS
from torch import nn

import prmim_adapters as prmim
from prmim_adapters.adapters import ADAPTERS, partial_of
from prmim_adapters.testing import seed_everything


class UsersDecoder(MAEPretrainDecoder):
    """With a method of its own."""

    def describe(self):
        return 'mine'


class UsersHead(MAEPretrainHead):
    """What users are told to write for channels of their own."""

    def patchify(self, imgs):
        return 2 * super().patchify(imgs)


class UsersMAE(MAE):
    """Nothing overridden."""


class ForwardDecoder(MAEPretrainDecoder):
    """Overrides what the seam overrides."""

    def forward(self, x, ids_restore):
        return super().forward(x, ids_restore)


def mae(model=MAE, decoder=MAEPretrainDecoder, head=MAEPretrainHead, width=16):
    torch.manual_seed(0)
    made = model.__new__(model)
    built = MODELS.build(small_models.mae(neck=dict(decoder_embed_dim=width)))
    made.__dict__ = built.__dict__
    made.neck.__class__, made.head.__class__ = decoder, head
    return made


def loss_of(model, seed=1):
    seed_everything(model, seed)
    return model(torch.ones(2, 3, 32, 32).cumsum(2), mode='loss')['loss']


# -------------------------------------------------------------------- classes of the user's own


def test_a_users_subclasses_get_the_seam_between_them_and_their_base():
    model = prmim.attach(mae(UsersMAE, UsersDecoder, UsersHead))
    decoder = type(model.neck)
    names = [cls.__name__ for cls in decoder.__mro__[:4]]
    assert names == [
        'PRUsersDecoder',
        'UsersDecoder',
        'PRMAEPretrainDecoder',
        'MAEPretrainDecoder',
    ]
    assert model.neck.describe() == 'mine'
    plain = prmim.attach(mae())
    plain.load_state_dict(model.state_dict())
    target = plain.head.construct_target
    plain.head.construct_target = lambda images: 2 * target(images)
    assert torch.equal(loss_of(model), loss_of(plain))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin.neck) is decoder
        assert torch.equal(loss_of(twin), loss_of(model))
    prmim.detach(model)
    assert type(model.neck) is UsersDecoder and type(model.head) is UsersHead


def test_pickle_finds_the_class_in_another_process():
    from prmim_adapters.adapters import between

    decoder = type(prmim.attach(mae(decoder=UsersDecoder)).neck)
    made = between._MADE.copy()
    between._MADE.clear()
    try:
        again = getattr(between, decoder.__qualname__)
        assert again.__mro__[1:] == decoder.__mro__[1:]
    finally:
        between._MADE.update(made)
    with pytest.raises(AttributeError, match="has no attribute 'other'"):
        _ = between.other


def test_the_same_method_overridden_is_refused():
    model = mae(decoder=ForwardDecoder)
    with pytest.raises(TypeError, match=r'ForwardDecoder overrides forward of MAEPretrainDecoder'):
        prmim.attach(model)
    assert type(model.neck) is ForwardDecoder and not prmim.is_attached(model)


# ---------------------------------------------------------- descendants with the same names


@pytest.fixture
def named():
    """Make classes of a module that a repository would have: ``named('models_mae', **classes)``."""
    made = []

    def make(module, **classes):
        for part in range(module.count('.') + 1):
            name = '.'.join(module.split('.')[: part + 1])
            if name not in sys.modules:
                sys.modules[name] = types.ModuleType(name)
                made.append(name)
        for name, cls in classes.items():
            cls.__module__, cls.__qualname__ = module, name
            setattr(sys.modules[module], name, cls)
        return sys.modules[module]

    yield make
    for name in made:
        del sys.modules[name]


class Embed(nn.Module):
    def __init__(self, grid=(8, 8), **attributes):
        super().__init__()
        self.num_patches = grid[0] * grid[1]
        self.__dict__.update(attributes or dict(grid_size=grid))


class MAELike(nn.Module):
    """Only what the adapter of models_mae reads at attach."""

    def __init__(self, length=64, **attributes):
        super().__init__()
        self.patch_embed = Embed(**attributes)
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, length + 1, 8))
        self.decoder_embed = nn.Linear(4, 8)

    def forward_decoder(self, x, ids_restore): ...

    def forward_loss(self, imgs, pred, mask): ...


def test_a_decoder_that_takes_the_mask_is_refused(named):
    """Hard Patches Mining: a mask in place of ids_restore."""

    class Descendant(MAELike):
        def forward_decoder(self, x, mask): ...

    named('models_mae', MaskedAutoencoderViT=Descendant)
    with pytest.raises(
        TypeError,
        match=r'models_mae.MaskedAutoencoderViT.forward_decoder is forward_decoder\(self, x, mask\), '
        r'but the adapter .* was written for forward_decoder\(self, x, ids_restore\)',
    ):
        prmim.attach(Descendant())


def test_another_loss_is_refused(named):
    """AudioMAE: the same forward_decoder, which returns three values, and one argument more here."""

    class Descendant(MAELike):
        def forward_loss(self, imgs, pred, mask, norm_pix_loss=False): ...

    named('models_mae', MaskedAutoencoderViT=Descendant)
    with pytest.raises(
        TypeError, match=r'forward_loss\(self, imgs, pred, mask, norm_pix_loss\), but'
    ):
        prmim.attach(Descendant())


def test_another_student_is_refused(named):
    """Descendants of iBOT return more than the tokens, and take an argument more for it."""

    class Backbone(nn.Module):
        masked_im_modeling, embed_dim = True, 8

        def __init__(self):
            super().__init__()
            self.patch_embed = Embed(img_size=32, patch_size=4)
            self.pos_embed = nn.Parameter(torch.zeros(1, 65, 8))

        def forward(self, x, return_all_tokens=None, mask=None, return_attention=True): ...

    class Student(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = Backbone()

    named('models.vision_transformer', VisionTransformer=Backbone)
    named('utils', MultiCropWrapper=Student)
    with pytest.raises(TypeError, match=r'forward\(self, x, return_all_tokens, mask, return_att'):
        prmim.attach(Student())


@pytest.mark.parametrize(
    'attributes',
    [
        dict(grid_size=(4, 16)),
        dict(patch_hw=(4, 16)),
        dict(img_size=(64, 256), patch_size=16),
        dict(img_size=(64, 256), patch_size=(16, 16)),
    ],
)
def test_the_grid_is_the_patch_embeddings_own(named, attributes):
    """64 patches of 4 x 16, which their number alone would make 8 x 8."""
    named('models_mae', MaskedAutoencoderViT=MAELike)
    model = prmim.attach(MAELike(**attributes))
    assert partial_of(model).grid == (4, 16)


def test_a_patch_embedding_that_disagrees_or_says_nothing(named):
    named('models_mae', MaskedAutoencoderViT=MAELike)
    with pytest.raises(ValueError, match=r'makes 8x8 = 64 tokens, but decoder_pos_embed has 49'):
        prmim.attach(MAELike(length=49))
    with pytest.raises(TypeError, match='Embed says no grid_size, nor img_size and patch_size'):
        prmim.attach(MAELike(stride=4))


# --------------------------------------------------------------- an adapter that is wrong


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(8, 8)


class PRLinear(nn.Linear):
    pass


GOOD = dict(host='decoder', classes={nn.Linear: PRLinear}, grid=(4, 4), width=8)


@pytest.mark.parametrize(
    ('changes', 'error', 'message'),
    [
        (dict(host='decodr'), TypeError, "Small has no module 'decodr'"),
        (dict(guests=('decoder',)), ValueError, 'must be different modules'),
        (dict(guests=('head',)), TypeError, "Small has no module 'head'"),
        (dict(classes={nn.Conv2d: PRLinear}), TypeError, r'Small.decoder is a .*Linear: .*Conv2d'),
        (dict(classes={nn.Linear: nn.Conv2d}), TypeError, 'Conv2d must be a subclass of .*Linear'),
        (dict(grid=(4, 0)), ValueError, r'grid\[1\]=0: must be an integer of at least 1'),
        (dict(grid=(4, 4.0)), ValueError, r'grid\[1\]=4.0'),
        (dict(width=None), ValueError, 'width=None: must be an integer of at least 1'),
        (dict(num_masked=17), ValueError, r'num_masked=17, but the grid \(4, 4\) has 16 tokens'),
        (dict(num_prefix=-1), ValueError, 'num_prefix=-1: must be an integer of at least 0'),
    ],
)
def test_seams_are_checked(monkeypatch, changes, error, message):
    key = f'{Small.__module__}.Small'
    monkeypatch.setitem(ADAPTERS._entries, key, lambda model: prmim.Seams(**{**GOOD, **changes}))
    model = Small()
    with pytest.raises(error, match=message):
        prmim.attach(model)
    assert type(model.decoder) is nn.Linear and not prmim.is_attached(model)


def test_what_an_adapter_forgot_is_named(monkeypatch):
    key = f'{Small.__module__}.Small'
    short = {name: value for name, value in GOOD.items() if name != 'width'}
    monkeypatch.setitem(ADAPTERS._entries, key, lambda model: prmim.Seams(**short))
    with pytest.raises(TypeError, match="required keyword-only argument: 'width'"):
        prmim.attach(Small())
    monkeypatch.setitem(ADAPTERS._entries, key, lambda model: None)
    with pytest.raises(TypeError, match=r'returned None: an adapter returns Seams\(...\)'):
        prmim.attach(Small())


def test_a_faulty_sampler_shows_at_attach(monkeypatch):
    from prmim_adapters.adapters import SAMPLERS

    monkeypatch.setitem(SAMPLERS._entries, 'all', lambda mask, num_kept, grid, noise: mask)
    with pytest.raises(ValueError, match=r'asked for 4 of 12 masked tokens.*\[12, 12\] kept'):
        prmim.attach(mae(), sampler='all')
    with pytest.raises(ValueError, match="seeds='bogus'"):
        prmim.attach(mae(), sampler=dict(type='farthest', seeds='bogus'))


# ------------------------------------------------------------------------- the one slot


def test_two_views_before_one_loss_are_refused_and_one_after_the_other_works():
    model = prmim.attach(mae())
    images = torch.randn(2, 3, 32, 32)

    def decode():
        latent, mask, ids_restore = model.backbone(images, mask=True)
        return model.neck(latent, ids_restore), mask

    pred, mask = decode()
    with pytest.raises(RuntimeError, match='two masks were partitioned before one loss'):
        decode()
    pred, mask = decode()
    first = model.head.loss(pred, images, mask)
    pred, mask = decode()
    assert model.head.loss(pred, images, mask) != first
    with pytest.raises(RuntimeError, match='no partition of this pass: the loss ran twice'):
        model.head.loss(pred, images, mask)
    pred, mask = decode()
    with pytest.raises(RuntimeError, match='a loss of 1 images after the partition of 2'):
        model.head.loss(pred[:1], images[:1], mask[:1])


def test_an_interrupted_step_leaves_nothing_behind():
    model = prmim.attach(mae())
    hook = model.head.register_forward_pre_hook(lambda *_: None)
    original, model.head.loss_module = model.head.loss_module, nn.Identity()
    with pytest.raises(TypeError):
        loss_of(model)
    model.head.loss_module = original
    hook.remove()
    expected = loss_of(prmim.attach(mae()))
    model.load_state_dict(prmim.attach(mae()).state_dict())
    assert loss_of(model).isfinite() and expected.isfinite()


def test_replicas_of_data_parallel_are_refused():
    model = prmim.attach(mae())
    neck = copy.copy(model.neck)  # a replica: the same parameters, submodules copied likewise
    neck._modules = {**neck._modules, 'partial': copy.copy(model.neck.partial)}
    images = torch.randn(2, 3, 32, 32)
    latent, mask, ids_restore = model.backbone(images, mask=True)
    pred = neck(latent, ids_restore)
    with pytest.raises(RuntimeError, match=r'replica of nn\.DataParallel'):
        model.head.loss(pred, images, mask)


def test_copies_in_the_middle_of_a_step_begin_anew():
    model = prmim.attach(mae())
    latent, _, ids_restore = model.backbone(torch.randn(2, 3, 32, 32), mask=True)
    model.neck(latent, ids_restore)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert partial_of(twin)._pass is None
    assert partial_of(model)._pass is not None


# ------------------------------------------------------------------------ the ratio, later


def test_set_throw_ratio_is_attach_at_that_ratio():
    model, expected = prmim.attach(mae(), 0.5), prmim.attach(mae(), 0.25)
    expected.load_state_dict(model.state_dict())
    assert prmim.set_throw_ratio(model, 0.25) is model
    assert torch.equal(loss_of(model), loss_of(expected))


def test_ratio_zero_is_the_framework_and_every_parameter_stays_in_the_graph():
    framework, model = mae(), prmim.attach(mae(), 0.5)
    names = [name for name, _ in model.named_parameters()]
    prmim.set_throw_ratio(model, 0)
    ours = type(model.neck), type(model.head), type(model)
    assert ours == (MAEPretrainDecoder, MAEPretrainHead, MAE)
    assert isinstance(model.backbone, MAEViT)
    loss = loss_of(model)
    assert torch.equal(loss, loss_of(framework))
    loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None] == []
    assert not any(p.grad.any() for name, p in trained.items() if '.partial.' in name)
    prmim.set_throw_ratio(model, 0.5)
    assert [name for name, _ in model.named_parameters()] == names
    assert not torch.equal(loss_of(model), loss_of(framework))
    prmim.detach(model)
    assert torch.equal(loss_of(model), loss_of(framework))
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_copies_switch_by_themselves():
    model = prmim.attach(mae(), 0.5)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        prmim.set_throw_ratio(twin, 0)
        assert type(twin.neck) is MAEPretrainDecoder
        assert type(model.neck) is not MAEPretrainDecoder
        loss_of(twin).backward()
        assert all(p.grad is not None for p in partial_of(twin).parameters())


def test_the_ratio_is_checked():
    model = prmim.attach(mae(), 0.5)
    for ratio, error in ((0.75, ValueError), (-1, ValueError), ('0.3', TypeError)):
        with pytest.raises(error, match='throw_ratio'):
            prmim.set_throw_ratio(model, ratio)
    assert partial_of(model).throw_ratio == 0.5
    model.backbone.mask_ratio = 0.5  # changed while training
    with pytest.raises(ValueError, match=r'mask ratio 0.5\)'):
        prmim.set_throw_ratio(model, 0.6)
    with pytest.raises(ValueError, match=r'attached at throw_ratio=0 .*largest ratio'):
        prmim.set_throw_ratio(prmim.attach(mae(), 0), 0.25)
    plain = prmim.attach(mae(), 0, aggregator=None)
    with pytest.raises(ValueError, match='attached at throw_ratio=0'):
        prmim.set_throw_ratio(plain, 0.25)


def test_a_class_changed_by_others_is_not_overwritten():
    model = prmim.attach(mae(), 0.5)

    class Sharded(type(model.neck)):
        pass

    model.neck.__class__ = Sharded
    prmim.set_throw_ratio(model, 0.25)
    assert torch.isfinite(loss_of(model))
    with pytest.raises(ValueError, match=r'neck has become a .*Sharded since attach'):
        prmim.set_throw_ratio(model, 0)
    assert partial_of(model).throw_ratio == 0.25

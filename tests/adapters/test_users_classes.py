# SPDX-License-Identifier: Apache-2.0
"""Where a user's subclass meets a seam, and descendants with the framework's names."""

import copy
import pickle
import sys
import types

import pytest
import torch
from mmpretrain.models import MAE, MAEPretrainDecoder, MAEPretrainHead
from torch import nn
from users_mae import loss_of, mae

import prmim_adapters as prmim
from prmim_adapters.adapters import partial_of


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

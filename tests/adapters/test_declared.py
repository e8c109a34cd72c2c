# SPDX-License-Identifier: Apache-2.0
"""Declarations that are wrong; the contract of right ones is in tests/contract/cases/declared.py."""

import pickle
import sys
from types import SimpleNamespace

import pytest
import torch
from cases.declared import DEPTH, GRID, LENGTH, MASKED, THROWN, WIDTH, Block, UsersMAE, alone
from torch import nn

import prmim_adapters as prmim
from prmim_adapters.adapters import ADAPTERS
from prmim_adapters.testing import recorded_partitions, seed_everything

IMAGES = torch.randn(2, 3, 8, 12)
GOOD = dict(
    method='decode',
    arguments=('x', 'ids_restore'),
    blocks='blocks',
    prefix=1,
    mask=prmim.masks.Restore(),
    grid=lambda model: GRID,
    loss=('compare', 'mask'),
)


class Other(UsersMAE):
    """Another name for each declaration."""


class ToldBlock(Block):
    """With a shift (rows, C) and scales (B, rows, 1), as rotary positions may come."""

    def forward(self, x, shift, scales):
        return super().forward((x + shift) * scales[0])


class Told(Other):
    """Its blocks are told something of every token, by place and by name."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(ToldBlock() for _ in range(DEPTH))
        self.shift = nn.Parameter(torch.randn(1 + LENGTH, WIDTH))
        self.scale = nn.Parameter(torch.rand(2, 1 + LENGTH, 1))

    def through(self, block, x):
        return block(x, self.shift, scales=(self.scale,))


class ToldOtherwiseBlock(Block):
    """With a shift (rows, 1, C), and scales (B, rows)."""

    def forward(self, x, shift, scales):
        return super().forward((x + shift.flatten(-2)) * scales[0][..., None])


class ToldOtherwise(Told):
    """The same arguments with other axes."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(ToldOtherwiseBlock() for _ in range(DEPTH))
        self.shift = nn.Parameter(self.shift.detach()[:, None])
        self.scale = nn.Parameter(self.scale.detach()[..., 0])


class ToldOfPatches(Told):
    """Without a row for the class token."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.randn(LENGTH, WIDTH))


@pytest.fixture
def declared(monkeypatch):
    def make(ratio=THROWN / LENGTH, cls=Other, **changes):
        name = f'{Other.__module__}.Other'
        ADAPTERS._entries.pop(name, None)
        prmim.declare(name, **{**GOOD, **changes})
        return prmim.attach(cls(), throw_ratio=ratio)

    yield make
    ADAPTERS._entries.pop(f'{Other.__module__}.Other', None)


def visible_for_masked(module, arguments):
    return ~prmim.masks.Restore()(module, arguments)


def loss_of(model, images=IMAGES):
    seed_everything(model, 0)
    return model(images)


@pytest.mark.parametrize(
    ('changes', 'error', 'message'),
    [
        (dict(blocks='blcks'), TypeError, "has no module 'blcks', as declared"),
        (dict(host='decoder'), TypeError, "has no module 'decoder', as declared"),
        (dict(method='decod'), TypeError, "Other has no method 'decod', as declared"),
        (
            dict(arguments=('x', 'ids_restore', 'mask')),
            TypeError,
            r'is decode\(self, x, ids_restore\), but',
        ),
        (dict(blocks='norm'), TypeError, r'Other.norm is a .*LayerNorm: the adapter .*ModuleList'),
        (dict(order='shuffled'), ValueError, "order='shuffled': allowed are 'grid'"),
        (
            dict(mask=prmim.masks.Argument('maks')),
            ValueError,
            r"reads 'maks', which is not among the arguments of 'decode': x, ids_restore",
        ),
        (dict(mask=prmim.masks.Restore(tokens='latent')), ValueError, "reads 'latent', which is"),
        (dict(mask=prmim.masks.Result('decode')), ValueError, 'is the declared method itself'),
        (dict(grid=lambda model: LENGTH), TypeError, 'grid is 24: it must be rows and columns'),
        (dict(grid=lambda model: (2, 4, 3)), TypeError, r'grid is \(2, 4, 3\): it must be rows'),
        (dict(prefix=-1), ValueError, 'prefix=-1: must be a number of rows'),
        (dict(prefix=True), ValueError, 'prefix=True: must be a number of rows'),
        (
            dict(prefix=lambda model: -1),
            ValueError,
            'num_prefix=-1: must be an integer of at least 0',
        ),
        (dict(grid=lambda model: model.gridsize), TypeError, "grid asks Other .* 'gridsize'"),
        (dict(loss=('compar', 'mask')), TypeError, "Other has no method 'compar', as declared"),
        (dict(loss=('compare', 'weight')), TypeError, r"mask\) has no argument 'weight', as decl"),
        (dict(mask=prmim.masks.Result('mask')), TypeError, "Other has no method 'mask', as decl"),
    ],
)
def test_wrong_at_attach(declared, changes, error, message):
    with pytest.raises(error, match=message):
        declared(**changes)


@pytest.mark.parametrize(
    ('changes', 'error', 'message'),
    [
        (dict(prefix=0), ValueError, r'the first block got \(2, 25, 12\), but .*0 \+ 24'),
        (dict(grid=lambda model: (5, 5)), ValueError, r'does not fit the 5x5 patch grid'),
        (
            dict(mask=prmim.masks.Argument('ids_restore', masked=False)),
            ValueError,
            'cannot throw 12 tokens',
        ),
        (
            dict(mask=prmim.masks.Restore(prefix=0), loss=None),
            ValueError,
            r'a token that is visible by Restore\(.* enters the blocks as a mask token',
        ),
        (
            dict(mask=prmim.masks.Restore(prefix=0), per_image=True),
            ValueError,
            'the loss weighs 36 tokens of the batch, of which 34 are among the 34',
        ),
        (dict(per_token=('rope',)), ValueError, "called without 'rope', declared by per_token"),
        (dict(per_token=(0,)), ValueError, 'called without 0, declared by per_token'),
    ],
)
def test_wrong_in_the_first_step(declared, changes, error, message):
    with pytest.raises(error, match=message):
        loss_of(declared(**changes))


@pytest.mark.parametrize(
    'changes',
    [
        dict(mask=visible_for_masked),
        dict(order='visible_first'),
    ],
    ids=['polarity', 'order'],
)
def test_rows_that_are_no_mask_tokens(declared, changes):
    """At a ratio that a mask of the wrong polarity allows, too."""
    model = declared(**changes, ratio=1 / LENGTH)
    with pytest.raises(ValueError, match='differs between images, so it is not mask token'):
        loss_of(model)


def test_a_loss_of_other_tokens(declared):
    """Where rows may differ between images, and in a batch of one, the loss's mask tells."""
    model = declared(mask=visible_for_masked, per_image=True, ratio=1 / LENGTH)
    with pytest.raises(ValueError, match='weighs 36 tokens of the batch, of which 0 are among'):
        loss_of(model)
    model = declared(mask=visible_for_masked, ratio=1 / LENGTH)
    with pytest.raises(ValueError, match='weighs 18 tokens of the batch, of which 0 are among'):
        model(IMAGES[:1])


def test_views_and_passes_without_a_loss(declared):
    """Losses are compared with the masks of several passes."""
    model = declared()
    for images in (IMAGES, IMAGES[:1], IMAGES):
        model.decode(*model.encode(images))
    views = [model.encode(images) for images in (IMAGES, -IMAGES)]
    predicted = [model.decode(*view) for view in views]
    for (_, restore), pred in zip(views, predicted, strict=True):
        model.compare(IMAGES, pred, (restore >= LENGTH - MASKED).float())
    assert model.partial.masks_seen is None


def test_rows_that_differ_between_images_on_purpose(declared):
    assert loss_of(declared(order='visible_first', per_image=True)).isfinite()
    model = declared()
    assert not hasattr(model.partial, 'rows_checked')
    loss_of(model)
    assert model.partial.rows_checked


def test_blocks_that_are_not_iterated_over(declared, monkeypatch):
    model = declared()
    every = lambda blocks: iter(blocks._modules.values())  # noqa: E731, by index, for example
    monkeypatch.setattr(type(model.blocks), '__iter__', every)
    with pytest.raises(RuntimeError, match="did not iterate over 'blocks', so that all tokens"):
        loss_of(model)


@pytest.mark.parametrize('cls', [Told, ToldOtherwise])
def test_arguments_with_a_row_for_every_token(declared, cls):
    """Where tokens do not see each other, those that are not thrown are the framework's."""
    model = declared(cls=cls, per_token=(0, 'scales'))
    alone(lambda model: model.blocks, lambda block: block.attention.out_proj)(model)
    tokens, restore = model.encode(IMAGES)
    with recorded_partitions(model) as seen:
        ours = model.decode(tokens, restore)
    prmim.detach(model)
    theirs = model.decode(tokens, restore)
    present = seen[0][1].present[..., None].expand(-1, -1, ours.shape[-1])
    torch.testing.assert_close(ours.gather(1, present), theirs.gather(1, present))
    assert not torch.allclose(ours, theirs)


def test_arguments_with_other_rows(declared):
    model = declared(cls=ToldOfPatches, per_token=(0, 'scales'))
    with pytest.raises(
        ValueError, match=rf'shape \({LENGTH}, .*\({1 + LENGTH}, ...\), the same for'
    ):
        loss_of(model)
    model = declared(cls=Told, per_token=(0, 'scales'))
    model.scale = nn.Parameter(torch.ones(1 + LENGTH, 1 + LENGTH))  # as many images as rows
    with pytest.raises(ValueError, match='it may be both: take another batch size'):
        loss_of(model, IMAGES[:1].repeat(1 + LENGTH, 1, 1, 1))


def test_reentrant_checkpointing_would_lose_gradients(declared):
    model = declared()
    model.reentrant = True
    with pytest.raises(RuntimeError, match='pass use_reentrant=False'):
        loss_of(model)
    with torch.no_grad():
        assert loss_of(model).isfinite()


def test_without_a_loss_weights_are_refused(declared):
    assert loss_of(declared(loss=None)).isfinite()
    with pytest.raises(ValueError, match='aggregator=None and thrown_weight are not supported'):
        prmim.attach(Other(), throw_ratio=0.25, aggregator=None)


def test_twice(declared):
    declared()
    with pytest.raises(KeyError, match='registered already; pass force=True'):
        prmim.declare(f'{Other.__module__}.Other', **GOOD)
    prmim.declare(f'{Other.__module__}.Other', force=True, **{**GOOD, 'prefix': lambda model: 1})
    assert loss_of(prmim.attach(Other(), throw_ratio=THROWN / LENGTH)).isfinite()


def test_a_name_that_is_registered_but_not_imported_is_taken():
    name = 'hiera.hiera_mae.MaskedAutoencoderHiera'
    with pytest.raises(KeyError, match='registered already; pass force=True'):
        prmim.declare(name, **GOOD)


def test_one_name_for_several_frameworks(monkeypatch):
    """'name (whose)': a user's own first, then the one that is meant, else the plain one."""
    registry = type(ADAPTERS)('framework adapter')
    name = f'{Other.__module__}.Other'
    plain, meant = SimpleNamespace(), SimpleNamespace(meant=lambda cls: hasattr(cls, 'decode'))
    for key, adapter in ((name, plain), (f'{name} (audio)', meant)):
        registry.register_location(key, 'nowhere')
        registry.register_module(framework=key, module=adapter)
    assert registry.find(Other) == f'{name} (audio)'
    meant.meant = lambda cls: False
    assert registry.find(Other) == name
    registry.register_module(framework=f'{name} (mine)', module=SimpleNamespace())
    assert registry.find(Other) == f'{name} (mine)'
    registry.register_module(framework=name, module=plain, force=True)
    assert registry.find(Other) == name


def test_units_of_frames():
    units = prmim.masks.Units('mask', lambda m: (1, 2, 3), lambda m: (2, 4, 6), masked=False)
    visible = torch.rand(2, 2 * 2 * 2) < 0.5
    mask = units(None, {'mask': visible}).view(2, 2, 2, 2, 2, 3)  # B, t, (h, 2), (w, 3)
    expected = ~visible.view(2, 2, 2, 1, 2, 1).expand(-1, -1, -1, 2, -1, 3)
    assert torch.equal(mask, expected)


def test_units_and_results_that_are_no_mask():
    units = prmim.masks.Units('mask', lambda m: (1, 1), lambda m: (4, 6))
    with pytest.raises(ValueError, match=r'has 6 units per image, but a grid of \(4, 6\)'):
        units(None, {'mask': torch.ones(2, 6)})
    for index, found in ((None, 'tuple of 2'), (2, 'tuple of 2'), (0, 'tuple of 2')):
        with pytest.raises(TypeError, match=f'it returned a {found}, where there is no mask'):
            prmim.masks.Result('masking', index).of(('unused', torch.ones(2, 6)))
    with pytest.raises(TypeError, match='it returned a NoneType, where there is no mask'):
        prmim.masks.Result('masking').of(None)


def test_a_class_made_anew_in_another_process(declared):
    from prmim_adapters.adapters import between

    model = declared()
    name = type(model).__qualname__
    made = between._MADE.copy()
    between._MADE.clear()
    try:
        again = getattr(sys.modules[type(model).__module__], name)
        names = [[cls.__qualname__ for cls in c.__mro__] for c in (again, type(model))]
        assert names[0] == names[1]
        assert again is not type(model)
    finally:
        between._MADE.update(made)
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(loss_of(twin), loss_of(model))
    assert MASKED > THROWN

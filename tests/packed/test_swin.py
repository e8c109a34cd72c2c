# SPDX-License-Identifier: Apache-2.0
"""Packed Swin against mmpretrain's dense one, with thrown keys masked there by other means."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.models.selfsup.simmim import SimMIMSwinTransformer
from mmpretrain.models.utils import ShiftWindowMSA

from prmim_adapters.adapters.mmpretrain.swin import check_packable, embed_units, stages
from prmim_adapters.packed import swin as packed_swin
from prmim_adapters.packed import window_attention, windows
from prmim_adapters.packed.units import Units

ARCH = {'embed_dims': 16, 'depths': [2, 2, 2, 2], 'num_heads': [1, 2, 4, 8]}


def swin(window=6, size=192, **options):
    torch.manual_seed(0)
    model = SimMIMSwinTransformer(
        arch=ARCH,
        img_size=size,
        stage_cfgs={'block_cfgs': {'window_size': window}},
        drop_path_rate=options.pop('drop_path_rate', 0.0),
        **options,
    )
    for name, parameter in model.named_parameters():  # far from the symmetric initialisation
        scale = 0.5 if 'bias_table' in name else 0.1
        torch.nn.init.normal_(parameter, 1.0 if name.endswith('norm1.weight') else 0.0, scale)
    return model


class DenseMasked(ShiftWindowMSA):
    """The stock attention; keys where ``absent`` (B, H, W) is True get -1e4."""

    def get_attn_mask(self, hw_shape, window_size, shift_size, device=None):
        absent = self.absent.float()
        height, width = absent.shape[1:]
        absent = F.pad(absent, (0, hw_shape[1] - width, 0, hw_shape[0] - height))
        absent = absent.roll((-shift_size, -shift_size), (1, 2))[..., None]
        keys = self.window_partition(absent, window_size).flatten(1)
        mask = keys[:, None, :] * -1e4
        region = super().get_attn_mask(hw_shape, window_size, shift_size, device)
        if region is not None:
            mask = mask + region.repeat(absent.shape[0], 1, 1)
        return mask.expand(-1, window_size**2, -1)


def dense(model, images, mask, thrown):
    """Stock forward with thrown units' keys masked; thrown (B, h, w) bool on the unit grid."""
    model = copy.deepcopy(model)
    for stage, side in zip(model.stages, (8, 4, 2, 1), strict=True):
        for block in stage.blocks:
            block.attn.__class__ = DenseMasked
            block.attn.absent = thrown.repeat_interleave(side, 1).repeat_interleave(side, 2)
    return model, model(images, mask)[0].flatten(2).transpose(1, 2)


def packed(model, images, units_masked, units, num_visible):
    """Packed forward; ``units`` (B, U), visible ones first."""
    grid = tuple(units_masked.shape[1:])
    visible = embed_units(model, images, Units(units[:, :num_visible], grid))
    kept = units.shape[1] - num_visible
    tokens = model.mask_token.expand(images.shape[0], kept * 64, -1).to(visible.dtype)
    tokens = torch.cat((visible, tokens), 1)
    encoded = packed_swin.encode_units(tokens, stages(model, grid), Units(units, grid))
    return model.norm3(encoded)


@pytest.fixture
def batch():
    return make_batch((6, 6), num_masked=22, num_thrown=18)


def make_batch(grid, num_masked, num_thrown, batch=2):
    """Images, token mask, masked and thrown units, present units with visible ones first."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 3, grid[0] * 32, grid[1] * 32, generator=generator)
    order = torch.rand(batch, grid[0] * grid[1], generator=generator).argsort(1)
    masked = torch.zeros_like(order).scatter(1, order[:, :num_masked], 1).unflatten(1, grid)
    thrown = torch.zeros_like(order).scatter(1, order[:, :num_thrown], 1).unflatten(1, grid)
    mask = masked.repeat_interleave(8, 1).repeat_interleave(8, 2)
    units = torch.cat((order[:, num_masked:], order[:, num_thrown:num_masked]), 1)
    return images, mask, masked, thrown.bool(), units


def run_both(model, batch):
    images, mask, masked, thrown, units = batch
    reference, expected = dense(model, images, mask, thrown)
    found = packed(model, images, masked, units, int((masked[0] == 0).sum()))
    expected = expected.gather(1, units[..., None].expand(-1, -1, expected.shape[-1]))
    return reference, expected, found


CASES = {
    'window 6, as SimMIM Swin-B': ((6, 6), {}),
    'window 12, padded, as SimMIM Swin-L': ((6, 6), {'window': 12, 'pad_small_map': True}),
    'window 7 pads every map': ((6, 6), {'window': 7, 'pad_small_map': True}),
    'wide image': ((4, 6), {'window': 4, 'size': (128, 192)}),
}


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('num_thrown', [0, 10])
def test_equals_the_dense_network_with_thrown_keys_masked(case, num_thrown):
    grid, options = CASES[case]
    model = swin(**options)
    reference, expected, found = run_both(model, make_batch(grid, 14, num_thrown))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    for (name, mine), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_all_units_equal_the_stock_backbone(batch):
    model = swin()
    images, mask, masked, _, _ = batch
    units = masked.flatten(1).argsort(dim=1, stable=True)
    (stock,) = model(images, mask)
    found = packed(model, images, masked, units, 14)
    expected = stock.flatten(2).transpose(1, 2)
    expected = expected.gather(1, units[..., None].expand(-1, -1, expected.shape[-1]))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_thrown_keys_matter(batch):
    """Guard of the reference: masking thrown keys changes the dense network's output."""
    model = swin()
    images, mask, _, thrown, units = batch
    _, masked_out = dense(model, images, mask, thrown)
    stock = model(images, mask)[0].flatten(2).transpose(1, 2)
    assert (masked_out - stock)[0, units[0]].abs().max() > 0.01


def test_drop_path_draws_as_the_dense_network(batch):
    model = swin(drop_path_rate=0.5)
    images, mask, masked, thrown, units = batch
    torch.manual_seed(3)
    _, expected = dense(model, images, mask, thrown)
    torch.manual_seed(3)
    found = packed(model, images, masked, units, 14)
    expected = expected.gather(1, units[..., None].expand(-1, -1, expected.shape[-1]))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.manual_seed(4)
    assert not torch.allclose(packed(model, images, masked, units, 14), found)


def test_checkpointing_changes_no_number(batch):
    images, _, masked, _, units = batch
    outputs, gradients = [], []
    for with_cp in (False, True):
        model = swin(with_cp=with_cp, drop_path_rate=0.3)
        torch.manual_seed(5)
        out = packed(model, images, masked, units, 14)
        out.square().sum().backward()
        outputs.append(out)
        gradients.append([p.grad for p in model.parameters()])
    assert torch.equal(*outputs)
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.fixture
def store():
    """Switches to the attention that autograd differentiates, which holds all of its tensors."""
    with pytest.MonkeyPatch.context() as patch:
        yield lambda: patch.setattr(packed_swin, 'attend_again', window_attention.attend)


def test_attention_dropout_is_redrawn_alike_in_backward(store):
    model = swin()
    for stage in model.stages:
        for block in stage.blocks:
            block.attn.w_msa.attn_drop.p = 0.4
    images, _, masked, _, units = make_batch((6, 6), 22, 18)
    torch.manual_seed(6)
    packed(model, images, masked, units, 14).sum().backward()
    recomputed = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    torch.manual_seed(6)
    store()
    packed(model, images, masked, units, 14).sum().backward()
    for stored, parameter in zip(recomputed, model.parameters(), strict=True):
        torch.testing.assert_close(stored, parameter.grad)


WINDOWS = {  # window, shift, side of a unit: 6x6 units
    'plain': (6, 0, 2), 'shifted': (6, 3, 2), 'padded': (7, 0, 2), 'padded, shifted': (5, 2, 2),
}  # fmt: skip


def window_attention_case(window, shift, side, bias, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()

    layout = windows.window_layout((6, 6), side, window, shift, torch.device('cpu'))
    units = torch.stack([torch.randperm(36, generator=generator)[:9] for _ in range(2)])
    table = draw((2 * window - 1) ** 2, 2)
    index = torch.randint(len(table), (window**2, window**2), generator=generator)
    qkv, qkv_bias = draw(2, 9 * side**2, 24), draw(24) if bias else None
    attention = window_attention.WindowAttention(2, 0.7, table, index, qkv_bias, 0.0)
    return attention, qkv, windows.place(layout, units)


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('case', list(WINDOWS))
def test_the_backward_of_window_attention_is_autograds(case, bias):
    attention, qkv, placed = window_attention_case(*WINDOWS[case], bias)
    leaves = [qkv, attention.bias_table, *([attention.qkv_bias] if bias else [])]
    weight = torch.randn(2, qkv.shape[1], 8, dtype=qkv.dtype)
    results = []
    for function in (window_attention.attend, window_attention.attend_again):
        out = function(attention, qkv, placed)
        found = torch.autograd.grad((out * weight).sum(), leaves, allow_unused=True)
        results.append((out, found))
    (expected, gradients), (out, found) = results
    assert torch.equal(out, expected)
    padded = placed.layout.padding is not None
    for mine, autograds in zip(found, gradients, strict=True):
        if autograds is None:  # the bias of QKV reaches attention by padded positions only
            assert not padded and mine is None
        else:
            torch.testing.assert_close(mine, autograds, rtol=1e-12, atol=1e-12)
    assert not (bias and padded) or found[2][8:].abs().min() > 0  # of keys and of values


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('case', list(WINDOWS))
def test_the_backward_of_window_attention_under_autocast(case, dtype):
    attention, qkv, placed = window_attention_case(*WINDOWS[case], True, torch.float32)
    gradients = []
    for function in (window_attention.attend, window_attention.attend_again):
        with torch.autocast('cpu', dtype):
            out = function(attention, qkv.to(dtype), placed)
        assert out.dtype == dtype
        found = torch.autograd.grad(out.float().square().sum(), [qkv, attention.bias_table])
        gradients.append(found)
    for mine, autograds in zip(gradients[1], gradients[0], strict=True):
        assert mine.dtype == autograds.dtype == torch.float32
        scale = autograds.abs().max().item()
        torch.testing.assert_close(mine, autograds, rtol=0, atol=0.01 * scale)


def test_what_window_attention_holds_is_qkv():
    attention, qkv, placed = window_attention_case(*WINDOWS['shifted'], True, torch.float32)
    held = saved_bytes(lambda: window_attention.attend_again(attention, qkv, placed))
    fixed = [attention.bias_table, attention.bias_index, attention.qkv_bias]
    fixed += [placed.rows, placed.absent, placed.layout.region]  # the same for all layers
    assert held == sum(tensor.untyped_storage().nbytes() for tensor in [qkv, *fixed])


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('whole_model', [False, True], ids=['autocast', 'converted'])
def test_empty_windows_stay_finite(dtype, whole_model):
    model = swin()
    images, _, masked, _, _ = make_batch((6, 6), 22, 18)
    units = torch.tensor([[0, 1, 6], [35, 34, 29]])  # one corner: most windows are empty
    if whole_model:
        model, images = model.to(dtype), images.to(dtype)
    with torch.autocast('cpu', dtype, enabled=not whole_model and dtype != torch.float32):
        out = packed(model, images, masked, units, 2)
    out.float().square().sum().backward()
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_bf16_autocast_is_as_close_as_the_dense_network(batch):
    model = swin()
    _, exact, _ = run_both(model, batch)
    with torch.autocast('cpu', torch.bfloat16):
        _, expected, found = run_both(model, batch)
    error = (expected - exact).abs().mean()
    assert (found - exact).abs().mean() < 1.5 * error + 1e-6


def test_stored_activations_follow_the_present_tokens(batch):
    model = swin()
    images, mask, masked, _, units = batch
    stock = saved_bytes(lambda: model(images, mask)[0])
    half = saved_bytes(lambda: packed(model, images, masked, units, 14))
    third = saved_bytes(lambda: packed(model, images, masked, units[:, :12], 8))
    assert half < 0.51 * stock  # half of the tokens are present; and where they lie in windows
    assert third < 0.75 * half


def saved_bytes(function):
    storages = {}

    def keep(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = function()
    assert out.requires_grad
    return sum(t.untyped_storage().nbytes() for t in storages.values())


def test_layouts_are_cached_and_usable_after_inference_mode(batch):
    model = swin()
    images, _, masked, _, units = batch
    windows.window_layout.cache_clear()
    with torch.inference_mode():
        packed(model, images, masked, units, 14)
    misses = windows.window_layout.cache_info().misses
    packed(model, images, masked, units, 14).sum().backward()
    assert windows.window_layout.cache_info().misses == misses == 7  # 2 + 2 + 2 + 1 shifts


def test_every_slot_is_used_once():
    for side, window, shift in [(8, 6, 3), (4, 6, 0), (2, 7, 3), (1, 12, 6)]:
        layout = windows.window_layout((6, 6), side, window, shift, torch.device('cpu'))
        used = layout.slots.flatten()
        assert used.unique().numel() == used.numel() == (6 * side) ** 2
        if layout.padding is not None:
            assert not layout.padding[used].any()
            assert int(layout.padding.sum()) == layout.num_slots - used.numel()


@pytest.mark.parametrize(
    ('size', 'window', 'shift'), [((48, 48), 6, 3), ((12, 18), 6, 2), ((12, 12), 12, 6)]
)
def test_region_mask_is_upstreams(size, window, shift):
    expected = ShiftWindowMSA.get_attn_mask(size, window, shift)
    found = windows.region_mask(size, window, shift, torch.device('cpu'))
    assert torch.equal(found, expected)
    assert found.any()


def test_neighbouring_tokens_share_a_window():
    """Window 6, no shift: token (6, 0) of the map starts the second row of windows."""
    layout = windows.window_layout((6, 6), 8, 6, 0, torch.device('cpu'))
    slot = layout.slots.view(6, 6, 8, 8).transpose(1, 2).reshape(48, 48)
    assert slot[0, :6].tolist() == list(range(6))
    assert slot[6, 0] == 8 * 36
    shifted = windows.window_layout((6, 6), 8, 6, 3, torch.device('cpu'))
    slot = shifted.slots.view(6, 6, 8, 8).transpose(1, 2).reshape(48, 48)
    assert slot[3, 3] == 0
    assert all(a + 1 == b for a, b in pairwise(slot[3, 3:9].tolist()))


def test_a_batch_keeps_no_mask_of_pairs_of_tokens():
    """Kept for backward, a mask of images and regions together would be larger than the tokens."""
    layout = windows.window_layout((6, 6), 8, 6, 3, torch.device('cpu'))
    placed = windows.place(layout, torch.arange(5).expand(2, 5))
    assert placed.absent.shape == (2, 64, 1, 1, 36)
    assert (placed.absent == 0).sum() == 2 * 5 * 64
    assert layout.region.shape == (64, 1, 36, 36)


def test_refuses_what_cannot_run_packed():
    with pytest.raises(ValueError, match=r'out_indices=\(2, 3\)'):
        check_packable(swin(out_indices=(2, 3)))
    with pytest.raises(ValueError, match='patch merging with kernel'):
        check_packable(
            SimMIMSwinTransformer(
                arch=ARCH, img_size=192, stage_cfgs={'downsample_cfg': {'kernel_size': 3}}
            )
        )
    model = swin(window=12)
    images, _, masked, _, units = make_batch((6, 6), 22, 18)
    with pytest.raises(ValueError, match='6x6 map is smaller than the window 12'):
        packed(model, images, masked, units, 14)


def test_blocks_are_told_apart_by_what_they_are():
    """torch.compile hashes a block before it has fields."""
    empty = object.__new__(packed_swin.SwinBlock)
    assert {empty: 1}[empty] == 1

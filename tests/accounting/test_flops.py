# SPDX-License-Identifier: Apache-2.0
"""MACs against closed forms written here, and against published numbers."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from prmim_adapters.accounting import UndercountError, count_macs, make_batch, training_macs


def transformer_macs(tokens: int, width: int, depth: int, hidden: int) -> int:
    """Products of pre-norm blocks: qkv and projection, two attention products, two MLP layers."""
    return depth * (tokens * (4 * width**2 + 2 * width * hidden) + 2 * tokens**2 * width)


class Probe(nn.Module):
    """The least that the loss path needs of a model."""

    def __init__(self, body: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body if body is not None else nn.Identity()

    def loss(self, inputs, data_samples):
        return {'loss': self.body(inputs).sum()}

    def parse_losses(self, losses):
        return losses['loss'], losses


def probe(function):
    """A probe whose only child runs ``function``."""

    class Body(nn.Module):
        def forward(self, x):
            return function(x)

    return Probe(Body())


def batch_of(*shape):
    return {'inputs': torch.randn(*shape), 'data_samples': None}


def test_small_mae_agrees_with_closed_form(small_mae):
    model = small_mae()
    count = count_macs(model, make_batch(model, batch_size=3))
    encoder = 64 * 64 * (3 * 8 * 8) + transformer_macs(16 + 1, 64, 2, 256)
    decoder = (
        (16 + 1) * 64 * 32 + transformer_macs(64 + 1, 32, 2, 4 * 32) + (64 + 1) * 32 * (3 * 8 * 8)
    )
    assert count.products == encoder + decoder
    norms = 5 * ((2 * 2 + 1) * 17 * 64 + (2 * 2 + 1) * 65 * 32)
    assert count.total == encoder + decoder + norms
    assert count.by_operator['layer_norm'] == norms
    assert count.top() == {
        'backbone': encoder + 5 * 5 * 17 * 64,
        'neck': decoder + 5 * 5 * 65 * 32,
    }
    assert count.by_module['neck.decoder_pred'] == 65 * 32 * 192


@pytest.mark.slow
def test_mae_vitb_golden(mae_vitb):
    """9.795 = 4.413 + 5.381: hand count of mmpretrain 1.2.0; its get_flops says 17.58 instead."""
    batch = make_batch(mae_vitb)
    count = count_macs(mae_vitb, batch)
    assert count.total / 1e9 == pytest.approx(9.795, rel=1e-3)
    assert count.top()['backbone'] / 1e9 == pytest.approx(4.413, rel=1e-3)
    assert count.top()['neck'] / 1e9 == pytest.approx(5.381, rel=1e-3)
    training = training_macs(mae_vitb, batch)
    assert training.forward.total == count.products
    # Every product has two gradients, except that of the image in the patch embedding.
    patch_embedding = 196 * 768 * 768
    assert training.backward.total == 2 * count.products - patch_embedding


@pytest.mark.slow
@pytest.mark.parametrize(
    ('path', 'gmacs'),
    [
        ('simmim/simmim_swin-base-w6_8xb256-amp-coslr-100e_in1k-192px.py', (11.304, 0.113)),
        ('maskfeat/maskfeat_vit-base-p16_8xb256-amp-coslr-300e_in1k.py', (17.582, 0.016, 0.003)),
        ('mae/mae_hivit-base-p16_8xb512-amp-coslr-400e_in1k.py', (4.457, 4.054)),
    ],
)
def test_other_frameworks_golden(upstream_config, path, gmacs):
    """Per child, by fvcore with attention handles on mmpretrain 1.2.0; masks from the pipelines."""
    from mmpretrain.registry import MODELS

    config = upstream_config(path)
    config.model.data_preprocessor = config.data_preprocessor
    model = MODELS.build(config.model)
    count = count_macs(model, make_batch(config, model))
    assert [v / 1e9 for v in count.top().values()] == pytest.approx(gmacs, rel=1e-3, abs=5e-4)


def test_training_macs_backward_is_twice_forward(small_mae):
    model = small_mae()
    training = training_macs(model, make_batch(model))
    patch_embedding = 64 * 64 * (3 * 8 * 8)
    assert training.backward.total == 2 * training.forward.total - patch_embedding
    top, forward = training.top(), training.forward.top()
    assert top['neck'] == 3 * forward['neck']
    assert top['backbone'] == 3 * forward['backbone'] - patch_embedding
    assert sum(top.values()) == training.total


def test_backward_is_attributed_where_a_module_returns_several_tensors():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 16)

        def forward(self, x):
            return self.left(x), self.right(x)

    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair, self.join = Pair(), nn.Linear(24, 4)

        def forward(self, x):
            left, right = self.pair(x)
            return self.join(torch.cat((left, right), 1)) + 0 * left.sum()

    training = training_macs(Probe(Body()), batch_of(5, 8))
    assert training.backward.by_module['body.pair'] == 8 * 24  # no gradient of the images
    assert training.backward.by_module['body.join'] == 2 * 24 * 4


def test_recomputed_forward_counts_as_backward():
    layer = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))

    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return checkpoint(self.layer, x.requires_grad_(), use_reentrant=False)

    training = training_macs(Probe(Body()), batch_of(5, 8))
    assert training.forward.total == 2 * 64
    # Two gradients per product, the images' too as they ask for one, and the products again. The
    # last one's output is not needed: torch stops recomputing early.
    assert training.backward.total in (4 * 64 + 64, 4 * 64 + 2 * 64)


def test_grouped_convolution_backward_is_not_counted_dense():
    training = training_macs(Probe(nn.Conv2d(6, 6, 3, padding=1, groups=6)), batch_of(2, 6, 5, 5))
    assert training.forward.total == 6 * 9 * 25
    assert training.backward.total == 6 * 9 * 25  # weight only; images want no gradient


def test_attention_fused_and_explicit_count_the_same():
    def fused(x):
        return nn.functional.scaled_dot_product_attention(x, x[..., :5, :], x[..., :5, :])

    def explicit(x):
        return (x @ x[..., :5, :].mT).softmax(-1) @ x[..., :5, :]

    counts = [count_macs(probe(f), batch_of(2, 3, 7, 4)) for f in (fused, explicit)]
    assert counts[0].total == counts[1].total == 3 * 2 * 7 * 5 * 4
    assert counts[0].by_operator == {'attention': 3 * 2 * 7 * 5 * 4}


def test_einsum_counts_products_exactly_and_permutations_not_at_all():
    weight = torch.randn(7, 11)
    moved = count_macs(probe(lambda x: torch.einsum('nchw->nhwc', x)), batch_of(2, 3, 4, 5))
    assert moved.total == 0
    product = count_macs(probe(lambda x: torch.einsum('bij,jk->bik', x, weight)), batch_of(2, 3, 7))
    assert product.total == 3 * 7 * 11


def test_baddbmm_is_counted():
    def function(x):
        return torch.baddbmm(torch.zeros(1), x, x.mT)

    assert count_macs(probe(function), batch_of(2, 3, 7)).total == 3 * 7 * 3


def test_heavy_operator_without_handle_is_refused():
    with pytest.raises(UndercountError, match=r'aten::cdist.*OP_HANDLES'):
        count_macs(probe(lambda x: torch.cdist(x, x)), batch_of(2, 3, 7))


def test_operator_of_another_library_is_refused():
    @torch.library.custom_op('prmim_test_foreign::matmul', mutates_args=())
    def matmul(x: torch.Tensor) -> torch.Tensor:
        return x @ x.mT

    with pytest.raises(UndercountError, match='prmim_test_foreign::matmul'):
        count_macs(probe(matmul), batch_of(2, 3, 7))


def hidden(x):
    """A product while the tracer pauses, as ``torch.jit.ignore`` does: only one counter sees it."""
    tracing = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)
    product = x @ x.mT
    torch._C._set_tracing_state(tracing)
    return product.detach() + 0


def test_product_hidden_from_the_trace_is_refused():
    with pytest.raises(UndercountError, match='misses an operator'):
        count_macs(probe(hidden), batch_of(2, 3, 7))


def test_a_few_hidden_products_are_refused():
    """One in a thousand is a bug in a handle as well."""
    with pytest.raises(UndercountError, match='misses an operator'):
        count_macs(probe(lambda x: x @ x.mT + hidden(x[:, :1, :2])[:, :1, :1]), batch_of(2, 30, 70))


def test_sizes_are_integers_while_tracing():
    def function(x):
        height, width = x.shape[-2:]
        assert type(height) is int
        assert type(x.size(-1)) is int
        return nn.functional.interpolate(x, size=(height, width), mode='bicubic')

    count_macs(probe(function), batch_of(1, 3, 4, 6))
    assert torch.Tensor.shape is torch._C.TensorBase.shape
    assert torch.Tensor.size is torch._C.TensorBase.size


def test_the_model_and_the_random_state_stay_as_they_were(small_mae):
    model = small_mae()
    model.eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    batch = make_batch(model)
    count_macs(model, batch)
    training_macs(model, batch)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_counts_are_per_image(small_mae):
    model = small_mae()
    totals = [count_macs(model, make_batch(model, batch_size=n)).total for n in (1, 4)]
    assert math.isclose(*totals, rel_tol=1e-12)


@pytest.mark.parametrize('output', [lambda x: x, lambda x: (x, None), lambda x: Output(x)])
def test_models_of_other_libraries_return_their_loss(output):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, image, mask):
            return output((self.layer(image) * mask).sum())

    batch = {'inputs': [torch.randn(3, 5, 8), torch.ones(3, 5, 1)], 'data_samples': None}
    assert count_macs(Model(), batch).total == 5 * 8 * 4
    assert training_macs(Model(), batch).total == 2 * 5 * 8 * 4


class Output:
    """Like the outputs of Hugging Face: the loss by name."""

    def __init__(self, loss):
        self.loss = loss


def test_a_model_without_loss_is_refused():
    with pytest.raises(TypeError, match='the model returned Tensor, in which there is no scalar'):
        count_macs(nn.Linear(8, 4), batch_of(5, 8))

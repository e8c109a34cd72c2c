# SPDX-License-Identifier: Apache-2.0
"""Packed sequences of several lengths against each length by itself, on mmpretrain's ViT."""

import pytest
import torch

from prmim_adapters.adapters.mmpretrain.ibot import describe
from prmim_adapters.frameworks.ibot import IBOTViT
from prmim_adapters.packed.sequences import encode_packed, plan_calls

WIDTH = 32


def vit(num_layers=3, drop_path_rate=0.0):
    torch.manual_seed(0)
    arch = dict(embed_dims=WIDTH, num_layers=num_layers, num_heads=2, feedforward_channels=64)
    options = dict(img_size=(32, 48), patch_size=8, layer_scale_init_value=0.5)
    backbone = IBOTViT(arch=arch, drop_path_rate=drop_path_rate, **options)
    backbone.train()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return backbone


def packed(backbone, sequences):
    lengths = [x.shape[1] for x in sequences for _ in x]
    rows = torch.cat([x.flatten(0, 1) for x in sequences])
    rows = encode_packed(rows, lengths, map(describe, backbone.layers), backbone.ln1)
    parts = rows.split([x.shape[0] * x.shape[1] for x in sequences])
    return [part.view_as(x) for part, x in zip(parts, sequences, strict=True)]


@pytest.mark.parametrize('drop_path_rate', [0.0, 0.5])
def test_packing_changes_neither_outputs_nor_gradients(drop_path_rate):
    backbone = vit(drop_path_rate=drop_path_rate)
    sequences = [torch.randn(b, n, WIDTH) for b, n in ((3, 9), (1, 25), (2, 23), (2, 22), (2, 4))]
    weights = [torch.randn_like(x) for x in sequences]

    def run(encode):
        torch.manual_seed(1)
        leaves = [x.clone().requires_grad_() for x in sequences]
        outputs = encode(leaves)
        sum((x * w).sum() for x, w in zip(outputs, weights, strict=True)).backward()
        gradients = [p.grad.clone() for p in backbone.layers.parameters()]
        backbone.zero_grad()
        return [*outputs, *(x.grad for x in leaves), *gradients]

    expected = run(lambda xs: length_by_length(backbone, xs))
    for ours, theirs in zip(run(lambda xs: packed(backbone, xs)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def length_by_length(backbone, sequences):
    """The framework's own modules; draws come in the order of the images in each of them."""
    for layer in backbone.layers:
        sequences = [x + layer.attn(layer.ln1(x)) for x in sequences]
        sequences = [layer.ffn(layer.ln2(x), identity=x) for x in sequences]
    return [backbone.ln1(x) for x in sequences]


def test_stochastic_depth_drops_whole_images():
    backbone = vit(1)
    (layer,) = backbone.layers
    layer.attn.out_drop.drop_prob = layer.ffn.dropout_layer.drop_prob = 0.5
    sequences = [torch.randn(20, 5, WIDTH), torch.randn(20, 7, WIDTH)]
    seen = set()
    for x, out in zip(sequences, packed(backbone, sequences), strict=True):
        backbone.eval()
        update = layer.attn(layer.ln1(x))
        for image in range(len(x)):
            fits = []
            for first in (0.0, 2.0):  # dropped, or kept at twice its size
                middle = x[image] + first * update[image]
                change = layer.ffn.gamma2(layer.ffn.layers(layer.ln2(middle)))
                for second in (0.0, 2.0):
                    expected = backbone.ln1(middle + second * change)
                    if torch.allclose(out[image], expected, atol=1e-5):
                        fits.append((first, second))
            assert len(fits) == 1
            seen.add(fits[0])
    assert len(seen) == 4


def test_lengths_add_only_the_kernels_of_attention():
    """Token-wise layers and stochastic depth run once, attention for lengths far from each other."""
    backbone = vit(2, drop_path_rate=0.5)
    attention = 'aten::scaled_dot_product_attention'

    def kernels(*shapes):
        sequences = [torch.randn(b, n, WIDTH) for b, n in shapes]
        with torch.profiler.profile() as profile, torch.no_grad():
            packed(backbone, sequences)
        names = [event.name for event in profile.events()]
        counted = ('aten::addmm', 'aten::native_layer_norm', 'aten::rand', attention)
        return {name: names.count(name) for name in counted}

    one = kernels((6, 5))
    assert one['aten::rand'] == one[attention] == 2
    assert kernels((2, 9), (2, 6), (2, 3)) == one | {attention: 6}
    assert kernels((2, 8), (2, 7), (2, 8)) == one
    assert kernels((2, 5), (4, 5)) == one


def test_calls_of_attention_pad_by_an_eighth():
    calls = plan_calls([197] * 32 + list(range(196, 132, -2)), torch.device('cpu'))
    ends = [(max(call.lengths), min(call.lengths), call.width) for call in calls]
    assert ends == [(197, 174, 200), (172, 152, 176), (150, 134, 152)]
    assert sum(len(call.lengths) for call in calls) == 64
    first = calls[0]
    assert torch.equal(first.mask[:, 0, 0].sum(1), torch.tensor(first.lengths))
    assert torch.equal(first.rows[first.places], torch.arange(sum(first.lengths)))
    (whole,) = plan_calls([5, 5], torch.device('cpu'))
    assert whole.rows is None
    assert whole.width == 5

# SPDX-License-Identifier: Apache-2.0
"""Sizes that transformers fails on at the first batch are refused at attach, by their names."""

import pytest
import torch

import prmim_adapters as prmim

transformers = pytest.importorskip(
    'transformers', reason="needs transformers: pip install 'prmim-adapters[huggingface]'"
)

SMALL = dict(
    hidden_size=12,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=24,
    image_size=16,
    patch_size=4,
)
SWIN = dict(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 1])
HIERA = dict(
    image_size=[64, 64],
    embed_dim=4,
    num_heads=[1, 1, 1],
    depths=[1, 1, 1],
    masked_unit_size=[4, 4],
    num_query_pool=1,
    decoder_hidden_size=8,
    decoder_depth=1,
    decoder_num_heads=1,
)


def masked_image_model(kind, **options):
    config = getattr(transformers, f'{kind}Config')
    options = dict(SWIN if kind == 'Swin' else SMALL, **options)
    return getattr(transformers, f'{kind}ForMaskedImageModeling')(config(**options))


@pytest.mark.parametrize('kind', ['ViT', 'DeiT', 'Swin'])
def test_the_reconstruction_has_the_size_of_the_images(kind):
    prmim.attach(masked_image_model(kind, encoder_stride=4), 0.25)
    model = masked_image_model(kind, encoder_stride=8)
    with pytest.raises(ValueError, match=r'encoder_stride=8.*4x4 pixels: set .*encoder_stride=4'):
        prmim.attach(model, 0.25)
    assert not prmim.is_attached(model)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(patch_stride=[4, 2]), r'patch_stride=\[4, 2\]: .*two equal numbers'),
        (dict(masked_unit_size=[8, 8]), r'3 stages .* set config\.masked_unit_size=\[4, 4\]'),
        (dict(image_size=[60, 64]), r'image_size=\[60, 64\] .* mask units of 16 pixels'),
        (dict(patch_stride=[3, 3]), r'image_size=.* mask units of 12 pixels'),
        (dict(patch_padding=[0, 0]), r'patch_padding=\[0, 0\] .*must be 1 to 4'),
    ],
)
def test_sizes_of_hiera(options, message):
    model = transformers.HieraForPreTraining(transformers.HieraConfig(**(HIERA | options)))
    with pytest.raises(ValueError, match=message):
        prmim.attach(model, 0.25)
    with pytest.raises((RuntimeError, IndexError)):  # which is why
        model(torch.randn(1, 3, *model.config.image_size))


def test_sizes_of_hiera_that_fit():
    config = transformers.HieraConfig(**(HIERA | dict(patch_size=[6, 6], patch_padding=[2, 2])))
    model = prmim.attach(transformers.HieraForPreTraining(config), 0.25)
    model(torch.randn(2, 3, 64, 64)).loss.backward()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(num_frames=5), r'num_frames=5 .* tubelet_size=2: choose a multiple'),
        (dict(num_channels=1, norm_pix_loss=False), r'num_channels=1.*set .*norm_pix_loss=True'),
    ],
)
def test_sizes_of_videomae(options, message):
    config = transformers.VideoMAEConfig(
        **(SMALL | dict(num_frames=4, decoder_num_hidden_layers=1, decoder_num_attention_heads=2)),
        decoder_hidden_size=12,
        decoder_intermediate_size=24,
    )
    config.update(options)
    with pytest.raises(ValueError, match=message):
        prmim.attach(transformers.VideoMAEForPreTraining(config), 0.25)

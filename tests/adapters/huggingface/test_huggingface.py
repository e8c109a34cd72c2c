# SPDX-License-Identifier: Apache-2.0
"""What the contract matrix does not ask of the Hugging Face adapters."""

import inspect

import pytest
import torch
from torch.testing import assert_close

import prmim_adapters as prmim
from prmim_adapters.accounting import count_macs
from prmim_adapters.adapters import partial_of
from prmim_adapters.testing import seed_everything

transformers = pytest.importorskip(
    'transformers', reason="needs transformers: pip install 'prmim-adapters[huggingface]'"
)

SMALL = dict(
    hidden_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=48,
    image_size=32,
    patch_size=4,
)


def vitmae(**options):
    torch.manual_seed(0)
    config = transformers.ViTMAEConfig(
        **(SMALL | options),
        decoder_hidden_size=32,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
    )
    return transformers.ViTMAEForPreTraining(config).train()


def vit(**options):
    torch.manual_seed(0)
    config = transformers.ViTConfig(**(SMALL | dict(encoder_stride=4) | options))
    return transformers.ViTForMaskedImageModeling(config).train()


def swin(**options):
    torch.manual_seed(0)
    options = (
        dict(
            image_size=32,
            patch_size=2,
            embed_dim=16,
            depths=[2, 2],
            num_heads=[2, 4],
            window_size=4,
            encoder_stride=4,
            drop_path_rate=0.0,
        )
        | options
    )
    return transformers.SwinForMaskedImageModeling(transformers.SwinConfig(**options)).train()


def images(seed: int = 5) -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def masks(scale: int = 1, masked: int = 40) -> torch.Tensor:
    order = torch.rand(3, 64, generator=torch.Generator().manual_seed(7)).argsort(1)
    mask = torch.zeros_like(order).scatter(1, order[:, :masked], 1).view(3, 8, 8)
    return mask.repeat_interleave(scale, 1).repeat_interleave(scale, 2).flatten(1).bool()


def mae_call(model, **options):
    torch.manual_seed(1)
    return model(images(), **options)


CALLS = {
    'vitmae': (vitmae, mae_call),
    'vit': (vit, lambda model, **o: model(images(), bool_masked_pos=masks(), **o)),
    'swin': (swin, lambda model, **o: model(images(), bool_masked_pos=masks(2), **o)),
}


@pytest.fixture(params=CALLS)
def subject(request):
    build, call = CALLS[request.param]
    torch.manual_seed(2)
    return prmim.attach(build(), throw_ratio=0.4), call


def test_outputs_keep_their_shapes(subject):
    model, call = subject
    ours = call(model)
    prmim.detach(model)
    upstream = call(model)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in upstream.items()}


@pytest.mark.parametrize('options', [{}, {'thrown_weight': 0.5}])
def test_tuples_are_the_outputs(subject, options):
    model, call = subject
    prmim.detach(model)
    prmim.attach(model, throw_ratio=0.4, **options)
    seed_everything(model, 3)
    named = call(model)
    seed_everything(model, 3)
    plain = call(model, return_dict=False)
    assert len(plain) == len(named.to_tuple())
    for a, b in zip(plain, named.to_tuple(), strict=True):
        assert torch.equal(a, b)


def test_gradient_checkpointing(subject):
    model, call = subject

    def gradients():
        model.zero_grad()
        seed_everything(model, 3)
        loss = call(model).loss
        loss.backward()
        return loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}

    expected = gradients()
    model.gradient_checkpointing_enable()
    actual = gradients()
    assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_save_and_load(subject, tmp_path):
    """A checkpoint of an attached model loads in the upstream class, under its name."""
    model, call = subject
    model.save_pretrained(tmp_path)
    name = transformers.AutoConfig.from_pretrained(tmp_path).architectures[0]
    upstream = getattr(transformers, name).from_pretrained(tmp_path)
    prmim.detach(model)
    upstream.train()
    torch.manual_seed(3)
    expected = call(model).loss
    torch.manual_seed(3)
    assert torch.equal(call(upstream).loss, expected)


@pytest.mark.parametrize('build', [vitmae, vit, swin])
def test_the_signature_stays(build):
    """Trainer chooses the columns of a data set by it, and callers pass arguments by position."""
    model = build()
    names = list(inspect.signature(model.forward).parameters)[:3]
    prmim.attach(model, throw_ratio=0.25)
    assert list(inspect.signature(model.forward).parameters)[:3] == names
    images = torch.rand(2, 3, 32, 32)
    if build is vitmae:
        noise = torch.rand(2, 64, generator=torch.Generator().manual_seed(1))
        masks = [model(images, noise, False).mask for _ in range(2)]
        assert torch.equal(*masks)
    else:
        assert model(images, None, False).reconstruction.shape == images.shape


def test_images_without_a_mask_are_encoded_whole():
    for model, patches in ((vit(), 64), (swin(), 64)):
        expected = model(images()).reconstruction
        assert torch.equal(prmim.attach(model)(images()).reconstruction, expected)
        assert model.base_model(images()).last_hidden_state.shape[1] in (patches, patches + 1)


def test_swin_drops_paths_as_upstream():
    """Around attention only; every unit packed, under one seed."""
    from prmim_adapters.adapters.huggingface.swin import _stages
    from prmim_adapters.packed.swin import encode_units
    from prmim_adapters.packed.units import Units

    model = swin(drop_path_rate=0.5).swin
    torch.manual_seed(3)
    expected = model(images(), bool_masked_pos=masks(2)).last_hidden_state
    torch.manual_seed(3)
    tokens, size = model.embeddings(images(), masks(2))
    units = Units.all(3, (8, 8))
    tokens = units.gather(tokens.transpose(1, 2).unflatten(2, size))
    found = encode_units(tokens, _stages(model.encoder.layers, size), units)
    assert_close(model.layernorm(found), expected)


def test_swin_with_padded_and_clamped_windows():
    """A window that does not divide the map (padding), and one that exceeds it (no shift)."""
    for window in (3, 8):
        model = swin(window_size=window)
        expected = model(images(), bool_masked_pos=masks(2)).loss
        prmim.attach(model, throw_ratio=1 / 64, sampler='random')
        model.swin.partial.throw_ratio = 0.0
        assert_close(model(images(), bool_masked_pos=masks(2)).loss, expected)


def test_errors():
    ragged = masks().clone()
    ragged[0, :] = False
    ragged[0, :30] = True
    with pytest.raises(ValueError, match='between 30 and 40 masked tokens'):
        prmim.attach(vit())(images(), bool_masked_pos=ragged)
    shifted = masks(2).view(3, 16, 16).roll(1, 2).flatten(1)
    with pytest.raises(ValueError, match='not constant inside'):
        prmim.attach(swin())(images(), bool_masked_pos=shifted)
    with pytest.raises(ValueError, match=r'units of 2x2 tokens: choose config\.image_size'):
        prmim.attach(swin(image_size=30, window_size=3))
    with pytest.raises(ValueError, match=r'mask ratio 0\.75'):
        prmim.attach(vitmae(), throw_ratio=0.8)
    with pytest.raises(TypeError, match=r'no adapter for transformers.*ViTMAEModel'):
        prmim.attach(vitmae().vit)


@pytest.mark.slow
def test_base_model_saves_what_is_promised():
    """ViTMAE base at 0.5: 28 % without the light stage, as the paper counts, and 27 % with it."""
    model = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig())
    batch = dict(inputs=torch.randn(1, 3, 224, 224), data_samples=None)
    before = count_macs(model, batch).total
    after = count_macs(prmim.attach(model), batch)
    light = after.by_module['decoder.partial.aggregators']
    assert (after.total - light) / before == pytest.approx(0.722, abs=0.003)
    assert after.total / before < 0.735


def test_a_checkpoint_continues_by_from_pretrained_and_the_light_stage_by_its_names(tmp_path):
    """The lines of docs/huggingface.md: load_state_dict, as Trainer calls it, leaves most out."""
    from safetensors.torch import load_file

    model = prmim.attach(vitmae(), throw_ratio=0.4)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / 'model.safetensors')
    left_out = vitmae().load_state_dict(saved, strict=False).missing_keys
    assert len(left_out) > len(vitmae().state_dict()) / 2

    again = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path)
    prmim.attach(again, throw_ratio=0.4)
    light = {name: value for name, value in saved.items() if '.partial.' in name}
    again.load_state_dict(light, strict=False)
    assert set(light) == {n for n in model.state_dict() if '.partial.' in n} != set()
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def deit(**options):
    config = transformers.DeiTConfig(**(SMALL | dict(encoder_stride=4) | options))
    return transformers.DeiTForMaskedImageModeling(config)


def test_images_of_another_size_are_refused_by_the_name_of_the_option():
    model = prmim.attach(deit(image_size=16), throw_ratio=0.25)
    pixels, mask = torch.randn(1, 3, 32, 32), torch.arange(64)[None] < 48
    with pytest.raises(ValueError, match=r'4x4 patch grid.*interpolate_pos_encoding=True'):
        model(pixels, mask, interpolate_pos_encoding=True)


@pytest.mark.parametrize(
    'build',
    [
        lambda: vitmae(image_size=(16, 64), patch_size=8),
        lambda: vit(image_size=(16, 64)),
        lambda: swin(image_size=(32, 64)),
        lambda: deit(image_size=(16, 64)),
    ],
)
def test_rectangles_that_the_loss_of_transformers_fails_on_are_refused_at_attach(build):
    model = build()
    with pytest.raises(
        ValueError, match=r'config\.image_size=.*64.*: the loss of .* square images'
    ):
        prmim.attach(model, 0.25)
    assert not hasattr(model, 'partial')


def test_a_users_patchify_may_take_rectangles():
    class Mine(transformers.ViTMAEForPreTraining):
        def patchify(self, pixel_values, interpolate_pos_encoding=False):
            return super().patchify(pixel_values, interpolate_pos_encoding=True)

    model = Mine(vitmae(image_size=(16, 64), patch_size=8).config)
    prmim.attach(model, 0.25)
    assert partial_of(model).grid == (2, 8)
    model(torch.randn(2, 3, 16, 64)).loss.backward()

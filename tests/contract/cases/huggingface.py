# SPDX-License-Identifier: Apache-2.0
"""ViTMAE, ViT and Swin masked image models of Hugging Face transformers, if installed."""

from functools import partial

import torch
from contract_case import Case, images

from prmim_adapters.adapters import partial_of

WIDTH, DEPTH, SIDE = 24, 2, 8


def build_vitmae(**options):
    config = transformers.ViTMAEConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=32,
        patch_size=4,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=DEPTH,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **options,
    )
    return transformers.ViTMAEForPreTraining(config).train()


def build_vit():
    config = transformers.ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=64,
        patch_size=8,
        encoder_stride=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = transformers.ViTForMaskedImageModeling(config).train()
    torch.nn.init.normal_(model.vit.embeddings.mask_token)
    return model


def build_swin():
    """Two stages: a unit is 2 x 2 tokens of 2 pixels."""
    config = transformers.SwinConfig(
        image_size=32,
        patch_size=2,
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        encoder_stride=4,
        drop_path_rate=0.0,
    )
    model = transformers.SwinForMaskedImageModeling(config).train()
    torch.nn.init.normal_(model.swin.embeddings.mask_token)
    for name, table in model.named_parameters():
        if 'bias_table' in name:  # starts at zero; a trained one shows whether rows are right
            torch.nn.init.normal_(table)
    return model


def mae_batch():
    return dict(inputs=images(), data_samples=None)


def masked_batch(size: int, scale: int):
    """Images, and masks (B, L) of 40 of 64 tokens or units."""
    generator = torch.Generator().manual_seed(7)
    order = torch.rand(3, SIDE**2, generator=generator).argsort(dim=1)
    mask = torch.zeros_like(order).scatter(1, order[:, :40], 1).view(3, SIDE, SIDE)
    mask = mask.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    return dict(inputs=[images(size=size), mask.flatten(1).bool()], data_samples=None)


def losses(model, batch):
    inputs = batch['inputs']
    inputs = [inputs] if isinstance(inputs, torch.Tensor) else inputs
    return dict(loss=model(*inputs).loss)


def mae_saliency(model, batch):
    seen = {}
    patchify = model.patchify

    def watch(*args, **kwargs):
        seen['target'] = patchify(*args, **kwargs).detach().requires_grad_()
        return seen['target']

    model.patchify = watch
    losses(model, batch)['loss'].backward()
    del model.patchify
    return seen['target'].grad.abs().sum(-1)


def masked_saliency(model, batch):
    """The image is input and target: cut the way through the encoder."""
    image, mask = batch['inputs']
    image.requires_grad_()
    encoder = model.base_model

    def cut(module, args, kwargs):
        return (args[0].detach(), *args[1:]), kwargs

    handle = encoder.register_forward_pre_hook(cut, with_kwargs=True)
    model(image, mask).loss.backward()
    handle.remove()
    height, width = partial_of(model).grid
    rows = image.grad.abs().sum(1).unflatten(1, (height, -1)).unflatten(3, (width, -1))
    return rows.sum((2, 4)).flatten(1)


def mae_features(model, tokens):
    """The decoder's layers and norm."""
    tokens = tokens[None]
    for layer in model.decoder.decoder_layers:
        tokens = layer(tokens)
    return model.decoder.decoder_norm(tokens)[0]


def vit_features(model, tokens):
    """The encoder's layers and norm."""
    tokens = tokens[None]
    for layer in model.vit.layers:
        tokens = layer(tokens)
    return model.vit.layernorm(tokens)[0]


def swin_features(model, tokens):
    """The encoder's own features of images that are masked everywhere; ``tokens`` are zeros."""
    everywhere = torch.ones(1, 16 * 16, dtype=torch.bool)
    output = SwinModel.forward(model.swin, torch.zeros(1, 3, 32, 32), everywhere)
    return output.last_hidden_state[0] + tokens


def transformer_saving(width: int, hidden: int, before: int, after: int) -> float:
    """Blocks and final norm on ``after`` tokens in place of ``before``; norms count 5 an element."""
    linear = (before - after) * (4 * width**2 + 2 * width * hidden)
    attention = 2 * (before**2 - after**2) * width
    norms = 5 * width * (before - after) * (2 * DEPTH + 1)
    return DEPTH * (linear + attention) + norms


def swin_saving() -> float:
    """32 of 64 units thrown, in all that works token by token; windows stay dense."""
    total = 0
    for tokens, width in ((32 * 4, 16), (32, 32)):
        total += 2 * tokens * (12 * width**2 + 5 * 2 * width)
    merging = 32 * (64 * 32 + 5 * 64)
    return total + merging + 32 * 5 * 32


def mae_case(name: str, **options) -> Case:
    return Case(
        name=name,
        build=partial(build_vitmae, **options),
        batch=mae_batch,
        ratio=0.5,
        invalid_ratio=0.75,
        heavy=lambda model: model.decoder.decoder_layers[0],
        expected_tokens=1 + 16 + 16,
        # the prediction layer sees 48 masked tokens, upstream's cls and all 64
        saving=transformer_saving(32, 128, 65, 33) + (65 - 48) * 32 * 48,
        saliency=mae_saliency,
        features=mae_features,
        losses=losses,
    )


try:
    import transformers
    from transformers.models.swin.modeling_swin import SwinModel
except ImportError:
    CASES = []  # tests/adapters/test_huggingface.py is skipped with the reason
else:
    CASES = [
        mae_case('huggingface-vitmae'),
        mae_case('huggingface-vitmae-norm', norm_pix_loss=True),
        Case(
            name='huggingface-vit',
            build=build_vit,
            batch=partial(masked_batch, 64, 1),
            ratio=0.5,
            invalid_ratio=0.625,
            heavy=lambda model: model.vit.layers[0],
            expected_tokens=1 + 24 + 8,
            saving=transformer_saving(WIDTH, 48, 65, 33),
            features=vit_features,
            saliency=masked_saliency,
            losses=losses,
        ),
        Case(
            name='huggingface-swin',
            build=build_swin,
            batch=partial(masked_batch, 32, 2),
            ratio=0.5,
            invalid_ratio=0.625,
            heavy=lambda model: model.swin.encoder.layers[0].blocks[0].layernorm_before,
            expected_tokens=4 * (24 + 8),
            saving=swin_saving(),
            features=swin_features,
            saliency=masked_saliency,
            losses=losses,
        ),
    ]

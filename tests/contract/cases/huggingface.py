# SPDX-License-Identifier: Apache-2.0
"""ViTMAE, ViT and Swin masked image models of Hugging Face transformers, if installed."""

from functools import partial

import torch
from contract_case import Absent, Case, images

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
    return (images(),)


def masked_batch(size: int, scale: int):
    """Images, and masks (B, L) of 40 of 64 tokens or units."""
    generator = torch.Generator().manual_seed(7)
    order = torch.rand(3, SIDE**2, generator=generator).argsort(dim=1)
    mask = torch.zeros_like(order).scatter(1, order[:, :40], 1).view(3, SIDE, SIDE)
    mask = mask.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    return images(size=size), mask.flatten(1).bool()


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
    """Blocks on ``after`` tokens in place of ``before``."""
    linear = (before - after) * (4 * width**2 + 2 * width * hidden)
    attention = 2 * (before**2 - after**2) * width
    return DEPTH * (linear + attention)


def swin_saving() -> float:
    """32 of 64 units thrown, in all that works token by token; windows stay dense."""
    total = 0
    for tokens, width in ((32 * 4, 16), (32, 32)):
        total += 2 * tokens * 12 * width**2
    merging = 32 * 64 * 32
    return total + merging


def mae_case(name: str, **options) -> Case:
    return Case(
        name=name,
        build=partial(build_vitmae, **options),
        batch=mae_batch,
        ratio=0.5,
        invalid_ratio=0.75,
        heavy=lambda model: model.decoder.decoder_layers[0],
        # the prediction layer sees 48 masked tokens, upstream's cls and all 64
        saving=transformer_saving(32, 128, 65, 33) + (65 - 48) * 32 * 48,
        features=mae_features,
    )


try:
    import transformers
    from transformers.models.swin.modeling_swin import SwinModel
except ImportError:
    CASES = [
        Absent(
            f'huggingface-{name}', "needs transformers: pip install 'prmim-adapters[huggingface]'"
        )
        for name in ('vitmae', 'vitmae-norm', 'vit', 'swin')
    ]
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
            saving=transformer_saving(WIDTH, 48, 65, 33),
            features=vit_features,
        ),
        Case(
            name='huggingface-swin',
            build=build_swin,
            batch=partial(masked_batch, 32, 2),
            ratio=0.5,
            invalid_ratio=0.625,
            heavy=lambda model: model.swin.encoder.layers[0].blocks[0].layernorm_before,
            tokens_seen=lambda args: args[0].shape[:2].numel() // 4,
            saving=swin_saving(),
            features=swin_features,
        ),
    ]

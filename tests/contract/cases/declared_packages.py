# SPDX-License-Identifier: Apache-2.0
"""Frameworks of packages whose adapter is a declaration: DeiT of transformers, MONAI's MAE."""

import torch
from contract_case import Absent, Case, images

SAVING = 2 * (4 * 32**2 + 2 * 32 * 64)  # linear layers of two blocks, for each row


def deit():
    config = transformers.DeiTConfig(
        image_size=32,
        patch_size=4,
        encoder_stride=4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    return transformers.DeiTForMaskedImageModeling(config).train()


def deit_alone(model):
    for layer in model.deit.layers.children():
        with torch.no_grad():
            for parameter in layer.attention.o_proj.parameters():
                parameter.zero_()


def deit_features(model, tokens):
    for layer in model.deit.layers.children():
        tokens = layer(tokens[None])[0]
    return tokens


def monai():
    return MaskedAutoEncoderViT(
        in_channels=1,
        img_size=(16, 16, 8),
        patch_size=4,
        hidden_size=24,
        mlp_dim=48,
        num_layers=1,
        num_heads=2,
        decoder_hidden_size=32,
        decoder_mlp_dim=64,
        decoder_num_layers=2,
        decoder_num_heads=2,
        decoder_pos_embed_type='learnable',
    )


def monai_loss(model, batch):
    """Mean squared error of the masked tokens of volumes, whose depth is in the rows and channels."""
    volumes = batch[0].unflatten(2, (4, 16)).permute(0, 2, 1, 3, 4).flatten(1, 2)[:, None]
    predicted, mask = model(volumes)
    target = volumes.unfold(2, 4, 4).unfold(3, 4, 4).unfold(4, 4, 4).flatten(5).flatten(2, 4)[:, 0]
    return ((predicted - target).square().mean(-1) * mask).sum() / mask.sum()


def monai_alone(model):
    for block in [*model.blocks.children(), *model.decoder_blocks.children()]:
        with torch.no_grad():
            for parameter in getattr(block, 'attn', torch.nn.Identity()).parameters():
                parameter.zero_()


def monai_features(model, tokens):
    for block in model.decoder_blocks.children():
        tokens = block(tokens[None])[0]
    return tokens


CASES = []
try:
    import transformers
except ImportError:
    CASES.append(
        Absent('declared-deit', "needs transformers: pip install 'prmim-adapters[huggingface]'")
    )
else:
    CASES.append(
        Case(
            name='declared-deit',
            build=deit,
            batch=lambda: (images(), torch.rand(3, 64).argsort(1) < 48),
            losses=lambda model, batch: model(*batch).loss,
            ratio=0.5,
            heavy=lambda model: next(model.deit.layers.children()),
            features=deit_features,
            token_wise=deit_alone,
            weighted=False,
            invalid_ratio=0.75,
            saving=32 * SAVING + 2 * 2 * 32 * (66**2 - 34**2),
        )
    )
try:
    from monai.networks.nets.masked_autoencoder_vit import MaskedAutoEncoderViT
except ImportError:
    CASES.append(Absent('declared-monai', 'needs MONAI: pip install monai'))
else:
    CASES.append(
        Case(
            name='declared-monai',
            build=monai,
            batch=lambda: (images(size=(64, 8), channels=4),),
            losses=monai_loss,
            ratio=0.5,
            heavy=lambda model: next(model.decoder_blocks.children()).norm1,
            features=monai_features,
            token_wise=monai_alone,
            autocast=False,  # it puts the encoder's rows into mask tokens of fp32
            weighted=False,
            compiles_whole=False,
            invalid_ratio=0.75,
            saving=16 * SAVING + 2 * 2 * 32 * (33**2 - 17**2),
        )
    )

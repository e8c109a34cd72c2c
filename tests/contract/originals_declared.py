# SPDX-License-Identifier: Apache-2.0
"""Original repositories whose adapter is a declaration, where checkouts are present.

The checks split images by the rows of the token grid, so clips, dates and groups of bands come
folded into the rows of an image, and are unfolded before the model sees them.
"""

from functools import partial
from unittest.mock import patch

import torch
from contract_case import images
from originals import Original, run_blocks

SIZES = dict(embed_dim=24, depth=1, num_heads=2)
DECODER = dict(decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=2)
PRETRAIN = dict(
    encoder_embed_dim=24,
    encoder_depth=1,
    encoder_num_heads=2,
    decoder_embed_dim=32,
    decoder_depth=2,
    decoder_num_heads=2,
)


def unfolded(batch: torch.Tensor, parts: int, inside: int = 1) -> torch.Tensor:
    """(B, inside * C, parts * H, W) -> (B, C, parts * inside, H, W)."""
    x = batch.unflatten(1, (inside, -1)).unflatten(3, (parts, -1))
    return x.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)


def masks(length: int, masked: int, batch: int = 3) -> torch.Tensor:
    """(B, L) bool."""
    return torch.rand(batch, length).argsort(1) < masked


def saving(tokens: int, thrown: int, width: int = 32, depth: int = 2) -> float:
    """Linear layers with a hidden width of four, and attention, on fewer rows."""
    rows = 12 * width**2 * thrown
    return depth * (rows + 2 * width * (tokens**2 - (tokens - thrown) ** 2))


def pattern_loss(predicted: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The script's loss: predictions (B, M, D) of masked tokens, row-major, against a target."""
    rows, width = mask.shape[1], predicted.shape[-1]
    target = torch.linspace(-1, 1, rows * width).view(1, rows, width).expand(len(mask), -1, -1)
    return (predicted - target[mask].view_as(predicted)).square().mean()


def build_videomae():
    from modeling_pretrain import PretrainVisionTransformer

    return PretrainVisionTransformer(
        img_size=16, patch_size=8, decoder_num_classes=3 * 2 * 64, qkv_bias=True, **PRETRAIN
    )


def build_videomae_v2():
    from models.modeling_pretrain import PretrainVisionTransformer

    return PretrainVisionTransformer(
        img_size=16, patch_size=8, decoder_num_classes=3 * 2 * 64, qkv_bias=True, **PRETRAIN
    )


def build_mae_pytorch():
    from modeling_pretrain import PretrainVisionTransformer

    return PretrainVisionTransformer(
        img_size=32, patch_size=4, decoder_num_classes=3 * 16, qkv_bias=True, **PRETRAIN
    )


def video_loss(model, batch):
    folded, mask = batch
    return pattern_loss(model(unfolded(folded, 8, 2), mask), mask)


def v2_loss(model, batch):
    """As its engine calls it without a decoder mask."""
    folded, mask = batch
    return pattern_loss(model(unfolded(folded, 8, 2), mask, ~mask), mask)


def alone(*lists):
    """Makes attention in these block lists add nothing."""

    def change(model):
        for path in lists:
            for block in model.get_submodule(path).children():
                for name in ('attn', 'c_attn'):
                    with torch.no_grad():
                        for parameter in getattr(
                            getattr(block, name, None), 'proj', torch.nn.Identity()
                        ).parameters():
                            parameter.zero_()

    return change


def build_mae_st(**options):
    from mae_st.models_mae import MaskedAutoencoderViT

    return MaskedAutoencoderViT(
        img_size=16, patch_size=4, num_frames=4, t_patch_size=2, pred_t_dim=4, **SIZES, **DECODER,
        **options,
    )  # fmt: skip


def build_hiera(size, **options):
    from hiera.hiera_mae import MaskedAutoencoderHiera

    return MaskedAutoencoderHiera(
        input_size=size, embed_dim=12, num_heads=1, stages=(1, 1, 1), q_pool=1, **DECODER, **options
    )


def build_hiera_image():
    """A 4 x 4 kernel: the 7 x 7 one of upstream looks into other tokens."""
    options = dict(mask_unit_size=(4, 4), patch_kernel=(4, 4), patch_padding=(0, 0))
    return build_hiera((64, 64), **options)


def build_hiera_video():
    return build_hiera(
        (4, 32, 32),
        q_stride=(1, 2, 2),
        mask_unit_size=(1, 4, 4),
        patch_kernel=(2, 4, 4),
        patch_stride=(2, 4, 4),
        patch_padding=(0, 0, 0),
    )


def hiera_image_loss(model, batch):
    folded, mask = batch
    return model(folded, mask=mask)[0]


def hiera_video_loss(model, batch):
    folded, mask = batch
    return model(unfolded(folded, 2, 2), mask=mask)[0]


def build_satmae(**options):
    from models_mae_group_channels import MaskedAutoencoderGroupChannelViT

    return MaskedAutoencoderGroupChannelViT(
        img_size=16, patch_size=4, in_chans=6, channel_groups=((0, 1, 2), (3, 4, 5)),
        channel_embed=8, decoder_channel_embed=8, norm_pix_loss=False, **SIZES, **DECODER, **options,
    )  # fmt: skip


def satmae_loss(model, batch):
    bands = batch[0].unflatten(2, (2, -1)).transpose(1, 2).flatten(1, 2)
    return model(bands)[0]


def build_satmae_temporal():
    from models_mae_temporal import MaskedAutoencoderViT

    return MaskedAutoencoderViT(
        img_size=16, patch_size=4, embed_dim=448, depth=1, num_heads=2, decoder_embed_dim=224,
        decoder_depth=2, decoder_num_heads=2,
    )  # fmt: skip


def temporal_loss(model, batch):
    dates = torch.arange(27).view(3, 3, 3)  # another one for every image
    return model(batch[0].unflatten(2, (3, -1)).transpose(1, 2), dates)[0]


def build_satmae_pp():
    from models_mae import MaskedAutoencoderViT

    return MaskedAutoencoderViT(img_size=32, patch_size=4, **SIZES, **DECODER)


def larger(pixels, scale):
    """Images, or bands, of a larger scale."""
    return torch.nn.functional.interpolate(pixels, scale_factor=scale)


def satmae_pp_loss(model, batch):
    return torch.stack(model(batch[0], larger(batch[0], 2))[:2]).sum()


def satmae_pp_groups_loss(model, batch):
    bands = batch[0].unflatten(2, (2, -1)).transpose(1, 2).flatten(1, 2)
    return torch.stack(model(bands, [larger(bands, 2), larger(bands, 4)])[:2]).sum()


def build_prithvi():
    from terratorch.models.backbones.prithvi_mae import PrithviMAE

    return PrithviMAE(
        img_size=16, patch_size=(1, 4, 4), num_frames=2, in_chans=6,
        coords_encoding=['time', 'location'], **SIZES | dict(embed_dim=32), **DECODER,
    )  # fmt: skip


def prithvi_loss(model, batch):
    dates = torch.arange(12.0).view(3, 2, 2)
    places = torch.arange(6.0).view(3, 2)
    return model(unfolded(batch[0], 2), dates, places)[0]['loss']


def build_audiomae(**options):
    from models_mae import MaskedAutoencoderViT

    return MaskedAutoencoderViT(
        img_size=(32, 16), patch_size=4, in_chans=1, audio_exp=True, **SIZES, **DECODER, **options
    )


def audio_loss(model, batch):
    """``forward`` without the contrastive loss, a zero that wants a GPU."""
    latent, mask, restore, _ = model.forward_encoder(batch[0], 0.75)
    predicted, _, _ = model.forward_decoder(latent, restore)
    return model.forward_loss(batch[0], predicted, mask)


def build_hpm():
    from models_mae_learn_loss import MaskedAutoencoderViT

    return MaskedAutoencoderViT(img_size=32, patch_size=4, **SIZES, **DECODER)


def build_hpm_features():
    from models_mae_learn_feature_loss import MaskedAutoencoderViT

    return MaskedAutoencoderViT(img_size=32, patch_size=4, **SIZES, **DECODER)


def hpm_loss(model, batch):
    pixels, mask = batch
    out = model(pixels, mask)
    loss = model.forward_loss(pixels, out['pix_pred'][:, -out['mask_num'] :], mask)['mean']
    return loss + out['loss_pred'].square().mean()


def hpm_features_loss(model, batch):
    pixels, mask = batch
    out = model(pixels, mask)
    target = torch.linspace(-1, 1, 64 * 32).sin().view(1, 64, 32).expand(len(mask), -1, -1)
    predicted = out['pix_pred'][:, -out['mask_num'] :]
    loss = model.forward_loss(predicted, target, mask)['mean']
    return loss + out['loss_pred'].square().mean()


def build_solo_learn():
    from omegaconf import OmegaConf
    from solo.methods.mae import MAE

    return MAE(
        OmegaConf.create(
            dict(
                method='mae',
                backbone=dict(name='vit_tiny', kwargs=dict(img_size=32, patch_size=4)),
                data=dict(dataset='custom', num_classes=2, num_large_crops=1, num_small_crops=0),
                max_epochs=1,
                optimizer=dict(
                    name='adamw', batch_size=3, lr=1e-3, weight_decay=0.05, classifier_lr=0.1
                ),
                scheduler=dict(name='none'),
                method_kwargs=DECODER,
            )
        )
    )


def solo_learn_loss(model, batch):
    """Of ``training_step``, without the trainer's log and the classifier."""
    from solo.losses.mae import mae_loss_func

    out = model(batch[0])
    return mae_loss_func(batch[0], out['pred'], out['mask'], 4)


def build_bootmae():
    from models.modeling_pretrain_bootmae import VisionTransformerForMaskedImageModeling

    return VisionTransformerForMaskedImageModeling(
        img_size=32, patch_size=4, decode_dim=32, decoder_depth=2, fea_list=[0, 0],
        norm_layer=torch.nn.LayerNorm, **SIZES,
    )  # fmt: skip


def bootmae_loss(model, batch):
    pixels, order = batch
    mask = torch.zeros(order.shape, dtype=torch.bool).scatter(1, order[:, 16:], True)
    with patch.object(torch.Tensor, 'cuda', lambda tensor: tensor):
        image, features = model(pixels, 48, order)
    mask = mask.view(-1, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return ((image - pixels).square() * mask).sum() / mask.sum() + features.square().mean()


def bootmae_features(model, tokens):
    visible = torch.zeros(1, 17, 24)
    for block in model.decode_blocks.children():
        tokens = block(tokens[None], visible)[0]
    return tokens


def blocks_of(path):
    """The blocks, without the norm, which is upstream's."""
    return lambda model, tokens: run_blocks(
        model.get_submodule(path).children(), torch.nn.Identity(), tokens
    )


def first(path):
    return lambda model: next(model.get_submodule(path).children())


def case(
    name, repository, build, batch, losses, path, tokens=64, thrown=32, width=32, extra=0, **changes
):
    """Checks at half of the tokens."""
    changes = dict(features=blocks_of(path), heavy=first(path), invalid_ratio=0.75) | changes
    return Original(
        name=f'original-{name}',
        repository=repository,
        build=build,
        batch=batch,
        losses=losses,
        saving=saving(tokens, thrown, width) + extra,
        **changes,
    )


VIDEOMAE = dict(
    path='decoder.blocks',
    tokens=32,
    thrown=16,
    weighted=False,
    compiles_whole=False,  # upstream chooses rows by a mask of bool
    token_wise=alone('encoder.blocks', 'decoder.blocks'),
)


HIERA = dict(weighted=False, compiles_whole=False, token_wise=alone('blocks', 'decoder_blocks'))


def folded_video():
    return images(size=(128, 16), channels=6), masks(32, 24)


DECLARED = [
    case('videomae', 'videomae', build_videomae, folded_video, video_loss, **VIDEOMAE),
    case('videomae-v2', 'videomae-v2', build_videomae_v2, folded_video, v2_loss, **VIDEOMAE),
    case(
        'mae-pytorch', 'mae-pytorch', build_mae_pytorch,
        lambda: (images(), masks(64, 48)),
        lambda model, batch: pattern_loss(model(*batch), batch[1]),
        **VIDEOMAE | dict(tokens=64, thrown=32),
    ),
    *(
        case(
            f'mae-st{name}', 'mae-st', partial(build_mae_st, **options),
            lambda: (images(size=(32, 16), channels=6),),
            lambda model, batch: model(unfolded(batch[0], 2, 2), mask_ratio=0.75)[0],
            'decoder_blocks', 32 + rows, 16,
        )
        for name, rows, options in (
            ('', 0, {}),
            ('-cls-sep', 1, dict(cls_embed=True, sep_pos_embed=True)),
        )
    ),
    case(
        'hiera', 'hiera',
        build_hiera_image,
        lambda: (images(size=64), masks(16, 4)),
        hiera_image_loss, 'decoder_blocks', **HIERA,
    ),
    case(
        'hiera-video', 'hiera', build_hiera_video,
        lambda: (images(size=(64, 32), channels=6), masks(8, 2)),
        hiera_video_loss, 'decoder_blocks', 32, 16, **HIERA,
    ),
    *(
        case(
            f'satmae{name}', 'satmae', partial(build_satmae, spatial_mask=spatial),
            lambda: (images(size=(32, 16)),), satmae_loss, 'decoder_blocks', 33, 16,
        )
        for name, spatial in (('', False), ('-spatial-mask', True))
    ),
    case(
        'satmae-temporal', 'satmae', build_satmae_temporal,
        lambda: (images(size=(48, 16)),), temporal_loss, 'decoder_blocks', 49, 24, width=224,
    ),
    case(
        'satmae-pp', 'satmae-pp', build_satmae_pp, lambda: (images(),), satmae_pp_loss,
        'decoder_blocks', 65, weighted=False, token_wise=alone('blocks', 'decoder_blocks'),
    ),
    case(
        'satmae-pp-groups', 'satmae-pp', build_satmae, lambda: (images(size=(32, 16)),),
        satmae_pp_groups_loss, 'decoder_blocks', 33, 16, weighted=False,
        token_wise=alone('blocks', 'decoder_blocks'),
    ),
    case(
        'prithvi', 'terratorch', build_prithvi,
        lambda: (images(size=(32, 16), channels=6),), prithvi_loss, 'decoder.decoder_blocks', 33, 16,
    ),
    case(
        'audiomae', 'audiomae', build_audiomae,
        lambda: (images(size=(32, 16), channels=1),), audio_loss, 'decoder_blocks', 33, 16,
    ),
    case(
        'hpm', 'hpm', build_hpm, lambda: (images(), masks(64, 48)), hpm_loss, 'decoder_blocks', 65,
        weighted=False, compiles_whole=False,
    ),
    case(
        'hpm-features', 'hpm', build_hpm_features, lambda: (images(), masks(64, 48)),
        hpm_features_loss, 'decoder_blocks', 65, weighted=False, compiles_whole=False,
    ),
    case(
        'solo-learn', 'solo-learn', build_solo_learn, lambda: (images(),), solo_learn_loss,
        'decoder.decoder_blocks', 65, weighted=False,
    ),
    case(
        'bootmae', 'bootmae', build_bootmae, lambda: (images(), torch.rand(3, 64).argsort(1)),
        bootmae_loss, 'decode_blocks', 65, weighted=False, features=bootmae_features,
        compiles=False,  # upstream's .cuda()
        extra=2 * 32 * (2 * 32**2 + 2 * 32 * 17),  # cross-attention: q, projection, 17 keys
    ),
]  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""The classes of the original repositories, small, where checkouts are present."""

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from contract_case import images
from torch import nn
from upstream_checkout import importable

from prmim_adapters.testing import AdapterCase, make_token_wise


@dataclass(frozen=True)
class Original(AdapterCase):
    """A case whose classes are importable inside of :meth:`entered` only."""

    repository: str = ''

    @contextmanager
    def entered(self):
        with importable(self.repository):
            yield


def unit_masks(masked: int, scale: int, batch: int = 3, side: int = 6) -> torch.Tensor:
    """(B, side * scale, side * scale) int64, ``masked`` units of scale x scale tokens each."""
    order = torch.rand(batch, side**2, generator=torch.Generator().manual_seed(7)).argsort(1)
    mask = torch.zeros_like(order).scatter(1, order[:, :masked], 1).view(-1, side, side)
    return mask.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def build_mae():
    import models_mae

    return models_mae.MaskedAutoencoderViT(
        img_size=32,
        patch_size=4,
        embed_dim=24,
        depth=1,
        num_heads=2,
        decoder_embed_dim=32,
        decoder_depth=2,
        decoder_num_heads=2,
        norm_pix_loss=True,
    )


def build_simmim_vit(**options):
    from models.simmim import SimMIM, VisionTransformerForSimMIM

    options = dict(use_abs_pos_emb=False, use_shared_rel_pos_bias=True) | options
    encoder = VisionTransformerForSimMIM(
        img_size=48,
        patch_size=4,
        embed_dim=24,
        depth=2,
        num_heads=2,
        num_classes=0,
        qkv_bias=True,
        init_values=0.1,
        use_mean_pooling=False,
        **options,
    )
    return SimMIM(encoder, 4)


def build_simmim_swin():
    from models.simmim import SimMIM, SwinTransformerForSimMIM

    encoder = SwinTransformerForSimMIM(
        img_size=48,
        patch_size=2,
        embed_dim=12,
        depths=[2, 2, 2],
        num_heads=[1, 2, 4],
        num_classes=0,
        window_size=6,
        drop_path_rate=0.0,
    )
    return SimMIM(encoder, 8)


def build_fcmae():
    from models.fcmae import FCMAE

    model = FCMAE(
        img_size=128,
        depths=[1, 1, 1, 1],
        dims=[8, 12, 16, 24],
        decoder_depth=2,
        decoder_embed_dim=32,
        norm_pix_loss=True,
    )
    for name, parameter in model.named_parameters():
        if 'grn' in name:  # starts at zero, where it is the identity
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def build_ibot(**options):
    import utils
    from models.head import iBOTHead
    from models.vision_transformer import VisionTransformer

    options = dict(masked_im_modeling=True, drop_path_rate=0.0) | options
    backbone = VisionTransformer(
        img_size=[32],
        patch_size=4,
        embed_dim=24,
        depth=2,
        num_heads=2,
        qkv_bias=True,
        return_all_tokens=True,
        **options,
    )
    head = iBOTHead(24, 16, patch_out_dim=16, hidden_dim=32, bottleneck_dim=8)
    student = utils.MultiCropWrapper(backbone, head)
    if options['masked_im_modeling']:
        torch.nn.init.normal_(backbone.masked_embed)
    return student


def ibot_masks(counts=(48, 0, 20, 48, 7, 1)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    rows = [
        torch.zeros(64, dtype=torch.bool).scatter(
            0, torch.randperm(64, generator=generator)[:count], True
        )
        for count in counts
    ]
    return torch.stack(rows).view(-1, 8, 8)


def ibot_loss(student, batch):
    """Both outputs of two global crops, as iBOTLoss takes them."""
    crops, masks = batch
    cls, patches = student(list(crops), mask=list(masks.chunk(2)))
    return cls.square().mean() + (patches.square().mean(-1) * masks.flatten(1)).mean()


def run_blocks(blocks, norm, tokens, **options):
    """Tokens (L, C) through blocks and norm."""
    tokens = tokens[None]
    for block in blocks:
        tokens = block(tokens, **options)
    return norm(tokens)[0]


def swin_features(model, tokens):
    """The encoder's own features of images that are masked everywhere; ``tokens`` are zeros."""
    from models.simmim import SwinTransformerForSimMIM

    everywhere = torch.ones(1, 24, 24)
    features = SwinTransformerForSimMIM.forward(
        model.encoder, torch.zeros(1, 3, 48, 48), everywhere
    )
    return features[0].flatten(1).T + tokens


def fcmae_features(model, tokens):
    """The decoder's blocks on maps of one position."""
    return model.decoder(tokens[..., None, None]).flatten(1)


def make_fcmae_token_wise(model):
    """Also the stand-in for MinkowskiEngine, whose depthwise kernels are (k * k, C)."""
    make_token_wise(model)
    for module in model.encoder.modules():
        if type(module).__name__ == 'MinkowskiDepthwiseConvolution':
            with torch.no_grad():
                module.kernel[torch.arange(len(module.kernel)) != len(module.kernel) // 2] = 0


def simmim(name, build, batch, **changes):
    return Original(
        name=name,
        repository='simmim',
        build=build,
        batch=batch,
        invalid_ratio=22 / 36,
        compiles_whole=False,
        **changes,
    )


def simmim_vit(name, **options):
    return simmim(
        name,
        partial(build_simmim_vit, **options),
        lambda: (images(size=48), unit_masks(22, 2)),
        heavy=lambda model: model.encoder.blocks[0],
        features=lambda model, tokens: run_blocks(
            model.encoder.blocks, model.encoder.norm, tokens, rel_pos_bias=None
        ),
        entering_last=lambda model, tokens: run_blocks(
            model.encoder.blocks[:-1], nn.Identity(), tokens, rel_pos_bias=None
        ),
    )


ORIGINALS = [
    Original(
        name='original-mae',
        repository='mae',
        build=build_mae,
        batch=lambda: (images(),),
        losses=lambda model, batch: model(*batch, mask_ratio=0.75)[0],
        heavy=lambda model: model.decoder_blocks[0],
        features=lambda model, tokens: run_blocks(model.decoder_blocks, model.decoder_norm, tokens),
        invalid_ratio=0.75,
    ),
    simmim_vit('original-simmim-vit'),
    simmim_vit('original-simmim-vit-ape', use_abs_pos_emb=True, use_shared_rel_pos_bias=False),
    simmim(
        'original-simmim-swin',
        build_simmim_swin,
        lambda: (images(size=48), unit_masks(22, 4)),
        heavy=lambda model: model.encoder.layers[0].blocks[0].norm1,
        tokens_seen=lambda args: args[0].shape[:2].numel() // 16,
        features=swin_features,
    ),
    Original(
        name='original-fcmae',
        repository='convnextv2',
        build=build_fcmae,
        batch=lambda: (images(size=128),),
        losses=lambda model, batch: model(*batch, mask_ratio=0.6)[0],
        heavy=lambda model: model.decoder[0].pwconv1,
        features=fcmae_features,
        token_wise=make_fcmae_token_wise,
        invalid_ratio=0.625,
        compiles_whole=False,
    ),
    Original(
        name='original-ibot',
        repository='ibot',
        build=build_ibot,
        batch=lambda: (images(6).chunk(2), ibot_masks()),
        losses=ibot_loss,
        images=lambda batch: list(batch[0]),
        heavy=lambda model: model.backbone.blocks[0].attn.qkv,
        features=lambda model, tokens: run_blocks(
            model.backbone.blocks, model.backbone.norm, tokens
        ),
        weighted=False,
        copies=False,  # torch cannot copy the weight norm of upstream's head
        compiles_whole=False,
    ),
]

# SPDX-License-Identifier: Apache-2.0
"""MAE, MAE with HiViT, MFF and EVA of mmpretrain."""

from functools import partial

import small_models
import torch
from contract_case import Case, images
from mmengine.model import BaseModule
from mmpretrain.models import MAEPretrainDecoder
from mmpretrain.registry import MODELS

SETTINGS = small_models.mae(
    32,
    4,
    width=24,
    depth=2,
    neck=dict(decoder_embed_dim=32, decoder_depth=2),
    head=dict(norm_pix=True),
)
ENCODER, DECODER, HEAD = SETTINGS['backbone'], SETTINGS['neck'], SETTINGS['head']


class RandomFeatures(BaseModule):
    """Stand-in for CLIP, whose weights cannot be fetched: fixed random patch features."""

    def __init__(self, patch_size: int = 4, width: int = 16) -> None:
        super().__init__()
        self.project = torch.nn.Conv2d(3, width, patch_size, patch_size).requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        patches = self.project(x).flatten(2).transpose(1, 2)
        return torch.cat((patches.mean(1, keepdim=True), patches), dim=1), None


def build(**changes):
    def make():
        model = MODELS.build({**SETTINGS, **changes})
        model.init_weights()
        return model

    return make


def build_eva():
    model = build(
        type='EVA',
        neck={**DECODER, 'predict_feature_dim': 16},
        head=dict(type='MIMHead', loss=dict(type='CosineSimilarityLoss', shift_factor=1.0)),
    )()
    model.target_generator = RandomFeatures()
    return model


def batch(size: int = 32, channels: int = 3):
    return dict(inputs=images(size=size, channels=channels), data_samples=None)


def features(model, tokens):
    """The decoder's blocks and norm."""
    tokens = tokens[None]
    for block in model.neck.decoder_blocks:
        tokens = block(tokens)
    return model.neck.decoder_norm(tokens)[0]


def decoder_saving(out: int, prefix: int, before: int = 65) -> float:
    """64 tokens, 48 masked, 32 thrown: the blocks see fewer; only masked ones are predicted."""
    width, depth, after = 32, 2, 32 + prefix
    blocks = depth * ((before - after) * 12 * width**2 + 2 * (before**2 - after**2) * width)
    return blocks + (before - 48) * width * out


def case(
    name: str, make, out: int = 48, prefix: int = 1, size: int = 32, channels: int = 3, **changes
) -> Case:
    return Case(
        name=name,
        build=make,
        batch=partial(batch, size, channels),
        ratio=0.5,
        invalid_ratio=0.75,
        heavy=lambda model: model.neck.decoder_blocks[0],
        saving=decoder_saving(out, prefix),
        features=features,
        **changes,
    )


HIVIT = dict(
    type='MAEHiViT',
    img_size=64,
    patch_size=8,
    arch=dict(embed_dims=24, depths=[1, 1, 2], num_heads=2),
)


def build_hivit():
    # a fresh list each time: upstream writes into its default one
    backbone = {**HIVIT, 'out_indices': [1]}
    return build(
        backbone=backbone, neck={**DECODER, 'patch_size': 8}, head={**HEAD, 'patch_size': 8}
    )()


class MendedDecoder(MAEPretrainDecoder):
    """Upstream's decoder with every token of HiViT, which has no cls token, in its place."""

    def forward(self, x, ids_restore):
        x = self.decoder_embed(x)
        masked = self.mask_token.expand(len(x), ids_restore.shape[1] - x.shape[1], -1)
        x = torch.cat((x, masked), dim=1)
        x = x.gather(1, ids_restore[..., None].expand(-1, -1, x.shape[2]))
        x = x + self.decoder_pos_embed[:, 1:]
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))


def build_mended_hivit():
    model = build_hivit()
    model.neck.__class__ = MendedDecoder
    return model


CASES = [
    case('mae', build()),
    case(
        'mae-l1-gray',
        build(
            backbone={**ENCODER, 'patch_cfg': dict(in_channels=1)},
            neck={**DECODER, 'in_chans': 1},
            head={
                **HEAD,
                'in_channels': 1,
                'norm_pix': False,
                'loss': dict(type='PixelReconstructionLoss', criterion='L1'),
            },
        ),
        out=16,
        channels=1,
    ),
    case('mff', build(type='MFF', backbone={**ENCODER, 'type': 'MFFViT', 'out_indices': [0, 1]})),
    case('eva', build_eva, out=16),
    case(
        'mae-hivit',
        build_hivit,
        out=192,
        prefix=0,
        size=64,
        reference=build_mended_hivit,
    ),
]

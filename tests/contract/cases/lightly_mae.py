# SPDX-License-Identifier: Apache-2.0
"""lightly's MAE decoders in a masked autoencoder of a user, as in lightly's examples."""

from functools import partial

import torch
from contract_case import Absent, Case, images
from torch import nn

PATCHES, VISIBLE, WIDTH = 64, 16, 32
DECODERS = ('MAEDecoderTIMM', 'PixioDecoderTIMM', 'MaskedVisionTransformerDecoderTIMM')


class MAE(nn.Module):
    """A masked autoencoder of a user: 64 patches, 48 of them masked, cls token first."""

    def __init__(self, decoder: nn.Module, registers: int = 0) -> None:
        super().__init__()
        vit = VisionTransformer(
            img_size=32, patch_size=4, embed_dim=24, depth=1, num_heads=2, reg_tokens=registers
        )
        self.backbone = modules.MaskedVisionTransformerTIMM(vit=vit)
        self.decoder = decoder
        if not hasattr(decoder, 'decoder_embed'):
            self.embed, self.predict = nn.Linear(24, WIDTH), nn.Linear(WIDTH, 48)
        for unused in (self.backbone.mask_token, *vit.norm.parameters(), *vit.head.parameters()):
            unused.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Loss."""
        prefix = self.backbone.vit.num_prefix_tokens
        order = torch.rand(len(images), PATCHES).argsort(1) + prefix
        first = torch.arange(prefix).expand(len(images), -1)
        keep, mask = torch.cat((first, order[:, :VISIBLE]), 1), order[:, VISIBLE:]
        own = self.decoder if hasattr(self.decoder, 'decoder_embed') else self
        encoded = own.embed(self.backbone.encode(images=images, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, (len(images), PATCHES + prefix))
        tokens = utils.set_at_index(tokens, keep, encoded.type_as(tokens))
        decoded = self.decoder(tokens, idx_mask=mask) if own is self else own.decode(tokens)
        predicted = own.predict(utils.get_at_index(decoded, mask))
        target = utils.get_at_index(utils.patchify(images, 4), mask - prefix)
        return nn.functional.mse_loss(predicted, target)


def build(decoder: str, registers: int = 0) -> MAE:
    """The decoder is named as in lightly."""
    prefix = 1 + registers
    if decoder.startswith('Masked'):
        made = modules.MaskedVisionTransformerDecoderTIMM(
            PATCHES, WIDTH, 2, 2, num_prefix_tokens=prefix
        )
    else:
        made = getattr(modules, decoder)(
            PATCHES,
            4,
            embed_dim=24,
            decoder_embed_dim=WIDTH,
            decoder_depth=2,
            decoder_num_heads=2,
            num_prefix_tokens=prefix,
        )
    return MAE(made, registers)


def blocks(model: MAE) -> nn.Module:
    decoder = model.decoder
    return decoder.decoder_blocks if hasattr(decoder, 'decoder_blocks') else decoder.blocks


def features(model: MAE, tokens: torch.Tensor) -> torch.Tensor:
    """The decoder's blocks and norm."""
    decoder = model.decoder
    norm = decoder.decoder_norm if hasattr(decoder, 'decoder_norm') else decoder.norm
    return norm(blocks(model)(tokens[None]))[0]


def saving(prefix: int) -> float:
    """16 visible, 16 kept and 32 thrown patches."""
    before, after = prefix + PATCHES, prefix + PATCHES - 32
    return 2 * ((before - after) * 12 * WIDTH**2 + 2 * (before**2 - after**2) * WIDTH)


try:
    from lightly.models import modules, utils
    from timm.models.vision_transformer import VisionTransformer
except ImportError:
    CASES = [
        Absent(f'lightly-{name}', "needs lightly: pip install 'prmim-adapters[lightly]'")
        for name in DECODERS
    ]
else:
    CASES = [
        Case(
            name=f'lightly-{decoder}' + '-registers' * bool(registers),
            build=partial(build, decoder, registers),
            batch=lambda: (images(),),
            target=lambda model: model.decoder,
            heavy=lambda model: blocks(model)[0],
            features=features,
            invalid_ratio=0.75,
            saving=saving(1 + registers),
            weighted=False,
            compiles_whole=False,  # masked tokens are found by value
        )
        for decoder, registers in (
            (DECODERS[0], 0),
            (DECODERS[0], 3),
            (DECODERS[1], 0),
            (DECODERS[2], 3),
        )
    ]

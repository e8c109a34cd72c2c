# SPDX-License-Identifier: Apache-2.0
"""lightly: the decoders of its masked autoencoders on timm.

lightly has no model class for MAE: one writes a module with a backbone, a decoder and the masks, as
in its examples. What is attached is therefore the decoder: ``attach(model.decoder)``.

Modifications:
* ``MAEDecoderTIMM.decode`` and ``MaskedVisionTransformerDecoderTIMM.forward`` tell masked tokens by
  their being equal to the mask token, run the blocks on prefix + visible + kept tokens, and return
  all tokens in their places, the thrown ones reconstructed. Without a masked token they are upstream's.
* ``aggregator=None`` and ``thrown_weight`` are refused: the loss, which is not part of the decoder,
  weighs every masked token.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightly.models import utils
from lightly.models.modules.masked_autoencoder_timm import MAEDecoderTIMM, PixioDecoderTIMM
from lightly.models.modules.masked_vision_transformer_decoder_timm import (
    MaskedVisionTransformerDecoderTIMM,
)
from torch import Tensor

from ..core import PartialReconstruction, gather_tokens
from ..core.partition import Grid
from .dense import dense_features
from .registry import ADAPTERS
from .seams import Seams


def _masked(decoder: Any, tokens: Tensor) -> Tensor:
    """(B, L) bool, where tokens (B, prefix + L, C) equal the mask token."""
    patches = tokens[:, decoder.num_prefix_tokens :]
    return (patches == decoder.mask_token.to(patches.dtype)).all(dim=-1)


def _decode_present(
    decoder: Any, tokens: Tensor, positions: Tensor, blocks: Callable[[Tensor], Tensor]
) -> Tensor:
    """Decode tokens (B, prefix + L, C), with positions (1, prefix + L, C), in all places."""
    prefix = decoder.num_prefix_tokens
    partition = decoder.partial(_masked(decoder, tokens), loss_reads=False)
    tokens = tokens + positions
    patches = gather_tokens(tokens[:, prefix:], partition.present)
    features = blocks(torch.cat((tokens[:, :prefix], patches), dim=1))
    queries = decoder.mask_token[0] + positions[0, prefix:]
    patches = dense_features(decoder.partial, partition, features[:, prefix:], queries)
    return torch.cat((features[:, :prefix], patches), dim=1)


class PRMaskedVisionTransformerDecoderTIMM(MaskedVisionTransformerDecoderTIMM):
    """Decoder on present tokens only."""

    partial: PartialReconstruction

    def forward(
        self,
        x: Tensor,
        idx_mask: Tensor | None = None,
        idx_keep: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """x (B, prefix + L, C), masked by mask token, index or mask -> the same shape.

        With ``idx_keep`` (which drops tokens before the decoder) it is upstream's.
        """
        if idx_keep is not None:
            return super().forward(x, idx_mask, idx_keep, mask)
        if idx_mask is not None:
            x = utils.mask_at_index(x, idx_mask, self.mask_token)
        elif mask is not None:
            x = utils.mask_bool(x, mask, self.mask_token)
        if not _masked(self, x).any():
            return super().forward(x)
        return _decode_present(self, x, self.pos_embed, self.decode)


with warnings.catch_warnings():  # lightly warns of its older classes where they are subclassed
    warnings.simplefilter('ignore', DeprecationWarning)

    class PRMAEDecoderTIMM(MAEDecoderTIMM):
        """Decoder on present tokens only."""

        partial: PartialReconstruction

        def decode(self, input: Tensor) -> Tensor:
            """Embedded tokens (B, prefix + L, C), masked ones equal to the mask token."""
            if not _masked(self, input).any():
                return super().decode(input)
            return _decode_present(
                self,
                input,
                self.decoder_pos_embed,
                lambda x: self.decoder_norm(self.decoder_blocks(x)),
            )

    class PRPixioDecoderTIMM(PRMAEDecoderTIMM, PixioDecoderTIMM):
        """The same for the deeper decoder of Pixio."""


@ADAPTERS.register_module(framework='lightly.models.modules.masked_autoencoder_timm.MAEDecoderTIMM')
@ADAPTERS.register_module(
    framework='lightly.models.modules.masked_vision_transformer_decoder_timm.'
    'MaskedVisionTransformerDecoderTIMM'
)
def decoder(model: Any) -> Seams:
    """Seam: the decoder, which is the model here."""
    return Seams(
        host='',
        classes={
            MAEDecoderTIMM: PRMAEDecoderTIMM,
            PixioDecoderTIMM: PRPixioDecoderTIMM,
            MaskedVisionTransformerDecoderTIMM: PRMaskedVisionTransformerDecoderTIMM,
        },
        grid=_grid(model),
        width=_positions(model).shape[2],
        num_prefix=model.num_prefix_tokens,
        owns_loss=False,
    )


def _grid(decoder: Any) -> Grid:
    """The user's ``grid_size``; else the square of lightly's own, fixed, sine-cosine positions."""
    positions = _positions(decoder)
    length = positions.shape[1] - decoder.num_prefix_tokens
    if hasattr(decoder, 'grid_size'):
        height, width = decoder.grid_size
    elif positions.requires_grad:
        raise ValueError(
            f'the decoder has {length} learned positions and does not say their rows and columns: '
            'set decoder.grid_size = (rows, columns) before attach'
        )
    else:
        height = width = round(length**0.5)
    if height * width != length:
        raise ValueError(
            f'num_patches={length}, but the grid is {height}x{width}: set decoder.grid_size = '
            '(rows, columns) before attach'
        )
    return height, width


def _positions(decoder: Any) -> Tensor:
    """(1, prefix + L, C) position embedding."""
    if isinstance(decoder, MAEDecoderTIMM):
        return decoder.decoder_pos_embed
    return decoder.pos_embed

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
from math import isqrt
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
from .base import Adapter
from .dense import changes_loss, dense_features
from .registry import ADAPTERS


def _masked(decoder: Any, tokens: Tensor) -> Tensor:
    """(B, L) bool, where tokens (B, prefix + L, C) equal the mask token."""
    patches = tokens[:, decoder.num_prefix_tokens :]
    return (patches == decoder.mask_token.to(patches.dtype)).all(dim=-1)


def _decode_present(
    decoder: Any, tokens: Tensor, positions: Tensor, blocks: Callable[[Tensor], Tensor]
) -> Tensor:
    """Decode tokens (B, prefix + L, C), with positions (1, prefix + L, C), in all places."""
    if changes_loss(decoder.partial):
        raise ValueError(
            'the loss outside the decoder weighs every masked token: aggregator=None and '
            'thrown_weight are not supported; attach with an aggregator and thrown_weight=1'
        )
    prefix = decoder.num_prefix_tokens
    partition = decoder.partial.split(_masked(decoder, tokens))
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
        if self.partial.num_thrown == 0 or idx_keep is not None:
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
            if self.partial.num_thrown == 0 or not _masked(self, input).any():
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
class LightlyDecoderAdapter(Adapter):
    """Seam: the decoder, which is the model here."""

    classes = {
        MAEDecoderTIMM: PRMAEDecoderTIMM,
        PixioDecoderTIMM: PRPixioDecoderTIMM,
        MaskedVisionTransformerDecoderTIMM: PRMaskedVisionTransformerDecoderTIMM,
    }
    host = ''

    @classmethod
    def grid(cls, model: Any) -> Grid:
        """Square, as lightly's position embedding."""
        length = _positions(model).shape[1] - model.num_prefix_tokens
        side = isqrt(length)
        if side * side != length:
            raise ValueError(f'num_patches={length} is no square: only square grids are supported')
        return side, side

    @classmethod
    def width(cls, model: Any) -> int:
        """Decoder width."""
        return _positions(model).shape[2]

    @classmethod
    def num_prefix(cls, model: Any) -> int:
        """Class and register tokens."""
        return model.num_prefix_tokens


def _positions(decoder: Any) -> Tensor:
    """(1, prefix + L, C) position embedding."""
    if isinstance(decoder, MAEDecoderTIMM):
        return decoder.decoder_pos_embed
    return decoder.pos_embed

# SPDX-License-Identifier: Apache-2.0
"""The peer of the speed tables: a cross-attention decoder in the place of an MAE config's own."""

from __future__ import annotations

from functools import partial

from torch import nn

from prmim_adapters.accounting.bench import Subject
from prmim_adapters.accounting.variants import FRAMEWORK, build_variant
from prmim_adapters.frameworks.cross_mae import CrossAttentionDecoder, CrossMAE

LABEL = 'cross-attention decoder, 25 % predicted (own reference)'


def build_cross_mae(config: str, depth: int = 12) -> nn.Module:
    """The config's MAE with this decoder: the width and heads of its own, depth as in the paper."""
    model = build_variant(config, FRAMEWORK)
    decoder = model.neck
    model.neck = CrossAttentionDecoder(
        num_patches=decoder.num_patches,
        patch_size=model.head.patch_size,
        embed_dim=model.backbone.embed_dims,
        decoder_embed_dim=decoder.decoder_pred.in_features,
        decoder_depth=depth,
        decoder_num_heads=decoder.decoder_blocks[0].attn.num_heads,
    )
    model.neck.lay_out(model.backbone.patch_resolution)
    model.__class__ = CrossMAE
    model.predict_ratio = 0.25
    return model


def cross_subject(config: str) -> Subject:
    """For :func:`prmim_adapters.accounting.bench.measure`."""
    return Subject(LABEL, partial(build_cross_mae, config))

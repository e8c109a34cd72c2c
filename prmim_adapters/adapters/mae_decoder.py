# SPDX-License-Identifier: Apache-2.0
"""The decoder of MAE [0] on present tokens, for every implementation that keeps its names.

[0] He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core import PartialReconstruction, scatter_tokens, table_rows


def decode_present(
    decoder: Any,
    blocks: Iterable[nn.Module],
    partial: PartialReconstruction,
    x: Tensor,
    ids_restore: Tensor,
) -> Tensor:
    """Predict the masked patches, with the blocks on cls + visible + kept tokens only.

    Args:
        decoder: has ``decoder_embed``, ``mask_token``, ``decoder_pos_embed``, ``decoder_norm`` and
            ``decoder_pred``.
        blocks: its transformer blocks.
        partial: the shared part.
        x: (B, 1 + V, C_encoder), latent of cls and the visible tokens in shuffled order.
        ids_restore: (B, L) int64, rank of each position in that order; ranks from V on are masked.

    Returns:
        (B, L, D): predictions at the supervised positions, zeros elsewhere.

    Raises:
        ValueError: there are other than L = H * W positions.
    """
    num_visible, length = x.shape[1] - 1, ids_restore.shape[1]
    partition = partial.split(ids_restore >= num_visible, length - num_visible)
    partition = replace(partition, visible=ids_restore.argsort(dim=1)[:, :num_visible])
    positions = decoder.decoder_pos_embed[0, 1:]
    queries = decoder.mask_token[0] + positions

    x = decoder.decoder_embed(x)
    cls = x[:, :1] + decoder.decoder_pos_embed[:, :1]
    visible = x[:, 1:] + table_rows(positions, partition.visible)
    kept = table_rows(queries, partition.kept)
    x = torch.cat((cls, visible, kept.to(visible.dtype)), dim=1)
    for block in blocks:
        x = block(x)
    features = decoder.decoder_norm(x)[:, 1:]
    predictions = decoder.decoder_pred(partial.reconstruct(partition, features, queries))
    return scatter_tokens(predictions, partial.supervised(partition), length)

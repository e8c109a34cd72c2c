# SPDX-License-Identifier: Apache-2.0
"""The decoders of MAE [0] and FCMAE [1] on present tokens, wherever their names are kept.

[0] He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022.
[1] Woo et al., ConvNeXt V2, CVPR 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core import PartialReconstruction, TokenPartition, scatter_tokens, table_rows
from ..packed.convolution import packed_pointwise
from ..packed.units import Units
from .dense import fixed_positions


def decode_supervised(
    decoder: Any,
    blocks: Iterable[nn.Module],
    partial: PartialReconstruction,
    x: Tensor,
    ids_restore: Tensor,
    loss_reads: bool = True,
) -> tuple[Tensor, TokenPartition]:
    """Predict the masked patches, with the blocks on prefix + visible + kept tokens only.

    Args:
        decoder: has ``decoder_embed``, ``mask_token``, ``decoder_pos_embed`` (one prefix position,
            then the grid), ``decoder_norm`` and ``decoder_pred``.
        blocks: its transformer blocks.
        partial: the shared part; ``num_prefix`` is 1 with a cls token, else 0.
        x: (B, prefix + V, C_encoder), latent of the visible tokens in shuffled order.
        ids_restore: (B, L) int64, rank of each position in that order; ranks from V on are masked.
        loss_reads: the loss will take the partition.

    Returns:
        (B, n, D) predictions at the supervised positions, kept, then thrown; and the partition.
    """
    prefix, length = partial.num_prefix, ids_restore.shape[1]
    num_visible = x.shape[1] - prefix
    mask = ids_restore >= num_visible
    partition = partial(mask, length - num_visible, loss_reads=loss_reads)
    partition = replace(partition, visible=ids_restore.argsort(dim=1)[:, :num_visible])
    positions = decoder.decoder_pos_embed[0, 1:]
    queries = decoder.mask_token[0] + positions

    x = decoder.decoder_embed(x)
    visible = x[:, prefix:] + table_rows(positions, partition.visible)
    kept = table_rows(queries, partition.kept).to(visible.dtype)
    first = x[:, :prefix] + decoder.decoder_pos_embed[:, :prefix]  # empty without a cls token
    x = torch.cat((first, visible, kept), dim=1)
    for block in blocks:
        x = block(x)
    features = decoder.decoder_norm(x)[:, prefix:]
    return decoder.decoder_pred(partial.reconstruct(partition, features, queries)), partition


def decode_in_place(
    decoder: Any,
    blocks: Iterable[nn.Module],
    partial: PartialReconstruction,
    x: Tensor,
    ids_restore: Tensor,
) -> Tensor:
    """:func:`decode_supervised` put at its positions: (B, L, D), zeros elsewhere."""
    rows, partition = decode_supervised(
        decoder, blocks, partial, x, ids_restore, loss_reads=partial.changes_loss
    )
    return scatter_tokens(rows, partial.supervised(partition), ids_restore.shape[1])


def decode_units(
    decoder: Any,
    block: Callable[[Any, Tensor, Units], Tensor],
    partial: PartialReconstruction,
    partition: TokenPartition,
    x: Tensor,
) -> Tensor:
    """Features of FCMAE's decoder before its prediction layer, at the supervised units.

    Args:
        decoder: has ``proj``, ``mask_token`` and the blocks ``decoder``.
        block: runs one of them on tokens (B, N, C) of units.
        partial: the shared part.
        partition: of the batch.
        x: (B, C_encoder, H, W), features of the encoder.

    Returns:
        (B, n, C): kept, then thrown.
    """
    grid, token = partition.grid, decoder.mask_token.flatten()
    seen = packed_pointwise(decoder.proj, Units(partition.visible, grid).gather(x))
    kept = token.to(seen.dtype).expand(*partition.kept.shape, -1)
    tokens, units = torch.cat((seen, kept), dim=1), Units(partition.present, grid)
    for layer in decoder.decoder:
        tokens = block(layer, tokens, units)
    queries = token + fixed_positions(grid, len(token), token.dtype, token.device)
    return partial.reconstruct(partition, tokens, queries)

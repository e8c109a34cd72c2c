# SPDX-License-Identifier: Apache-2.0
"""Hugging Face transformers: SwinForMaskedImageModeling.

Modifications:
* ``SwinModel.forward`` runs all stages on visible and kept units, one per token of the last stage
  (see ``packed/swin.py``), and returns its last hidden state in grid order, the thrown units
  reconstructed. It records neither hidden states nor attentions while units are thrown.
* Where thrown units weigh differently from kept ones, the loss is computed again with the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.swin.modeling_swin import (
    SwinForMaskedImageModeling,
    SwinModel,
    SwinModelOutput,
)

from ...core import PartialReconstruction
from ...core.partition import Grid
from ...packed.swin import (
    QKVBias,
    Stage,
    SwinBlock,
    WindowAttention,
    encode_units,
    gather_units,
)
from ...packed.windows import unit_grid, unit_mask
from ..base import Adapter
from ..dense import dense_features, fixed_positions
from ..registry import ADAPTERS
from .vit import reweighted, saved_as_upstream


class PRSwinModel(SwinModel):
    """Swin on present units only."""

    partial: PartialReconstruction

    def forward(
        self,
        pixel_values: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> Any:
        """pixel_values (B, 3, H, W), bool_masked_pos (B, h * w), 1 = masked, constant in a unit."""
        if bool_masked_pos is None or self.partial.num_thrown == 0:
            return super().forward(
                pixel_values, bool_masked_pos, interpolate_pos_encoding, **kwargs
            )
        tokens, size = self.embeddings(pixel_values, bool_masked_pos, interpolate_pos_encoding)
        grid, token = self.partial.grid, self.embeddings.mask_token
        partition = self.partial.split(unit_mask(bool_masked_pos.reshape(-1, *size), grid))
        tokens = gather_units(tokens, partition.present, grid)
        stages = _stages(self.encoder.layers, size)
        features = self.layernorm(encode_units(tokens, stages, partition.present, grid))
        queries = fixed_positions(grid, features.shape[-1], token.dtype, token.device)
        features = dense_features(self.partial, partition, features, queries)
        return SwinModelOutput(last_hidden_state=features)


@saved_as_upstream
class PRSwinForMaskedImageModeling(SwinForMaskedImageModeling):
    """SimMIM's loss with weights for thrown units."""

    partial: PartialReconstruction

    def forward(
        self,
        pixel_values: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Upstream's output for pixel_values (B, 3, H, W), bool_masked_pos (B, h * w)."""
        output = super().forward(pixel_values, bool_masked_pos, interpolate_pos_encoding, **kwargs)
        return reweighted(self.partial, output, pixel_values, bool_masked_pos)


def _stages(layers: Any, size: tuple[int, int]) -> Iterator[Stage]:
    for depth, stage in enumerate(layers):
        smallest = min(size) >> depth
        recompute = stage.training and stage.gradient_checkpointing
        yield [_describe(block, smallest, recompute) for block in stage.blocks], stage.downsample


def _describe(block: Any, smallest: int, recompute: bool) -> SwinBlock:
    attention, clamped = block.attention, smallest <= block.window_size
    dropout = attention.attention_dropout if attention.training else 0.0
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    has_bias = attention.q_proj.bias is not None
    bias = torch.cat([p.bias for p in projections]) if has_bias else None
    table = attention.relative_position_bias
    return SwinBlock(
        norm1=block.layernorm_before,
        qkv=lambda x: torch.cat([project(x) for project in projections], dim=-1),
        attention=WindowAttention(
            num_heads=attention.num_attention_heads,
            embed_dims=attention.num_attention_heads * attention.head_dim,
            scale=attention.scaling,
            relative_position_bias_table=table.relative_position_bias_table,
            relative_position_index=table.relative_position_index,
            attn_drop=lambda weights: F.dropout(weights, dropout),
            softmax=lambda scores: scores.softmax(dim=-1),
            qkv=QKVBias(bias),
        ),
        random=dropout > 0,
        project=lambda x: block.dropout(attention.o_proj(x)),
        drop_path=block.drop_path,
        norm2=block.layernorm_after,
        mlp=lambda x: block.dropout(block.mlp(x)),
        window=smallest if clamped else block.window_size,
        shift=0 if clamped else block.shift_size,
        recompute=recompute,
    )


@ADAPTERS.register_module(
    framework='transformers.models.swin.modeling_swin.SwinForMaskedImageModeling'
)
class SwinForMaskedImageModelingAdapter(Adapter):
    """Seam: the encoder."""

    classes = {
        SwinModel: PRSwinModel,
        SwinForMaskedImageModeling: PRSwinForMaskedImageModeling,
    }
    host = 'swin'
    guests = ('',)
    absolute_positions = False

    @classmethod
    def grid(cls, model: Any) -> Grid:
        """Units in (height, width)."""
        swin = model.swin
        height, width = swin.embeddings.patch_grid
        return unit_grid(
            height, width, swin.num_layers, model.config.patch_size, 'config.image_size'
        )

    @classmethod
    def width(cls, model: Any) -> int:
        """Channels of the last stage."""
        return model.swin.num_features

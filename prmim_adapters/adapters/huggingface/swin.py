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
from torch import Tensor
from transformers.models.swin.modeling_swin import (
    SwinForMaskedImageModeling,
    SwinModel,
    SwinModelOutput,
)

from ...core import PartialReconstruction
from ...packed.swin import (
    Stage,
    SwinBlock,
    encode_units,
    microsoft_merging,
    unit_grid,
    unit_side,
)
from ...packed.units import Units, unit_mask
from ...packed.window_attention import WindowAttention
from ..dense import dense_features, feature_map, fixed_positions
from ..registry import ADAPTERS
from ..seams import Seams
from .sizes import check_size, check_stride
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
        if bool_masked_pos is None:
            return super().forward(
                pixel_values, bool_masked_pos, interpolate_pos_encoding, **kwargs
            )
        tokens, size = self.embeddings(pixel_values, bool_masked_pos, interpolate_pos_encoding)
        grid, token = self.partial.grid, self.embeddings.mask_token
        check_size(self.partial, size[0] * size[1] // unit_side(self.num_layers) ** 2)
        mask = unit_mask(bool_masked_pos.reshape(-1, *size), grid)
        partition = self.partial(mask, loss_reads=self.partial.changes_loss)
        units = Units(partition.present, grid)
        tokens = units.gather(feature_map(tokens, size))
        features = self.layernorm(encode_units(tokens, _stages(self.encoder.layers, size), units))
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
        blocks = [_describe(block, smallest, recompute) for block in stage.blocks]
        yield blocks, microsoft_merging(stage.downsample)


def _describe(block: Any, smallest: int, recompute: bool) -> SwinBlock:
    attention, clamped = block.attention, smallest <= block.window_size
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    has_bias = attention.q_proj.bias is not None
    table = attention.relative_position_bias

    def qkv(x: Tensor) -> Tensor:
        x = block.layernorm_before(x)
        return torch.cat([project(x) for project in projections], dim=-1)

    def update(x: Tensor, attended: Tensor) -> Tensor:
        x = x + block.drop_path(block.dropout(attention.o_proj(attended)))
        return x + block.dropout(block.mlp(block.layernorm_after(x)))

    return SwinBlock(
        qkv=qkv,
        attention=WindowAttention(
            num_heads=attention.num_attention_heads,
            scale=attention.scaling,
            bias_table=table.relative_position_bias_table,
            bias_index=table.relative_position_index,
            qkv_bias=torch.cat([p.bias for p in projections]) if has_bias else None,
            dropout=attention.attention_dropout if attention.training else 0.0,
        ),
        update=update,
        window=smallest if clamped else block.window_size,
        shift=0 if clamped else block.shift_size,
        recompute=recompute,
    )


@ADAPTERS.register_module(
    framework='transformers.models.swin.modeling_swin.SwinForMaskedImageModeling'
)
def swin(model: Any) -> Seams:
    """Seam: the encoder.

    Raises:
        ValueError: an image size in two numbers, which upstream's loss divides as one, or a
            reconstruction of another size.
    """
    encoder = model.swin
    check_stride(model, unit_side(encoder.num_layers) * model.config.patch_size)
    height, width = encoder.embeddings.patch_grid
    return Seams(
        host='swin',
        guests=('',),
        classes={
            SwinModel: PRSwinModel,
            SwinForMaskedImageModeling: PRSwinForMaskedImageModeling,
        },
        grid=unit_grid(
            height, width, encoder.num_layers, model.config.patch_size, 'config.image_size'
        ),
        width=encoder.num_features,
        absolute_positions=False,
    )

# SPDX-License-Identifier: Apache-2.0
"""Packed sparse execution of mmpretrain's sparse ConvNeXt: masked positions are not computed.

mmpretrain's ``SparseConvNeXt`` computes every position and multiplies by the mask. Here LayerNorm,
GRN and both pointwise layers (93 % of the MACs of the tiny model) run on the active positions
only, kept packed as tokens. The stem and the 2x2 downsampling convolutions never cross a masked
unit, so they are linear layers on gathered patches. Only the depthwise convolution, 2 % of the
MACs, sees a dense map, in which inactive positions are zero.

The result equals the dense masked computation under each definition of GRN (see ``grn.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.utils.checkpoint as cp
from mmpretrain.models.backbones import SparseConvNeXt
from mmpretrain.models.backbones.convnext import ConvNeXtBlock
from mmpretrain.models.utils import SparseHelper
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..packed.convolution import packed_convnext, packed_layer_norm, packed_strided_conv
from ..packed.units import Units, active_units
from .grn import SparseGRN, packed_grn

EXECUTIONS = ('packed', 'dense')


def packed_convnext_block(
    block: ConvNeXtBlock, tokens: Tensor, units: Units, scope: str = 'image'
) -> Tensor:
    """One ConvNeXt (V2) block at the token positions only.

    Args:
        block (ConvNeXtBlock): Block of mmpretrain, dense or sparse, with linear pointwise layers.
        tokens (Tensor): (B, N, C).
        units (Units): Where they lie on the map.
        scope (str): Definition of GRN, one of ``GRN_SCOPES``.

    Returns:
        Tensor: (B, N, C).
    """

    def mlp(x: Tensor) -> Tensor:
        x = block.act(block.pointwise_conv1(x))
        if block.grn is not None:
            # What the dense computation holds at inactive positions: LayerNorm leaves zeros there.
            inactive = block.act(block.pointwise_conv1.bias)
            x = packed_grn(block.grn, x, scope, inactive, units.num_absent(tokens))
        x = block.pointwise_conv2(x)
        return block.drop_path(x if block.gamma is None else x * block.gamma)

    def inner(tokens: Tensor) -> Tensor:
        return packed_convnext(tokens, units, block.depthwise_conv, block.norm, mlp)

    if block.with_cp and tokens.requires_grad:
        return cp.checkpoint(inner, tokens, use_reentrant=False)
    return inner(tokens)


@MODELS.register_module()
class PackedSparseConvNeXt(SparseConvNeXt):
    """mmpretrain's ``SparseConvNeXt`` that computes active positions only.

    A drop-in replacement in SparK configs: same arguments, parameters and outputs; the mask is
    read from ``SparseHelper``. All images of a batch must have equally many active units.

    Args:
        execution (str): ``'packed'``, or ``'dense'`` for mmpretrain's masked computation.
        grn_scope (str): Definition of GRN under masking, one of ``GRN_SCOPES``. The default is
            what ``SparseConvNeXt`` computes.
        **kwargs: Arguments of ``SparseConvNeXt``.

    Raises:
        ValueError: Unknown option, or ``linear_pw_conv=False`` with packed execution.
    """

    def __init__(
        self,
        *args: Any,
        execution: str = 'packed',
        grn_scope: str = 'image_with_inactive',
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if execution not in EXECUTIONS:
            raise ValueError(f'unknown execution {execution!r}; choose one of {EXECUTIONS}')
        self.execution = execution
        self.grn_scope = grn_scope
        for stage in self.stages:
            for block in stage:
                if block.grn is not None:
                    block.grn = SparseGRN(block.grn.in_channels, grn_scope, block.grn.eps)
                if execution == 'packed' and not block.linear_pw_conv:
                    raise ValueError(
                        "execution='packed' needs linear pointwise layers; drop "
                        "linear_pw_conv=False (equal results) or set execution='dense'"
                    )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Features of the active units of images (B, 3, H, W), as ``SparseConvNeXt`` gives them."""
        if self.execution == 'dense':
            return super().forward(x)
        active = SparseHelper._cur_active
        return self.forward_packed(x, active_units(active), active.shape[-2:])

    def forward_packed(
        self,
        images: Tensor,
        index: Tensor,
        grid: Sequence[int],
        grn_scope: str | None = None,
    ) -> tuple[Tensor, ...]:
        """Features of the units ``index`` alone.

        Args:
            images (Tensor): (B, 3, H, W); H and W multiples of the grid, units square.
            index (Tensor): Active units (B, n), flat positions on the grid.
            grid (Sequence[int]): Units per column and per row.
            grn_scope (str, optional): Overrides the definition of GRN.

        Returns:
            tuple[Tensor, ...]: For each of ``out_indices`` a map (B, C, H_i, W_i), zero at
            inactive positions, or its average (B, C) with ``gap_before_output``.
        """
        scope = grn_scope or self.grn_scope
        units = Units(index, (int(grid[0]), int(grid[1])))
        tokens = units.gather(images)
        outs = []
        for i, (downsample, stage) in enumerate(
            zip(self.downsample_layers, self.stages, strict=True)
        ):
            for layer in downsample:
                if isinstance(layer, nn.Conv2d):
                    tokens = packed_strided_conv(tokens, layer.weight, layer.bias, units)
                else:
                    tokens = packed_layer_norm(layer, tokens)
            for block in stage:
                tokens = packed_convnext_block(block, tokens, units, scope)
            if i in self.out_indices:
                dense = units.scatter(tokens)
                outs.append(dense.mean([-2, -1]) if self.gap_before_output else dense)
        return tuple(outs)

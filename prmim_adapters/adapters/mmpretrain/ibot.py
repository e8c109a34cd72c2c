# SPDX-License-Identifier: Apache-2.0
"""iBOT (``prmim_adapters.frameworks.ibot``).

Modifications:
* ``IBOTViT.encode_masked``, which the student calls on its global crops, encodes cls + visible +
  kept tokens and reconstructs the thrown ones from its last features. Kept and thrown tokens then
  go through the shared projection head and carry the framework's loss. The teacher, local crops
  and whole images are untouched.
* Masks may be ragged: an image throws ``min(round(throw_ratio * L), floor(max_masked_share * M))``
  of its M masked tokens. Images that throw nothing are encoded whole; a batch that throws nothing
  takes the framework's own path.
* The share of tokens that was thrown is logged as 'thrown_share'.

Sequences of several lengths are packed one behind the other (see ``packed/sequences.py``); docs/ibot.md
compares it with one call of the encoder for each length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...core import PartialReconstruction, RaggedPartition
from ...frameworks.ibot import IBOT, IBOTViT, MaskedTokens
from ...packed.sequences import (
    SequenceBlock,
    encode_packed,
    pack_present,
    split_class_tokens,
)
from ..registry import ADAPTERS
from ..seams import Seams


class PRIBOTViT(IBOTViT):
    """iBOT encoder on present tokens only."""

    partial: PartialReconstruction

    def encode_masked(self, x: Tensor, mask: Tensor) -> MaskedTokens:
        """Images (N, 3, H, W), mask (N, L) bool, True = masked."""
        groups = self.partial(mask)
        share = mask.new_full((), groups.num_thrown / mask.numel(), dtype=torch.float32)
        if not groups.num_thrown:
            whole = super().encode_masked(x, mask)
            cls = whole.cls + self.partial.unused()
            return whole._replace(cls=cls, log={'thrown_share': share})

        packed = self._encode_ragged(
            pack_present(self.embed(x, mask), groups), [1 + n for n in groups.num_present]
        )
        cls, features = split_class_tokens(packed, groups)
        queries = self.mask_token[0] + self.positions(self.partial.grid)[0, 1:]
        supervises, length = self.partial.supervises_thrown, mask.shape[1]
        last = length if supervises else groups.num_present
        return MaskedTokens(
            cls=cls,
            patches=self.partial.reconstruct_ragged(groups, features, queries),
            rows=groups.rows(groups.num_visible, last),
            weight=self._weight(mask, groups),
            log={'thrown_share': share},
        )

    def _encode_ragged(self, packed: Tensor, lengths: list[int]) -> Tensor:
        """All layers and the final norm on sequences of these lengths, (R, C) -> (R, C)."""
        if len(set(lengths)) == 1:
            return self.encode(packed.unflatten(0, (-1, lengths[0]))).flatten(0, 1)
        norm = self.ln1 if self.final_norm else nn.Identity()
        return encode_packed(packed, lengths, map(describe, self.layers), norm)

    def _weight(self, mask: Tensor, groups: RaggedPartition) -> Tensor:
        """(N, L) weight of every token in the loss."""
        if not self.partial.changes_loss:
            return mask.float()
        thrown = self.partial.thrown_weight if self.partial.supervises_thrown else 0.0
        rows = groups.rows(groups.num_present, mask.shape[1])
        return mask.float().flatten().index_fill(0, rows, thrown).view(mask.shape)


def describe(layer: Any) -> SequenceBlock:
    """A layer of mmpretrain's ``VisionTransformer``."""
    attention, ffn = layer.attn, layer.ffn

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        dropout = attention.attn_drop if attention.training else 0.0
        return attention.scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout)

    return SequenceBlock(
        qkv=lambda x: attention.qkv(layer.ln1(x)),
        num_heads=attention.num_heads,
        attention=attend,
        project=lambda x: attention.gamma1(attention.proj_drop(attention.proj(x))),
        mlp=lambda x: ffn.gamma2(ffn.layers(layer.ln2(x))),
        drop_paths=(attention.out_drop, ffn.dropout_layer),
        recompute=getattr(layer, 'with_cp', False),
    )


@ADAPTERS.register_module(framework='prmim_adapters.frameworks.ibot.IBOT')
def ibot(model: IBOT) -> Seams:
    """Seam: the student's encoder."""
    return Seams(
        host='backbone',
        classes={IBOTViT: PRIBOTViT},
        grid=tuple(model.backbone.patch_resolution),
        width=model.backbone.embed_dims,
        num_prefix=1,
        ragged=True,
    )

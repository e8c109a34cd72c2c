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
from ...packed.sequences import SequenceBlock, encode_sequences, present_sequences
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

        features = self._encode_ragged(present_sequences(self.embed(x, mask), groups))
        positions = self.positions(self.partial.grid)[0, 1:]
        queries = self.mask_token[0] + positions
        patches = [
            self.partial.reconstruct(partition, f[:, 1:], queries).flatten(0, 1)
            for f, (_, partition) in zip(features, groups, strict=True)
        ]
        length = mask.shape[1]
        rows = [(i[:, None] * length + self.partial.supervised(p)).flatten() for i, p in groups]
        return MaskedTokens(
            cls=torch.cat([f[:, 0] for f in features])[groups.order],
            patches=torch.cat(patches),
            rows=torch.cat(rows),
            weight=self._weight(mask, groups),
            log={'thrown_share': share},
        )

    def _encode_ragged(self, sequences: list[Tensor]) -> list[Tensor]:
        """All layers and the final norm on (b, n, C), one tensor for each length n."""
        if len(sequences) == 1:
            return [self.encode(sequences[0])]
        norm = self.ln1 if self.final_norm else nn.Identity()
        return encode_sequences(sequences, map(describe, self.layers), norm)

    def _weight(self, mask: Tensor, groups: RaggedPartition) -> Tensor:
        """(N, L) weight of every token in the loss."""
        weight = mask.float()
        thrown = self.partial.thrown_weight if self.partial.supervises_thrown else 0.0
        for index, partition in groups:
            weight[index[:, None], partition.thrown] = thrown
        return weight


def describe(layer: Any) -> SequenceBlock:
    """A layer of mmpretrain's ``VisionTransformer``."""
    attention, ffn = layer.attn, layer.ffn

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        dropout = attention.attn_drop if attention.training else 0.0
        return attention.scaled_dot_product_attention(query, key, value, dropout_p=dropout)

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

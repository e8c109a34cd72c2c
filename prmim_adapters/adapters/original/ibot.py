# SPDX-License-Identifier: Apache-2.0
"""The original iBOT, https://github.com/bytedance/ibot: its student, a ``MultiCropWrapper``.

Modifications:
* ``VisionTransformer.forward`` of the student encodes cls + visible + kept tokens of crops that come
  with a mask, reconstructs the thrown ones, and returns all tokens in their places, so head, loss
  and training script see no difference. Local crops (``masked_im_modeling`` off), the teacher, and
  batches that throw nothing take upstream's path.
* Masks may be ragged: an image throws ``min(round(throw_ratio * L), floor(max_masked_share * M))``
  of its M masked tokens. Token-wise layers run once on all images (see ``packed/sequences.py``).
* Parameters keep their names. The student's new ones have no counterpart in the teacher, whose
  moving average goes by name. They get a gradient of zero in steps that throw nothing, since
  upstream's DDP waits for every gradient.
* ``aggregator=None`` and ``thrown_weight`` are refused: upstream's loss, which is not part of the
  model, weighs every masked token.
* A Swin student is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core import PartialReconstruction, RaggedPartition
from ...packed.sequences import (
    SequenceBlock,
    encode_packed,
    pack_present,
    split_class_tokens,
)
from ..registry import ADAPTERS
from ..seams import Seams
from .classes import UpstreamClasses
from .geometry import embedded_grid


class VisionTransformerSeam:
    """iBOT's student encoder on present tokens only."""

    partial: PartialReconstruction

    def forward(
        self: Any, x: Tensor, return_all_tokens: bool | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """x (N, 3, H, W), mask (N, h, w) bool, True = masked -> (N, 1 + L, C), or cls (N, C)."""
        if not self.masked_im_modeling or mask is None:
            return super().forward(x, return_all_tokens, mask)  # type: ignore[misc]
        groups = self.partial(mask.flatten(1))
        if groups.num_thrown:
            tokens = self._encode_present(self.prepare_tokens(x, mask=mask), groups)
        else:
            tokens = super().forward(x, True, mask) + self.partial.unused()  # type: ignore[misc]
        return_all = self.return_all_tokens if return_all_tokens is None else return_all_tokens
        return tokens if return_all else tokens[:, 0]

    def _encode_present(self: Any, tokens: Tensor, groups: RaggedPartition) -> Tensor:
        """Embedded tokens (N, 1 + L, C) -> encoded (N, 1 + L, C)."""
        lengths = [1 + count for count in groups.num_present]
        packed = encode_packed(
            pack_present(tokens, groups), lengths, map(_describe, self.blocks), self.norm
        )
        cls, features = split_class_tokens(packed, groups)
        queries = self.masked_embed + self.pos_embed[0, 1:]
        rebuilt = self.partial.reconstruct_ragged(groups, features, queries)
        length = tokens.shape[1] - 1
        patches = rebuilt.new_zeros(len(tokens) * length, rebuilt.shape[1])
        patches = patches.index_copy(0, groups.rows(0, groups.num_present), features)
        patches = patches.index_copy(0, groups.rows(groups.num_visible, length), rebuilt)
        out = torch.cat((cls[:, None], patches.unflatten(0, (-1, length))), dim=1)
        if self.fc_norm is None:
            return out
        return torch.cat((self.fc_norm(out[:, 1:].mean(1, keepdim=True)), out[:, 1:]), dim=1)


def _describe(block: Any) -> SequenceBlock:
    attention = block.attn

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        scores = query @ key.transpose(-2, -1) * attention.scale
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return attention.attn_drop(scores.softmax(dim=-1)) @ value

    def scaled(gamma: Tensor | None, update: Tensor) -> Tensor:
        return update if gamma is None else gamma * update

    return SequenceBlock(
        qkv=lambda x: attention.qkv(block.norm1(x)),
        num_heads=attention.num_heads,
        attention=attend,
        project=lambda x: scaled(block.gamma_1, attention.proj_drop(attention.proj(x))),
        mlp=lambda x: scaled(block.gamma_2, block.mlp(block.norm2(x))),
        drop_paths=(block.drop_path, block.drop_path),
    )


CLASSES = UpstreamClasses(
    __name__, {'models.vision_transformer.VisionTransformer': VisionTransformerSeam}
)
__getattr__ = CLASSES.find


@ADAPTERS.register_module(framework='utils.MultiCropWrapper')
def ibot(model: Any) -> Seams:
    """Seam: the student's encoder.

    Raises:
        TypeError: not one of iBOT's vision transformers.
        ValueError: not a student that masks.
    """
    backbone = model.backbone
    if not hasattr(backbone, 'masked_im_modeling') or hasattr(backbone, 'layers'):
        raise TypeError(
            f'the backbone is a {type(backbone).__module__}.{type(backbone).__qualname__}: '
            "iBOT's vision transformers are supported, not Swin or convolutional networks"
        )
    if not backbone.masked_im_modeling:
        raise ValueError(
            'the student has use_masked_im_modeling=False (or this is the teacher): there are '
            'no masked tokens to throw'
        )
    return Seams(
        host='backbone',
        classes=CLASSES,
        grid=embedded_grid(backbone.patch_embed, backbone.pos_embed.shape[1] - 1, 'pos_embed'),
        width=backbone.embed_dim,
        num_prefix=1,
        ragged=True,
        owns_loss=False,
    )

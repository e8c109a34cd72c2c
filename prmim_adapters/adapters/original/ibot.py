# SPDX-License-Identifier: Apache-2.0
"""The original iBOT, https://github.com/bytedance/ibot: its student, a ``MultiCropWrapper``.

Modifications:
* ``VisionTransformer.forward`` of the student encodes cls + visible + kept tokens of crops that come
  with a mask, reconstructs the thrown ones, and returns all tokens in their places, so head, loss
  and training script see no difference. Local crops (``masked_im_modeling`` off), the teacher, and
  batches that throw nothing take upstream's path.
* Masks may be ragged: an image throws ``min(round(throw_ratio * L), floor(max_masked_share * M))``
  of its M masked tokens. Token-wise layers run once on all images, attention once per length.
* Parameters keep their names. The student's new ones have no counterpart in the teacher, whose
  moving average goes by name. They get a gradient of zero in steps that throw nothing, since
  upstream's DDP waits for every gradient.
* ``aggregator=None`` and ``thrown_weight`` are refused: upstream's loss, which is not part of the
  model, weighs every masked token.
* A Swin student is refused.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
from torch import Tensor

from ...core import PartialReconstruction, gather_tokens
from ...core.partition import Grid
from ..base import Adapter
from ..dense import changes_loss, dense_features
from ..registry import ADAPTERS
from .classes import UpstreamClasses


class VisionTransformerSeam:
    """iBOT's student encoder on present tokens only."""

    partial: PartialReconstruction

    def forward(
        self: Any, x: Tensor, return_all_tokens: bool | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """x (N, 3, H, W), mask (N, h, w) bool, True = masked -> (N, 1 + L, C), or cls (N, C)."""
        if not self.masked_im_modeling or mask is None or self.partial.num_thrown == 0:
            return super().forward(x, return_all_tokens, mask)  # type: ignore[misc]
        if changes_loss(self.partial):
            raise ValueError(
                "iBOT's loss weighs every masked token: aggregator=None and thrown_weight are not "
                'supported; attach with an aggregator and thrown_weight=1'
            )
        flat = mask.flatten(1)
        if not int(self.partial.thrown_counts(flat.sum(1)).sum()):
            tokens = super().forward(x, True, mask)  # type: ignore[misc]
            tokens = tokens + sum(p.sum() * 0 for p in self.partial.parameters())
        else:
            tokens = self._encode_present(self.prepare_tokens(x, mask=mask), flat)
        return_all = self.return_all_tokens if return_all_tokens is None else return_all_tokens
        return tokens if return_all else tokens[:, 0]

    def _encode_present(self: Any, tokens: Tensor, mask: Tensor) -> Tensor:
        """Embedded tokens (N, 1 + L, C), mask (N, L) -> encoded (N, 1 + L, C)."""
        groups = self.partial.split_ragged(mask)
        sequences = [
            torch.cat((tokens[i, :1], gather_tokens(tokens[i, 1:], p.present)), dim=1)
            for i, p in groups
        ]
        queries = self.masked_embed + self.pos_embed[0, 1:]
        rows = []
        for features, (_, partition) in zip(self._encode(sequences), groups, strict=True):
            patches = dense_features(self.partial, partition, features[:, 1:], queries)
            rows.append(torch.cat((features[:, :1], patches), dim=1))
        out = torch.cat(rows)[torch.cat([i for i, _ in groups]).argsort()]
        if self.fc_norm is None:
            return out
        return torch.cat((self.fc_norm(out[:, 1:].mean(1, keepdim=True)), out[:, 1:]), dim=1)

    def _encode(self: Any, sequences: list[Tensor]) -> list[Tensor]:
        """All blocks and the norm on sequences (n, length, C) of different lengths, unpadded."""
        shapes = [x.shape[:2] for x in sequences]
        sizes = [images * length for images, length in shapes]

        def unpack(packed: Tensor) -> list[Tensor]:
            parts = zip(packed.split(sizes), shapes, strict=True)
            return [part.unflatten(0, shape) for part, shape in parts]

        def per_image(module: Any, packed: Tensor) -> Tensor:
            return torch.cat([module(part).flatten(0, 1) for part in unpack(packed)])

        packed = torch.cat([x.flatten(0, 1) for x in sequences])
        for block in self.blocks:
            qkv = unpack(block.attn.qkv(block.norm1(packed)))
            y = torch.cat([_attend(block.attn, part).flatten(0, 1) for part in qkv])
            y = block.attn.proj_drop(block.attn.proj(y))
            y = y if block.gamma_1 is None else block.gamma_1 * y
            packed = packed + per_image(block.drop_path, y)
            y = block.mlp(block.norm2(packed))
            y = y if block.gamma_2 is None else block.gamma_2 * y
            packed = packed + per_image(block.drop_path, y)
        return unpack(self.norm(packed))


def _attend(attention: Any, qkv: Tensor) -> Tensor:
    """Qkv (n, length, 3C) -> (n, length, C), before the output projection."""
    query, key, value = (
        part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1)
    )
    weights = (query @ key.transpose(-2, -1) * attention.scale).softmax(dim=-1)
    return (attention.attn_drop(weights) @ value).transpose(1, 2).flatten(2)


CLASSES = UpstreamClasses(
    __name__, {'models.vision_transformer.VisionTransformer': VisionTransformerSeam}
)
__getattr__ = CLASSES.find


@ADAPTERS.register_module(framework='utils.MultiCropWrapper')
class OriginalIBOTAdapter(Adapter):
    """Seam: the student's encoder."""

    classes = CLASSES
    host = 'backbone'

    @classmethod
    def grid(cls, model: Any) -> Grid:
        """The patch grid of a global crop, square."""
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
        side = isqrt(backbone.patch_embed.num_patches)
        return side, side

    @classmethod
    def width(cls, model: Any) -> int:
        """Encoder width."""
        return model.backbone.embed_dim

    @classmethod
    def num_prefix(cls, model: Any) -> int:
        """The cls token."""
        return 1

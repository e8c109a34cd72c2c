# SPDX-License-Identifier: Apache-2.0
"""MaskFeat in mmpretrain.

Modifications:
* ``MaskFeatViT.forward`` encodes cls + visible + kept tokens, reconstructs the thrown ones from
  its last features, and returns cls and the supervised rows. The linear neck sees those only.
* The head hands target and mask at the same rows to the framework's own loss module.
"""

from __future__ import annotations

import torch
from mmpretrain.models import MIMHead
from mmpretrain.models.selfsup.maskfeat import MaskFeat, MaskFeatViT
from torch import Tensor

from ...core import PartialReconstruction
from ..registry import ADAPTERS
from ..seams import Seams
from ..vit_encoder import embed_present
from .mae import PRMIMHead


class PRMaskFeatViT(MaskFeatViT):
    """MaskFeat encoder on present tokens only."""

    partial: PartialReconstruction

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Encode masked images.

        Args:
            x: images (B, 3, H, W).
            mask: (B, L) bool; None is upstream's forward of the whole image.

        Returns:
            (B, 1 + n, C): cls, then the supervised positions: kept, thrown.
        """
        if mask is None:
            return super().forward(x, None)
        partition = self.partial(mask)
        tokens, queries = embed_present(self, self.patch_embed(x)[0], partition)
        tokens = self.drop_after_pos(tokens)
        for layer in self.layers:
            tokens = layer(tokens)
        if self.final_norm:
            tokens = self.norm1(tokens)
        supervised = self.partial.reconstruct(partition, tokens[:, 1:], queries)
        return torch.cat((tokens[:, :1], supervised), dim=1)


@ADAPTERS.register_module(framework='mmpretrain.models.selfsup.maskfeat.MaskFeat')
def maskfeat(model: MaskFeat) -> Seams:
    """Seam: the encoder. ``MaskFeat`` itself needs no change, so it is not among the classes."""
    return Seams(
        host='backbone',
        guests=('head',),
        classes={MaskFeatViT: PRMaskFeatViT, MIMHead: PRMIMHead},
        grid=tuple(model.backbone.patch_resolution),
        width=model.backbone.embed_dims,
        num_prefix=1,
    )

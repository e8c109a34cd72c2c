# SPDX-License-Identifier: Apache-2.0
"""MaskFeat in mmpretrain.

Modifications:
* ``MaskFeatViT.forward`` encodes cls + visible + kept tokens, reconstructs the thrown ones from
  its last features, and returns cls and the supervised rows. The linear neck sees those only.
* The head hands target and mask at the same rows to the framework's own loss module.
"""

from __future__ import annotations

from typing import Any

import torch
from mmpretrain.models import MIMHead
from mmpretrain.models.selfsup.maskfeat import HOGGenerator, MaskFeat, MaskFeatViT
from torch import Tensor

from ...core import PartialReconstruction
from ..registry import ADAPTERS
from ..seams import Seams
from ..vit_encoder import embed_present
from .mae import PRMIMHead

#: Patches of a side that mmpretrain's HOG is cut into: ``HOGGenerator._reshape``.
_HOG_SIDE = 14


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
        returns = len(self.layers) - self.partial.last_blocks
        for i, layer in enumerate(self.layers):
            if i == returns:
                dropout = self.drop_after_pos
                partition, tokens = self.partial.bring_back(partition, tokens, queries, dropout)
            tokens = layer(tokens)
        if self.final_norm:
            tokens = self.norm1(tokens)
        supervised = self.partial.reconstruct(partition, tokens[:, 1:], queries)
        return torch.cat((tokens[:, :1], supervised), dim=1)


@ADAPTERS.register_module(framework='mmpretrain.models.selfsup.maskfeat.MaskFeat')
def maskfeat(model: MaskFeat) -> Seams:
    """Seam: the encoder. ``MaskFeat`` itself needs no change, so it is not among the classes.

    Raises:
        ValueError: images that the target generator fails on.
    """
    _check_targets(model)
    return Seams(
        host='backbone',
        guests=('head',),
        classes={MaskFeatViT: PRMaskFeatViT, MIMHead: PRMIMHead},
        grid=tuple(model.backbone.patch_resolution),
        width=model.backbone.embed_dims,
        num_prefix=1,
        num_blocks=len(model.backbone.layers),
    )


def _check_targets(model: Any) -> None:
    """mmpretrain's HOG has targets for 14 x 14 patches of three channels, whatever it is given."""
    generator, (height, width) = model.target_generator, model.backbone.patch_resolution
    if getattr(type(generator), '_reshape', None) is not HOGGenerator._reshape:
        return
    if (height, width) != (_HOG_SIDE, _HOG_SIDE):
        raise ValueError(
            f'HOGGenerator has targets for {_HOG_SIDE}x{_HOG_SIDE} patches, and the backbone has '
            f'{height}x{width}: set img_size to {_HOG_SIDE} times patch_size, or use another '
            'target_generator'
        )
    channels = model.backbone.patch_embed.projection.in_channels
    if channels != generator.weight_x.shape[0]:
        raise ValueError(
            f'HOGGenerator takes images of {generator.weight_x.shape[0]} channels, and the backbone '
            f'{channels}: use another target_generator'
        )

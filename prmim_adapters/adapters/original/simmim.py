# SPDX-License-Identifier: Apache-2.0
"""The original SimMIM, https://github.com/microsoft/SimMIM, file models/simmim.py.

Modifications:
* ``VisionTransformerForSimMIM.forward`` encodes cls + visible + kept tokens. The shared relative
  position bias is gathered per image; a bias per block (``MODEL.VIT.USE_RPB``) is refused. Thrown
  tokens can come back before the last blocks.
* ``SwinTransformerForSimMIM.forward`` runs all stages on visible and kept 32-pixel units (see
  ``packed/swin.py``).
* Both reconstruct the thrown tokens and return the feature map that they always did, so the decoder
  and ``SimMIM.forward`` are upstream's.
* Where thrown tokens weigh differently from kept ones, the loss is upstream's with those weights.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...core import PartialReconstruction
from ...core.partition import Grid
from ..dense import dense_features, feature_map, weighted_l1
from ..registry import ADAPTERS
from ..seams import Seams
from ..vit_encoder import embed_present, present_bias
from .classes import UpstreamClasses


class VisionTransformerSeam:
    """SimMIM's ViT on present tokens only."""

    partial: PartialReconstruction

    def forward(self: Any, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, 3, H, W), mask (B, h, w), 1 = masked -> features (B, C, h, w)."""
        reads = self.partial.changes_loss
        partition = self.partial(mask.flatten(1).bool(), loss_reads=reads)
        tokens, queries = embed_present(self, self.patch_embed(x), partition)
        x = self.pos_drop(tokens)
        bias = present_bias(self.rel_pos_bias, partition)
        returns = len(self.blocks) - self.partial.last_blocks
        for i, block in enumerate(self.blocks):
            if i == returns:
                partition, x = self.partial.bring_back(partition, x, queries, self.pos_drop)
                bias = present_bias(self.rel_pos_bias, partition)
            x = block(x, rel_pos_bias=bias)
        features = dense_features(self.partial, partition, self.norm(x)[:, 1:], queries)
        return feature_map(features, self.partial.grid)


class SwinTransformerSeam:
    """SimMIM's Swin on present units only."""

    partial: PartialReconstruction

    def forward(self: Any, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, 3, H, W), mask (B, H / 4, W / 4), 1 = masked -> features (B, C, H / 32, W / 32)."""
        from .swin import encode_units

        return encode_units(self, x, mask)


class SimMIMSeam:
    """SimMIM with weights for thrown tokens."""

    partial: PartialReconstruction

    def forward(self: Any, x: Tensor, mask: Tensor) -> Tensor:
        """Upstream's loss of images x (B, 3, H, W) under mask (B, h, w), 1 = masked.

        Raises:
            ValueError: the mask has not one entry for each patch.
        """
        height, width = _patches(self.encoder)
        if mask.shape[1:] != (height, width):
            raise ValueError(
                f'mask of shape {tuple(mask.shape)}: expected (B, {height}, {width}), an entry for '
                'each patch of the images; set DATA.IMG_SIZE and PATCH_SIZE of model and masks alike'
            )
        if not self.partial.changes_loss:
            return super().forward(x, mask)  # type: ignore[misc]
        reconstruction = self.decoder(self.encoder(x, mask))
        return weighted_l1(self.partial, self.partial.take(len(x)), x, reconstruction, mask)


def _patches(encoder: Any) -> Grid:
    """(H, W) in patches."""
    embed = encoder.patch_embed
    height, width = embed.patches_resolution if hasattr(encoder, 'layers') else embed.patch_shape
    return height, width


CLASSES = UpstreamClasses(
    __name__,
    {
        'models.simmim.VisionTransformerForSimMIM': VisionTransformerSeam,
        'models.simmim.SwinTransformerForSimMIM': SwinTransformerSeam,
        'models.simmim.SimMIM': SimMIMSeam,
    },
)
__getattr__ = CLASSES.find


@ADAPTERS.register_module(framework='models.simmim.SimMIM')
def simmim(model: Any) -> Seams:
    """Seam: the encoder. The grid of a ViT is of patches, that of Swin of units.

    Raises:
        ValueError: every block has a relative position bias of its own, units do not fit, or the
            reconstruction has another size than the images.
    """
    encoder = model.encoder
    grid = _patches(encoder)
    if hasattr(encoder, 'layers'):
        from .swin import unit_grid

        grid = unit_grid(encoder)
    elif encoder.use_rel_pos_bias:
        raise ValueError(
            'MODEL.VIT.USE_RPB=True: every block adds a bias of the full grid, which does not '
            'fit present tokens; pre-train with USE_RPB=False, USE_SHARED_RPB=True (upstream '
            'copies the shared bias into every block for fine-tuning)'
        )
    stride = model.patch_size * (_patches(encoder)[0] // grid[0])
    if model.encoder_stride != stride:
        raise ValueError(
            f'encoder_stride={model.encoder_stride}, but the encoder puts {stride}x{stride} pixels '
            f'into a token: set encoder_stride={stride}'
        )
    return Seams(
        host='encoder',
        guests=('',),
        classes=CLASSES,
        grid=grid,
        width=encoder.num_features,
        num_prefix=int(hasattr(encoder, 'cls_token')),
        absolute_positions=False,
        num_blocks=len(encoder.blocks) if hasattr(encoder, 'blocks') else 0,
    )

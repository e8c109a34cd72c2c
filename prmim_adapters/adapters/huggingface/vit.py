# SPDX-License-Identifier: Apache-2.0
"""Hugging Face transformers: ViTMAEForPreTraining, ViTForMaskedImageModeling.

Modifications:
* ``ViTMAEDecoder.forward`` runs its layers on cls + visible + kept tokens and its prediction layer
  on supervised tokens; logits (B, L, D) are zeros at positions that carry no loss.
* ``ViTEmbeddings.forward`` hands the encoder cls + visible + kept tokens; ``ViTModel.forward``
  reconstructs the thrown ones from its last hidden state, which it returns in grid order. With
  ``output_hidden_states=True`` the hidden states are those of present tokens.
* Where thrown tokens weigh differently from kept ones, the loss is computed again with the weights.
* ``interpolate_pos_encoding=True`` on images of another size than the config's is refused.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers.models.vit.modeling_vit import (
    ViTEmbeddings,
    ViTForMaskedImageModeling,
    ViTModel,
)
from transformers.models.vit_mae.modeling_vit_mae import (
    ViTMAEDecoder,
    ViTMAEDecoderOutput,
    ViTMAEForPreTraining,
)

from ...core import PartialReconstruction, gather_tokens
from ...core.partition import Grid
from ..dense import dense_features, weighted_l1
from ..mae_decoder import decode_in_place
from ..registry import ADAPTERS
from ..seams import Seams, patch_grid
from .sizes import check_size, check_stride, refuse_rectangles

Class = TypeVar('Class', bound=type)


def saved_as_upstream(cls: Class) -> Class:
    """Give the class its base's ``__name__``, which ``save_pretrained`` writes as architecture.

    Pickle goes by ``__qualname__``, which stays.
    """
    cls.__name__ = cls.__bases__[0].__name__
    return cls


class PRViTMAEDecoder(ViTMAEDecoder):
    """MAE decoder on present tokens only."""

    partial: PartialReconstruction

    def forward(
        self, hidden_states: Tensor, ids_restore: Tensor, interpolate_pos_encoding: bool = False
    ) -> ViTMAEDecoderOutput:
        """hidden_states (B, 1 + V, C), ids_restore (B, L) -> logits (B, L, D)."""
        check_size(self.partial, ids_restore.shape[1])
        logits = decode_in_place(
            self, self.decoder_layers, self.partial, hidden_states, ids_restore
        )
        return ViTMAEDecoderOutput(logits=logits)


@saved_as_upstream
class PRViTMAEForPreTraining(ViTMAEForPreTraining):
    """MAE with weights for thrown tokens."""

    partial: PartialReconstruction

    def forward(
        self,
        pixel_values: Tensor | None = None,
        noise: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Upstream's output for pixel_values (B, 3, H, W) and noise (B, L)."""
        output = super().forward(pixel_values, noise, interpolate_pos_encoding, **kwargs)
        if not self.partial.changes_loss:
            return output
        target = self.patchify(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        if self.config.norm_pix_loss:
            variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        names = isinstance(output, dict)
        logits, mask = (output.logits, output.mask) if names else output[1:3]
        weights = self.partial.loss_mask(mask, self.partial.take(len(mask)))
        loss = ((logits - target) ** 2).mean(-1).mul(weights).sum() / weights.sum()
        if not names:
            return (loss, *output[1:])
        output.loss = loss
        return output


class PRViTEmbeddings(ViTEmbeddings):
    """Embeds all patches, returns the present ones."""

    partial: PartialReconstruction

    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> Tensor:
        """pixel_values (B, 3, H, W), bool_masked_pos (B, L), 1 = masked -> (B, 1 + N, C)."""
        tokens = super().forward(pixel_values, bool_masked_pos, interpolate_pos_encoding)
        if bool_masked_pos is None:
            return tokens
        check_size(self.partial, tokens.shape[1] - 1)
        partition = self.partial(bool_masked_pos.flatten(1).bool())
        patches = gather_tokens(tokens[:, 1:], partition.present)
        return torch.cat((tokens[:, :1], patches), dim=1)


class PRViTModel(ViTModel):
    """Puts the last hidden states back in grid order, the thrown ones reconstructed."""

    partial: PartialReconstruction

    def forward(
        self,
        pixel_values: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Upstream's output for pixel_values (B, 3, H, W), bool_masked_pos (B, L), 1 = masked."""
        output = super().forward(pixel_values, bool_masked_pos, interpolate_pos_encoding, **kwargs)
        if bool_masked_pos is None:
            return output
        partition = self.partial.current()
        if not self.partial.changes_loss:
            self.partial.take(len(bool_masked_pos))
        names = isinstance(output, dict)
        tokens = output.last_hidden_state if names else output[0]
        queries = self.embeddings.mask_token[0] + self.embeddings.position_embeddings[0, 1:]
        patches = dense_features(self.partial, partition, tokens[:, 1:], queries)
        tokens = torch.cat((tokens[:, :1], patches), dim=1)
        if not names:
            return (tokens, *output[1:])
        output.last_hidden_state = tokens
        return output


@saved_as_upstream
class PRViTForMaskedImageModeling(ViTForMaskedImageModeling):
    """SimMIM's loss with weights for thrown tokens."""

    partial: PartialReconstruction

    def forward(
        self,
        pixel_values: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Upstream's output for pixel_values (B, 3, H, W), bool_masked_pos (B, L), 1 = masked."""
        output = super().forward(pixel_values, bool_masked_pos, interpolate_pos_encoding, **kwargs)
        return reweighted(self.partial, output, pixel_values, bool_masked_pos)


def reweighted(
    partial: PartialReconstruction,
    output: Any,
    pixel_values: Tensor | None,
    bool_masked_pos: Tensor | None,
) -> Any:
    """The output of a masked image model with the weights of thrown tokens in its loss."""
    if pixel_values is None or bool_masked_pos is None or not partial.changes_loss:
        return output
    names = isinstance(output, dict)
    reconstruction = output.reconstruction if names else output[1]
    mask = bool_masked_pos.flatten(1)
    side = round((mask.shape[1] / (partial.grid[0] * partial.grid[1])) ** 0.5)  # of a unit
    mask = mask.view(-1, partial.grid[0] * side, partial.grid[1] * side)
    partition = partial.take(len(mask))
    loss = weighted_l1(partial, partition, pixel_values, reconstruction, mask)
    if not names:
        return (loss, *output[1:])
    output.loss = loss
    return output


def _grid(embeddings: Any) -> Grid:
    patches = embeddings.patch_embeddings
    patch_size = patches.projection.kernel_size
    return patch_grid(tuple(patches.image_size), patch_size, where='config.image_size')


@ADAPTERS.register_module(
    framework='transformers.models.vit_mae.modeling_vit_mae.ViTMAEForPreTraining'
)
def vit_mae(model: Any) -> Seams:
    """Seam: the decoder.

    Raises:
        ValueError: images that are not square, which upstream's ``patchify`` refuses.
    """
    embeddings = model.vit.embeddings
    height, width = embeddings.patch_embeddings.image_size
    if height != width and type(model).patchify is ViTMAEForPreTraining.patchify:
        refuse_rectangles(model)
    length = embeddings.patch_embeddings.num_patches
    return Seams(
        host='decoder',
        guests=('',),
        classes={
            ViTMAEDecoder: PRViTMAEDecoder,
            ViTMAEForPreTraining: PRViTMAEForPreTraining,
        },
        grid=_grid(embeddings),
        width=model.decoder.decoder_embed.out_features,
        # as ViTMAEEmbeddings.random_masking counts them
        num_masked=length - int(length * (1 - model.config.mask_ratio)),
        num_prefix=1,
    )


@ADAPTERS.register_module(
    framework='transformers.models.vit.modeling_vit.ViTForMaskedImageModeling'
)
def vit(model: Any) -> Seams:
    """Seam: what the encoder is given and what it returns.

    Raises:
        ValueError: an image size in two numbers, which upstream's loss divides as one, or a
            reconstruction of another size.
    """
    check_stride(model, model.config.patch_size)
    return Seams(
        host='vit',
        guests=('vit.embeddings', ''),
        classes={
            ViTModel: PRViTModel,
            ViTEmbeddings: PRViTEmbeddings,
            ViTForMaskedImageModeling: PRViTForMaskedImageModeling,
        },
        grid=_grid(model.vit.embeddings),
        width=model.config.hidden_size,
        num_prefix=1,
    )

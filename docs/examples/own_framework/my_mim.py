# SPDX-License-Identifier: Apache-2.0
"""A MIM framework that prmim_adapters does not know, and its adapter.

``MyMIM`` stands for code of your own: an encoder that sees mask tokens, a linear head, a loss over
the masked patches. ``MyAdapter`` names its seams. Config and sweep beside this file use both.
"""

from __future__ import annotations

import torch
from mmengine.model import BaseModel
from mmpretrain.registry import MODELS
from torch import Tensor, nn

import prmim_adapters as prmim
from prmim_adapters.core import gather_tokens, scatter_tokens

# --------------------------------------------------------------------------- your framework


class MyEncoder(nn.Module):
    """Transformer over patches; masked ones are replaced by a mask token."""

    def __init__(self, width: int, depth: int, grid: tuple[int, int], patch: int) -> None:
        super().__init__()
        self.grid = grid
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.position = nn.Parameter(torch.randn(grid[0] * grid[1], width) * 0.02)
        self.mask_token = nn.Parameter(torch.zeros(width))
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, depth)

    def tokens(self, images: Tensor, mask: Tensor | None) -> Tensor:
        """(B, 3, H, W), (B, L) bool or None -> (B, L, C)."""
        x = self.patches(images).flatten(2).mT
        if mask is not None:
            x = torch.where(mask[..., None], self.mask_token, x)
        return x + self.position

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features (B, L, C)."""
        return self.blocks(self.tokens(images, mask))


class MyHead(nn.Module):
    """Predicts pixels."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.predict = nn.Linear(width, 3 * patch**2)

    def loss(self, features: Tensor, images: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error over the masked patches."""
        target = nn.functional.unfold(images, self.patch, stride=self.patch).mT
        error = (self.predict(features) - target).square().mean(-1)
        return (error * mask).sum() / mask.sum()


@MODELS.register_module()
class MyMIM(BaseModel):
    """Random masks of one size, encoder, head."""

    def __init__(self, width=32, depth=2, side=4, patch=4, mask_ratio=0.6, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.backbone = MyEncoder(width, depth, (side, side), patch)
        self.head = MyHead(width, patch)
        self.num_masked = round(mask_ratio * side * side)

    def loss(self, inputs: Tensor, data_samples: list | None = None) -> dict[str, Tensor]:
        """Loss of a batch (B, 3, H, W)."""
        noise = torch.rand(len(inputs), len(self.backbone.position), device=inputs.device)
        mask = noise.argsort(1).argsort(1) < self.num_masked
        return dict(loss=self.head.loss(self.backbone(inputs, mask), inputs, mask))

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor'):
        """mmengine's entry point."""
        return self.loss(inputs, data_samples) if mode == 'loss' else self.backbone(inputs)


# --------------------------------------------------------------------------- its adapter


class PRMyEncoder(MyEncoder):
    """The blocks see the present tokens; the others come from the light stage."""

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features (B, L, C), zeros at positions that carry no loss."""
        if mask is None:
            return super().forward(images)
        partition = self.partial(mask)
        features = self.blocks(gather_tokens(self.tokens(images, mask), partition.present))
        queries = self.mask_token + self.position
        masked = self.partial.reconstruct(partition, features, queries)
        return scatter_tokens(masked, self.partial.supervised(partition), mask.shape[1])


class PRMyHead(MyHead):
    """The same loss; without a light stage, thrown tokens are left out of it."""

    def loss(self, features: Tensor, images: Tensor, mask: Tensor) -> Tensor:
        """As the parent's."""
        mask = self.partial.loss_mask(mask, self.partial.take(len(mask)))
        return super().loss(features, images, mask)


@prmim.ADAPTERS.register_module(framework='my_mim.MyMIM')
def my_mim(model: MyMIM) -> prmim.Seams:
    """Seams: the encoder, which is the heavy network, and the head's loss."""
    return prmim.Seams(
        host='backbone',
        guests=('head',),
        classes={MyEncoder: PRMyEncoder, MyHead: PRMyHead},
        grid=model.backbone.grid,
        width=model.backbone.position.shape[1],
        num_masked=model.num_masked,
    )

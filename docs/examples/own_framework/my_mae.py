# SPDX-License-Identifier: Apache-2.0
"""A masked autoencoder and its adapter: the decoder gets the visible tokens in shuffled order."""

import torch
from torch import Tensor, nn

import prmim_adapters as prmim
from prmim_adapters.core import gather_tokens, scatter_tokens, table_rows


class MyDecoder(nn.Module):
    """Blocks on all tokens, then a prediction for each."""

    def __init__(self, grid: tuple[int, int], width: int, values: int) -> None:
        super().__init__()
        self.grid = grid
        self.mask_token = nn.Parameter(torch.randn(width))
        self.position = nn.Parameter(torch.randn(grid[0] * grid[1], width))
        self.blocks = nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, batch_first=True)
        self.predict = nn.Linear(width, values)

    def forward(self, latent: Tensor, ids_restore: Tensor) -> Tensor:
        """Latent (B, V, C) in shuffled order, rank of each position (B, L) -> (B, L, values)."""
        masked = self.mask_token.expand(len(latent), ids_restore.shape[1] - latent.shape[1], -1)
        tokens = gather_tokens(torch.cat((latent, masked), 1), ids_restore)
        return self.predict(self.blocks(tokens + self.position))


class MyMAE(nn.Module):
    """Sees a quarter of the patches and predicts the others."""

    def __init__(self, grid: tuple[int, int] = (4, 6), patch: int = 2, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.num_visible = grid[0] * grid[1] // 4
        self.decoder = MyDecoder(grid, width, 3 * patch**2)

    def forward(self, images: Tensor) -> Tensor:
        """The loss of images (B, 3, H, W)."""
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        ids_restore = torch.rand(tokens.shape[:2], device=tokens.device).argsort(1).argsort(1)
        visible = ids_restore.argsort(1)[:, : self.num_visible]
        prediction = self.decoder(gather_tokens(tokens, visible), ids_restore)
        patch = self.embed.kernel_size[0]
        target = nn.functional.unfold(images, patch, stride=patch).transpose(1, 2)
        return self.compare(prediction, target, (ids_restore >= self.num_visible).float())

    def compare(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error of the masked patches."""
        return ((prediction - target) ** 2).mean(-1).mul(mask).sum() / mask.sum()


# --------------------------------------------------------------------------- its adapter


class PRMyDecoder(MyDecoder):
    """The blocks see present tokens only."""

    def forward(self, latent: Tensor, ids_restore: Tensor) -> Tensor:
        """Predictions (B, L, values), zeros where there is no loss."""
        num_visible = latent.shape[1]
        partition = self.partial(ids_restore >= num_visible, ids_restore.shape[1] - num_visible)
        # Latents arrive shuffled, and features must follow partition.present: visible positions in
        # ascending order, then the kept ones.
        latent = gather_tokens(latent, ids_restore.argsort(1)[:, :num_visible].argsort(1))
        queries = self.mask_token + self.position
        visible = latent + table_rows(self.position, partition.visible)
        features = self.blocks(torch.cat((visible, table_rows(queries, partition.kept)), 1))
        rows = self.predict(self.partial.reconstruct(partition, features, queries))
        return scatter_tokens(rows, self.partial.supervised(partition), ids_restore.shape[1])


class PRMyMAE(MyMAE):
    """The loss takes the partition of its pass, whose thrown tokens may weigh differently."""

    def compare(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """As the parent's."""
        mask = self.partial.loss_mask(mask, self.partial.take(len(mask)))
        return super().compare(prediction, target, mask)


@prmim.ADAPTERS.register_module(framework='my_mae.MyMAE')
def my_mae(model: MyMAE) -> prmim.Seams:
    """Seams: the decoder, which is the heavy network, and the loss."""
    length = model.decoder.grid[0] * model.decoder.grid[1]
    return prmim.Seams(
        host='decoder',
        guests=('',),
        classes={MyDecoder: PRMyDecoder, MyMAE: PRMyMAE},
        grid=model.decoder.grid,
        width=model.decoder.position.shape[1],
        num_masked=length - model.num_visible,
    )

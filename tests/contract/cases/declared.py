# SPDX-License-Identifier: Apache-2.0
"""Frameworks whose adapter is a declaration: three MAEs of a user, VideoMAE and Hiera."""

from functools import partial

import torch
from contract_case import Absent, Case
from torch import nn
from torch.utils.checkpoint import checkpoint

import prmim_adapters as prmim
from prmim_adapters.testing import make_token_wise

GRID, PATCH, WIDTH, DEPTH, MASKED, THROWN = (4, 6), 2, 12, 2, 18, 12
LENGTH = GRID[0] * GRID[1]


class Block(nn.Module):
    """A transformer block."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Linear(24, WIDTH))

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class UsersMAE(nn.Module):
    """A masked autoencoder as people write it: 4 x 6 patches, a cls token, a loss with a mask."""

    reentrant = None  # kind of activation checkpointing, if any

    def __init__(self):
        super().__init__()
        self.grid_size = GRID
        self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.randn(1, 1 + LENGTH, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.predict = nn.Linear(WIDTH, 3 * PATCH**2)

    def encode(self, images):
        """Visible tokens in shuffled order (B, 1 + V, C), mask and ids_restore (B, L)."""
        x = self.embed(images).flatten(2).transpose(1, 2)
        restore = torch.rand(len(x), LENGTH).argsort(1).argsort(1)
        order = restore.argsort(1)[:, : LENGTH - MASKED]
        x = x.gather(1, order[..., None].expand(-1, -1, WIDTH))
        return torch.cat((self.cls.expand(len(x), -1, -1), x), 1), restore

    def decode(self, x, ids_restore):
        """Predictions (B, L, 12)."""
        tokens = self.mask_token.expand(len(x), MASKED, -1)
        tokens = torch.cat((x[:, 1:], tokens), 1)
        tokens = tokens.gather(1, ids_restore[..., None].expand(-1, -1, WIDTH))
        x = torch.cat((x[:, :1], tokens), 1) + self.positions
        for block in self.blocks:
            x = self.through(block, x)
        return self.predict(self.norm(x))[:, 1:]

    def through(self, block, x):
        """The rows after one block."""
        if self.reentrant is None:
            return block(x)
        return checkpoint(block, x, use_reentrant=self.reentrant)

    def compare(self, images, pred, mask):
        """Mean squared error over the mask."""
        patches = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
        target = patches.permute(0, 2, 3, 1, 4, 5).flatten(1, 2).flatten(2)
        return ((pred - target) ** 2).mean(-1).mul(mask).sum() / mask.sum()

    def forward(self, images):
        x, restore = self.encode(images)
        mask = (restore >= LENGTH - MASKED).float()
        return self.compare(images, self.decode(x, restore), mask)


class OneMethodMAE(UsersMAE):
    """The mask is made by a method inside of the one that decodes, as MONAI has it; a Sequential."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(*self.blocks)

    def masking(self, images):
        """Mask (B, L), 1 = visible, and the order."""
        restore = torch.rand(len(images), LENGTH).argsort(1).argsort(1)
        return 'unused', (restore < LENGTH - MASKED).float()

    def forward(self, images):
        x = self.embed(images).flatten(2).transpose(1, 2)
        _, visible = self.masking(images)
        x = torch.where(visible.bool()[..., None], x, self.mask_token)
        x = torch.cat((self.cls.expand(len(x), -1, -1), x), 1) + self.positions
        pred = self.predict(self.norm(self.blocks(x)))[:, 1:]
        return self.compare(images, pred, 1 - visible)


class Encoder(nn.Module):
    """Chooses the visible tokens itself."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x):
        """Tokens (B, L, C) to visible ones (B, V, C), row-major, and the mask (B, L)."""
        mask = torch.rand(x.shape[:2]).argsort(1) < MASKED
        visible = mask.byte().argsort(dim=1, stable=True)[:, : LENGTH - MASKED]
        return self.norm(x.gather(1, visible[..., None].expand(-1, -1, WIDTH))), mask


class EncoderMasksMAE(UsersMAE):
    """Visible tokens first, a mask that the encoder made, no method for the decoder (AdaMAE)."""

    def __init__(self):
        super().__init__()
        del self.cls
        self.encoder = Encoder()

    def forward(self, images):
        visible, mask = self.encoder(self.embed(images).flatten(2).transpose(1, 2))
        order = mask.byte().argsort(dim=1, stable=True)
        x = torch.cat((visible, self.mask_token.expand(len(visible), MASKED, -1)), 1)
        x = x + self.positions[0, 1:][order]
        for block in self.blocks:
            x = block(x)
        pred = self.predict(self.norm(x))
        pred = pred.gather(1, order.argsort(1)[..., None].expand_as(pred))
        return self.compare(images, pred, mask.float())


def grid(model):
    """The user's own."""
    return model.grid_size


for cls, declaration in (
    (
        UsersMAE,
        dict(method='decode', arguments=('x', 'ids_restore'), mask=prmim.masks.Restore()),
    ),
    (
        OneMethodMAE,
        dict(arguments=('images',), mask=prmim.masks.Result('masking', 1, masked=False)),
    ),
    (
        EncoderMasksMAE,
        dict(
            arguments=('images',),
            mask=prmim.masks.Result('forward', 1, module='encoder'),
            order='visible_first',
            prefix=0,
        ),
    ),
):
    prmim.declare(
        f'{cls.__module__}.{cls.__name__}',
        blocks='blocks',
        grid=grid,
        loss=('compare', 'mask'),
        num_masked=lambda model: MASKED,
        **dict(prefix=1) | declaration,
    )


def run_blocks(blocks, model, tokens):
    """Tokens (L, C) through the blocks."""
    x = tokens[None]
    for block in blocks(model).children():  # not by the list's iterator, which a pass follows
        x = block(x)
        x = x[0] if isinstance(x, tuple) else x
    return x[0]


def saving(width, hidden, depth, before, after):
    """Blocks on fewer tokens."""
    linear = (before - after) * (4 * width**2 + 2 * width * hidden)
    return depth * (linear + 2 * (before**2 - after**2) * width)


def alone(blocks, outputs):
    """Makes the decoder's attention add nothing."""

    def change(model):
        with torch.no_grad():
            for block in blocks(model):
                for parameter in outputs(block).parameters():
                    parameter.zero_()

    return change


def users_case(name, cls, prefix=1, **changes):
    blocks = lambda model: model.blocks  # noqa: E731
    return Case(
        name=name,
        build=cls,
        batch=lambda: (torch.randn(3, 3, GRID[0] * PATCH, GRID[1] * PATCH),),
        ratio=THROWN / LENGTH,
        invalid_ratio=MASKED / LENGTH,
        heavy=lambda model: model.blocks[0],
        features=partial(run_blocks, blocks),
        token_wise=alone(blocks, lambda block: block.attention.out_proj),
        saving=saving(WIDTH, 24, DEPTH, prefix + LENGTH, prefix + LENGTH - THROWN),
        **changes,
    )


def videomae():
    config = transformers.VideoMAEConfig(
        image_size=32,
        patch_size=8,
        num_frames=4,
        tubelet_size=2,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
        norm_pix_loss=False,
    )
    return transformers.VideoMAEForPreTraining(config).train()


def videos():
    """Clips with time folded into rows (B, 2 frames * 3, 2 tubelets * 32, 32), masks of 24 of 32."""
    mask = torch.rand(3, 32).argsort(1) < 24
    return torch.randn(3, 6, 64, 32), mask


def hiera():
    config = transformers.HieraConfig(
        image_size=[64, 64],
        embed_dim=12,
        num_heads=[1, 1, 1],
        depths=[1, 1, 1],
        patch_kernel=[7, 7],
        patch_stride=[4, 4],
        patch_padding=[3, 3],
        masked_unit_size=[4, 4],
        query_stride=[2, 2],
        num_query_pool=1,
        embed_dim_multiplier=2.0,
        decoder_hidden_size=16,
        decoder_depth=2,
        decoder_num_heads=2,
        mask_ratio=0.75,
        drop_path_rate=0.0,
    )
    return transformers.HieraForPreTraining(config).train()


def hiera_token_wise(model):
    """The patch embedding's 7 x 7 kernel begins 3 pixels before its own 4 x 4 patch."""
    weight = model.hiera.embeddings.patch_embeddings.projection.weight
    with torch.no_grad():
        weight[..., :3, :] = 0
        weight[..., :3] = 0
    make_token_wise(model)


def video_loss(model, batch):
    clips = batch[0].unflatten(1, (2, 3)).unflatten(3, (2, 32)).permute(0, 3, 1, 2, 4, 5)
    return model(clips.flatten(1, 2), batch[1]).loss


def hiera_loss(model, batch):
    """Masks of units are drawn from noise."""
    return model(*batch).loss


try:
    import transformers
except ImportError:
    HUGGINGFACE = [
        Absent(name, "needs transformers: pip install 'prmim-adapters[huggingface]'")
        for name in ('declared-videomae', 'declared-hiera')
    ]
else:
    video_blocks = lambda model: model.decoder.decoder_layers  # noqa: E731
    all_video_blocks = lambda model: [*video_blocks(model), *model.videomae.encoder.layer]  # noqa: E731
    hiera_blocks = lambda model: model.decoder.decoder_block.layers  # noqa: E731
    HUGGINGFACE = [
        Case(
            name='declared-videomae',
            build=videomae,
            batch=videos,
            losses=video_loss,
            ratio=16 / 32,
            invalid_ratio=24 / 32,
            heavy=lambda model: model.decoder.decoder_layers[0],
            features=partial(run_blocks, video_blocks),
            token_wise=alone(all_video_blocks, lambda block: block.attention.output),
            weighted=False,
            compiles_whole=False,  # transformers chooses rows by a mask of bool
            saving=saving(32, 64, 2, 32, 16),
        ),
        Case(
            name='declared-hiera',
            build=hiera,
            batch=lambda: (torch.randn(2, 3, 64, 64), torch.rand(2, 16)),
            losses=hiera_loss,
            ratio=32 / 64,
            invalid_ratio=48 / 64,
            heavy=lambda model: model.decoder.decoder_block.layers[0],
            features=partial(run_blocks, hiera_blocks),
            token_wise=hiera_token_wise,
            weighted=False,
            compiles_whole=False,  # transformers chooses rows by a mask of bool
            saving=saving(16, 64, 2, 64, 32),
        ),
    ]

CASES = [
    users_case('declared', UsersMAE, checkpointing=(('reentrant', False),)),
    users_case('declared-result', OneMethodMAE),
    users_case('declared-encoder', EncoderMasksMAE, prefix=0),
    *HUGGINGFACE,
]

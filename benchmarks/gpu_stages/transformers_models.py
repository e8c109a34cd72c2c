# SPDX-License-Identifier: Apache-2.0
"""Models of transformers as ``module:function``: VideoMAE-B and Hiera-B, and small ones."""

from __future__ import annotations

import torch
import transformers
from torch import Tensor

Made = tuple[transformers.PreTrainedModel, tuple[Tensor, ...]]


def videomae(batch_size: int = 2, **sizes: int) -> Made:
    """The library's default config: 16 frames at 224, 1,408 of 1,568 tokens masked, in tubes."""
    config = transformers.VideoMAEConfig(**sizes)
    side = config.image_size // config.patch_size
    tubes = torch.rand(batch_size, side**2).argsort(1) < int(0.9 * side**2)
    mask = tubes.repeat(1, config.num_frames // config.tubelet_size)
    clips = torch.randn(batch_size, config.num_frames, 3, config.image_size, config.image_size)
    return transformers.VideoMAEForPreTraining(config), (clips, mask)


def hiera(batch_size: int = 2, **sizes: int | list[int]) -> Made:
    """As its authors pre-train on images at 224: mask ratio 0.6, a decoder of eight blocks."""
    options = dict(
        depths=[2, 3, 16, 3],
        num_query_pool=2,
        decoder_hidden_size=512,
        decoder_depth=8,
        decoder_num_heads=16,
        mask_ratio=0.6,
    )
    config = transformers.HieraConfig(**options | sizes)
    model = transformers.HieraForPreTraining(config)
    return model, (torch.randn(batch_size, 3, 224, 224),)


def small_videomae(batch_size: int = 2) -> Made:
    """For a rehearsal on the CPU."""
    return videomae(
        batch_size,
        image_size=64,
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=96,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_hidden_size=32,
        decoder_intermediate_size=64,
    )


def small_hiera(batch_size: int = 2) -> Made:
    """For a rehearsal on the CPU."""
    decoder = dict(decoder_hidden_size=32, decoder_depth=1, decoder_num_heads=2)
    return hiera(batch_size, embed_dim=16, depths=[1, 1, 1, 1], **decoder)

# SPDX-License-Identifier: Apache-2.0
"""A small MAE, also of classes of a user's own, and its loss under a seed."""

import small_models
import torch
from mmpretrain.models import MAE, MAEPretrainDecoder, MAEPretrainHead
from mmpretrain.registry import MODELS

from prmim_adapters.testing import seed_everything


def mae(model=MAE, decoder=MAEPretrainDecoder, head=MAEPretrainHead, width=16):
    torch.manual_seed(0)
    made = model.__new__(model)
    built = MODELS.build(small_models.mae(neck=dict(decoder_embed_dim=width)))
    made.__dict__ = built.__dict__
    made.neck.__class__, made.head.__class__ = decoder, head
    return made


def loss_of(model, seed=1):
    seed_everything(model, seed)
    return model(torch.ones(2, 3, 32, 32).cumsum(2), mode='loss')['loss']

# SPDX-License-Identifier: Apache-2.0
"""lightly's MAE decoders, used as in lightly's examples."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import prmim_adapters as prmim
from prmim_adapters.adapters import partial_of
from prmim_adapters.testing import recorded_partitions

modules = pytest.importorskip(
    'lightly.models.modules', reason="needs lightly: pip install 'prmim-adapters[lightly]'"
)
pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning')


class MAE(nn.Module):
    """A masked autoencoder of a user: 64 patches, 48 of them masked, cls token first."""

    def __init__(self, decoder: nn.Module, registers: int = 0) -> None:
        super().__init__()
        from timm.models.vision_transformer import VisionTransformer

        vit = VisionTransformer(
            img_size=32, patch_size=4, embed_dim=24, depth=1, num_heads=2, reg_tokens=registers
        )
        self.backbone = modules.MaskedVisionTransformerTIMM(vit=vit)
        self.decoder = decoder
        self.embed = nn.Linear(24, 32)
        self.predict = nn.Linear(32, 48)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss, and the masked positions (B, 48) among the patches."""
        from lightly.models import utils

        prefix = self.backbone.vit.num_prefix_tokens
        order = torch.rand(len(images), 64).argsort(1) + prefix
        first = torch.arange(prefix).expand(len(images), -1)
        keep, mask = torch.cat((first, order[:, :16]), 1), order[:, 16:]
        encoded = self.embed(self.backbone.encode(images=images, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, (len(images), 64 + prefix))
        tokens = utils.set_at_index(tokens, keep, encoded.type_as(tokens))
        if hasattr(self.decoder, 'decode') and hasattr(self.decoder, 'decoder_embed'):
            decoded = self.decoder.decode(tokens)
        else:
            decoded = self.decoder(tokens, idx_mask=mask)
        predicted = self.predict(utils.get_at_index(decoded, mask))
        target = utils.get_at_index(utils.patchify(images, 4), mask - prefix)
        return nn.functional.mse_loss(predicted, target), mask - prefix


def mae_decoder(prefix: int = 1):
    return modules.MAEDecoderTIMM(
        64,
        4,
        embed_dim=24,
        decoder_embed_dim=32,
        decoder_depth=2,
        decoder_num_heads=2,
        num_prefix_tokens=prefix,
    )


def pixio_decoder(prefix: int = 1):
    return modules.PixioDecoderTIMM(
        64,
        4,
        embed_dim=24,
        decoder_embed_dim=32,
        decoder_depth=2,
        decoder_num_heads=2,
        num_prefix_tokens=prefix,
    )


def plain_decoder(prefix: int = 1):
    return modules.MaskedVisionTransformerDecoderTIMM(64, 32, 2, 2, num_prefix_tokens=prefix)


@pytest.fixture(params=[mae_decoder, pixio_decoder, plain_decoder], ids=lambda f: f.__name__)
def build(request):
    def make(registers: int = 0) -> MAE:
        torch.manual_seed(0)
        return MAE(request.param(1 + registers), registers)

    return make


def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def run(model: MAE) -> torch.Tensor:
    torch.manual_seed(1)
    return model(images())[0]


def attached(model: MAE, **options) -> MAE:
    torch.manual_seed(2)
    prmim.attach(model.decoder, **{'throw_ratio': 0.5, **options})
    return model


def blocks_of(decoder):
    return decoder.decoder_blocks if hasattr(decoder, 'decoder_blocks') else decoder.blocks


@pytest.mark.parametrize('registers', [0, 3])
def test_ratio_zero_and_own_path_are_lightly(build, registers):
    expected = run(build(registers))
    assert torch.equal(run(attached(build(registers), throw_ratio=0)), expected)
    model = attached(build(registers))
    partial_of(model.decoder).throw_ratio = 0.0
    assert_close(run(model), expected, rtol=1e-6, atol=1e-7)


def test_blocks_see_present_tokens_and_masks_are_found(build):
    model, seen = attached(build()), []
    blocks_of(model.decoder)[0].register_forward_pre_hook(lambda m, a: seen.append(a[0].shape[1]))
    torch.manual_seed(1)
    with recorded_partitions(model.decoder) as partitions:
        _, masked = model(images())
    assert seen == [1 + 16 + 16]
    assert torch.equal(partitions[0][0], torch.zeros(3, 64).scatter(1, masked, 1).bool())


def test_every_parameter_is_used_and_training_goes_on(build):
    model = attached(build())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = run(model)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    for parameter in model.decoder.partial.parameters():
        assert parameter.grad.abs().sum() > 0


def test_names_detach_copies(build):
    model, upstream = attached(build()), build()
    added = set(model.state_dict()) - set(upstream.state_dict())
    assert added
    assert all(name.startswith('decoder.partial.') for name in added)
    expected = run(model)
    assert torch.equal(run(copy.deepcopy(model)), expected)
    decoder = pickle.loads(pickle.dumps(model.decoder))
    assert type(decoder) is type(model.decoder)
    prmim.detach(model.decoder)
    assert type(model.decoder) is type(upstream.decoder)
    assert torch.equal(run(model), run(upstream))


def test_without_masked_tokens_it_is_lightly(build):
    decoder, tokens = build().decoder, torch.randn(2, 65, 32)

    def whole(decoder):
        return decoder.decode(tokens) if hasattr(decoder, 'decoder_embed') else decoder(tokens)

    expected = whole(decoder)
    assert torch.equal(whole(prmim.attach(decoder)), expected)


def test_errors(build):
    for options in (dict(aggregator=None), dict(thrown_weight=0.5)):
        with pytest.raises(ValueError, match='aggregator=None and thrown_weight'):
            run(attached(build(), **options))
    with pytest.raises(ValueError, match='cannot throw 51 tokens'):
        run(attached(build(), throw_ratio=0.8))
    decoder = modules.MaskedVisionTransformerDecoderTIMM(60, 32, 1, 2, initialize_weights=False)
    with pytest.raises(ValueError, match='num_patches=60, but the grid is 8x8'):
        prmim.attach(decoder)
    with pytest.raises(TypeError, match='no adapter'):
        prmim.attach(build())

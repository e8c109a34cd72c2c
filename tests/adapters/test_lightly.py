# SPDX-License-Identifier: Apache-2.0
"""What the contract matrix does not ask of the adapter of lightly's decoders."""

import pytest
import torch
from contract_case import images

import prmim_adapters as prmim

modules = pytest.importorskip(
    'lightly.models.modules', reason="needs lightly: pip install 'prmim-adapters[lightly]'"
)
from cases.lightly_mae import DECODERS, build  # noqa: E402

pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning')


@pytest.fixture(params=DECODERS)
def model(request):
    torch.manual_seed(0)
    return build(request.param)


def test_training_goes_on(model):
    prmim.attach(model.decoder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        torch.manual_seed(1)
        loss = model(images())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_without_masked_tokens_it_is_lightly(model):
    decoder, tokens = model.decoder, torch.randn(2, 65, 32)

    def whole(decoder):
        return decoder.decode(tokens) if hasattr(decoder, 'decoder_embed') else decoder(tokens)

    expected = whole(decoder)
    assert torch.equal(whole(prmim.attach(decoder)), expected)


def test_errors(model):
    decoder = modules.MaskedVisionTransformerDecoderTIMM(60, 32, 1, 2, initialize_weights=False)
    with pytest.raises(ValueError, match='num_patches=60, but the grid is 8x8'):
        prmim.attach(decoder)
    with pytest.raises(TypeError, match='no adapter'):
        prmim.attach(model)

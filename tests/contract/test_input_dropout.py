# SPDX-License-Identifier: Apache-2.0
"""Dropout of the encoder's input, where thrown tokens come back before its last block."""

import pytest
from contract_case import declared
from originals import ORIGINALS

from prmim_adapters.adapters import attachment_of, partial_of

CASES = [case for case in declared() + ORIGINALS if getattr(case, 'entering_last', None)]


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.name, indirect=True)
def test_every_token_goes_through_it_once(case):
    model = case.attached(aggregator='last_blocks')
    target = case.target(model)
    encoder = target.get_submodule(attachment_of(target).seams.host)
    dropout = getattr(encoder, 'drop_after_pos', None) or encoder.pos_drop
    seen = []
    dropout.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    case.loss(model)
    partial = partial_of(target)
    thrown, (height, width) = partial.num_thrown, partial.grid
    assert seen == [partial.num_prefix + height * width - thrown, thrown]

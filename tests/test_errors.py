# SPDX-License-Identifier: Apache-2.0
"""What users read when something goes wrong."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
import torch
from mmpretrain.models import MAEPretrainHead

from prmim_adapters.adapters import ADAPTERS
from prmim_adapters.errors import described, shown_without_traceback


def caught(function):
    try:
        function()
    except Exception as error:
        return described(error)
    raise AssertionError('no error')


def test_our_own_errors_are_their_message():
    assert caught(lambda: ADAPTERS.get('mine')).startswith("unknown framework adapter 'mine'. Reg")


def test_an_assertion_of_a_framework_is_shown_with_type_place_and_line():
    head = MAEPretrainHead(loss=dict(type='PixelReconstructionLoss', criterion='L2'), patch_size=7)
    text = caught(lambda: head.unpatchify(torch.zeros(1, 5, 147)))
    assert text.startswith('AssertionError at mmpretrain/models/heads/mae_head.py, line ')
    assert text.endswith(': assert h * w == x.shape[1]')


def test_an_error_of_python_is_shown_with_its_place():
    assert 'IndexError at ' in caught(lambda: [][1])
    assert caught(lambda: {}['key']).endswith(': key')


def test_a_missing_file_is_named_by_the_system():
    text = caught(Path('nowhere.py').read_text)
    assert text == "[Errno 2] No such file or directory: 'nowhere.py'"


def test_commands_end_with_the_description():
    message = r'ZeroDivisionError at .*: division by zero'
    with pytest.raises(click.ClickException, match=message), shown_without_traceback():
        1 / 0  # noqa: B018
    with pytest.raises(click.UsageError, match='as it is'), shown_without_traceback():
        raise click.UsageError('as it is')

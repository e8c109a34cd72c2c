# SPDX-License-Identifier: Apache-2.0
"""Values of a spec come back from the text of a config as they were, and nothing of them runs."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config

from prmim_adapters.sweep.literals import NoLiteralError, assignments, literal

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, width=64) | st.text()
)
PLAIN = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(PLAIN)
def test_text_reads_back_or_is_refused(value: Any) -> None:
    if 'inf' in repr(floats_of(value)):
        with pytest.raises(NoLiteralError, match=r'^x.*inf .float. cannot be written'):
            literal(value, 'x')
        return
    text = literal(value, 'x')
    assert ast.literal_eval(text) == value
    assert '{{' not in text


def floats_of(value: Any) -> list[float]:
    if isinstance(value, (list, tuple)):
        return [number for item in value for number in floats_of(item)]
    if isinstance(value, dict):
        return floats_of(list(value.values()))
    return [value] if isinstance(value, float) else []


@pytest.mark.parametrize(
    'value',
    [
        "'}}, exec('x')",
        '{{_base_.model}}',
        '{{ fileDirname }}',
        "{{'$HOME:x'}}",
        '"""',
        '\\',
        'a\'b"c',
        '\n__import__("os")',
        '\ud800',
        '{{{{',
        '{\\x7b',
        ['{{', '}}'],
        {'{{$X:': '}}'},
    ],
)
def test_mmengine_reads_it_back_too(tmp_path: Path, value: Any) -> None:
    """It replaces ``{{ ... }}`` in a config's text before it executes it."""
    text = '\n'.join(assignments({'a': value, 'b': [value]}, 'options'))
    (tmp_path / 'config.py').write_text(text)
    config = Config.fromfile(tmp_path / 'config.py')
    assert (config.a, config.b) == (value, [value])

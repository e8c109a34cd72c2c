# SPDX-License-Identifier: Apache-2.0
"""The errors of docs/troubleshooting.md are those that the package raises."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Of other libraries.
FOREIGN = (
    'PRMIM is not in the …::model registry',
    "default_collate() got an unexpected keyword argument '_scope_'",
    "No such file or directory: 'data/imagenet/train'",
    "No module named 'pkg_resources'",
    'AmpOptimizerWrapper is only available …',
    'Failed to import custom modules from …',
    'Weights only load failed',
    'loaded state dict has a different number of parameter groups',
    'UndercountError',
    'get_flops',
)


def messages() -> set[str]:
    """All texts in the package's source, with … for what is put into them."""
    found = set()
    for path in (ROOT / 'prmim_adapters').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else '…' for p in node.values]
                found.add(''.join(map(str, parts)))
    return found


def test_every_error_is_raised_somewhere() -> None:
    page = (ROOT / 'docs' / 'troubleshooting.md').read_text()
    titles = [t for t in re.findall(r'^### .*?`([^`]+)`', page, re.M) if t not in FOREIGN]
    assert len(titles) > 15
    texts = messages()
    for title in titles:
        parts = [re.escape(part.strip()) for part in title.split('…') if part.strip()]
        pattern = re.compile('.*'.join(parts), re.S)
        assert any(pattern.search(text) for text in texts), f'no error says {title!r}'

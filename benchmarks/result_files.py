# SPDX-License-Identifier: Apache-2.0
"""Reading ``benchmarks/results`` and writing markdown, for the modules that make tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / 'results'
MISSING = 'not measured'


def load(name: str) -> Any:
    """A result, or None where there is none.

    Of a stage of ``benchmarks/gpu.py`` (``gpu/<stage>``), only what it measured to its end on a GPU.
    """
    path = RESULTS / f'{name}.json'
    data = json.loads(path.read_text()) if path.exists() else None
    if data is None or 'stage' not in data:
        return data
    if data['status'] != 'done' or data['dry']:
        return None
    return {'environment': data['environment'], **data['result']}


def table(head: list[str], rows: list[list[str]]) -> str:
    """A markdown table."""
    lines = [head, ['---'] * len(head), *rows]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)

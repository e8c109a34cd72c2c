# SPDX-License-Identifier: Apache-2.0
"""Sweep specs from anywhere: each is refused in a line, and nothing of the user's is touched."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusals import refused

from prmim_adapters.commands.sweep import sweep

pytestmark = pytest.mark.usefixtures('little_memory')


SPECS: dict[str, str] = {
    'parent as a name': 'frameworks: {"..": {config: a.py}}',
    'hidden name': 'frameworks: {".lock": {config: a.py}}',
    'path as an arm': 'arms: {../../mine: {}}',
    'two names for one folder': 'arms: {1: {}, "1": {}}',
    'report as a name': 'frameworks: {report.md: {config: a.py}}',
    'code as a key': 'options: {"x=1; import os; os.mkdir(\'MARK\')#": 1}',
    'code as an argument': "arms: {a: {\"x=__import__('os').mkdir('MARK'), sampler\": 1}}",
    'code as a tag': 'options: {a: !!python/object/apply:os.mkdir [MARK]}',
    'code as a name': 'options: {a: !!python/name:os.mkdir ""}',
    'base of a config': 'options: {_base_: MARK.py}',
    'infinite': 'options: {a: .inf}',
    'date': 'options: {a: 2026-01-01}',
    'itself': '_base_: spec.yaml',
    'recursive': 'options: &a {a: *a}',
    'aliases': '\n'.join(
        ['a0: &a0 [x]', *(f'a{n}: &a{n} [{", ".join([f"*a{n - 1}"] * 10)}]' for n in range(1, 12))]
    ),
    'merges': '\n'.join(
        [
            'a0: &a0 {x: 1}',
            *(f'a{n}: &a{n} {{<<: [{", ".join([f"*a{n - 1}"] * 10)}]}}' for n in range(1, 12)),
        ]
    ),
    'large': 'options: {a: ' + 'x' * 2**21 + '}',
    'deep': 'options: ' + '[' * 2_000,
}
REST = {
    'frameworks': '{mae: {config: a.py}}',
    'arms': '{}',
    'ratios': '[0.5]',
    'seeds': '[0]',
    'evaluation': '{train: {}, test: {}, num_classes: 2}',
}


@pytest.mark.parametrize('name', SPECS)
def test_specs(name: str, tmp_path: Path) -> None:
    """Whatever lies beside the folder of the results is there afterwards."""
    mark, work = tmp_path / 'made', tmp_path / 'work'
    for kept in ('base.py', 'framework/seed0/result.json', 'mine-0.50/seed0/precious.txt'):
        (work / kept).parent.mkdir(parents=True, exist_ok=True)
        (work / kept).write_text('mine')
    before = {p: p.read_text() for p in work.rglob('*') if p.is_file()}
    text = SPECS[name].replace('MARK', str(mark))
    rest = [f'{key}: {value}' for key, value in REST.items() if not text.startswith(key)]
    spec = tmp_path / 'spec.yaml'
    spec.write_text('\n'.join([text, *rest]))
    output = refused(sweep, spec, '--out', work / 'out')
    assert output.startswith('Error: ')
    assert len(output) < 2000
    assert not mark.exists()
    assert {p: p.read_text() for p in work.rglob('*') if p.is_file()} == before

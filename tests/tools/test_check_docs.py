# SPDX-License-Identifier: Apache-2.0
"""The checker of the documentation finds each kind of mistake, and passes what is right."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location('check_docs', ROOT / 'tools' / 'check_docs.py')
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'Makefile').write_text('pretrain: x\n\techo\n')
    (tmp_path / 'code.py').write_text('a = 1\nb = 2\n')
    (tmp_path / 'cost.json').write_text(json.dumps({'rows': [{'saving': 0.2785, 'macs': 9.795e9}]}))
    (tmp_path / 'table.md').write_text('| a |\n')
    return module


def fenced(language: str, code: str, note: str = '') -> str:
    return f'{note}\n```{language}\n{code}\n```\n'


RIGHT = {
    'runs': fenced('python', 'x = 1') + fenced('python', 'assert x == 1'),
    'file': fenced('python', 'b = 2', '<!-- file: code.py -->'),
    'not run': fenced('python', 'no such', '<!-- not run: example -->'),
    'make': fenced('bash', 'make pretrain PYTHON=python'),
    'prmim': fenced('bash', 'prmim show CONFIG CKPT a.png --out b.png'),
    'foreign': fenced('bash', 'X=1 mim train mmpretrain some.py --resume && ls'),
    'link': '[a](code.py) [b](https://example.org) [c](#part)',
    'figure': '**27.9 %**<!-- cost.json#rows.0.saving .1% -->, 9.795 GMACs'
    '<!-- cost.json#rows.0.macs G.3f -->',
    'include': '<!-- begin: table.md -->\n| a |\n<!-- end -->',
}
WRONG = {
    'fails': (fenced('python', 'assert 1 == 2'), 'the block fails'),
    'file': (fenced('python', 'b = 3', '<!-- file: code.py -->'), 'not what code.py says'),
    'no file': (fenced('python', 'b = 3', '<!-- file: gone.py -->'), 'does not exist'),
    'make': (fenced('bash', 'make train'), "no target 'train'"),
    'prmim': (fenced('bash', 'prmim fly'), "no command 'fly'"),
    'option': (fenced('bash', 'prmim show --fast'), 'no option --fast'),
    'config': (
        fenced('bash', 'mim train mmpretrain configs/mmpretrain/gone.py'),
        'gone.py does not exist',
    ),
    'link': ('![a](gone.png)', 'link to gone.png'),
    'figure': ('28.0 %<!-- cost.json#rows.0.saving .1% -->', 'saving = 27.9'),
    'key': ('28.0 %<!-- cost.json#rows.1.saving .1% -->', 'has no rows.1.saving'),
    'include': ('<!-- begin: table.md -->\n| b |\n<!-- end -->', 'table.md differs'),
}


@pytest.mark.parametrize('name', RIGHT)
def test_right(checker: ModuleType, name: str) -> None:
    Path('doc.md').write_text(RIGHT[name])
    assert list(checker.check(Path('doc.md'))) == []


@pytest.mark.parametrize('name', WRONG)
def test_wrong(checker: ModuleType, name: str) -> None:
    text, message = WRONG[name]
    Path('doc.md').write_text(text)
    (mistake,) = checker.check(Path('doc.md'))
    assert message in mistake

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
    monkeypatch.syspath_prepend(ROOT / 'tools')
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'Makefile').write_text('pretrain: x\n\techo\n')
    (tmp_path / 'code.py').write_text('a = 1\nb = 2\n')
    (tmp_path / 'cost.json').write_text(json.dumps({'rows': [{'saving': 0.2785, 'macs': 9.795e9}]}))
    (tmp_path / 'table.md').write_text('| a |\n')
    (tmp_path / 'tests').mkdir()
    (tmp_path / 'tests' / 'test_a.py').touch()
    (tmp_path / 'setup.cfg').write_text('[options.extras_require]\nsweep =\n    scipy\n')
    return module


def fenced(language: str, code: str, note: str = '') -> str:
    return f'{note}\n```{language}\n{code}\n```\n'


def command(code: str, note: str = '<!-- not run: example -->') -> str:
    return fenced('bash', code, note)


RIGHT = {
    'runs': fenced('python', 'x = 1') + fenced('python', 'assert x == 1'),
    'file': fenced('python', 'b = 2', '<!-- file: code.py -->'),
    'not run': fenced('python', 'no such', '<!-- not run: example -->'),
    'command runs': command('prmim configs --copy mae_prmim_vitb --out a', '<!-- run -->'),
    'run by a test': command('torchrun x.py', '<!-- run: name -->'),
    'made before': command('prmim cost my_config.py --help', '<!-- with: my_config -->'),
    'named': fenced('python', 'no such', '<!-- not run: tests/test_a.py does -->'),
    'make': command('make pretrain PYTHON=python'),
    'prmim': command('prmim show CONFIG CKPT a.png --out b.png'),
    'foreign': command('X=1 mim train mmpretrain some.py --resume && ls'),
    'link': '# A part\n[a](code.py) [b](https://example.org) [c](#a-part)',
    'yaml': fenced('yaml', 'a: {b: 1}'),
    'extra': command("pip install '.[sweep]'"),
    'help': '<!-- begin: help list -->\n{list}<!-- end -->',
    'figure': '**27.9 %**<!-- cost.json#rows.0.saving .1% -->, 9.795 GMACs'
    '<!-- cost.json#rows.0.macs G.3f -->',
    'include': '<!-- begin: table.md -->\n| a |\n<!-- end -->',
}
WRONG = {
    'fails': (fenced('python', 'assert 1 == 2'), 'the block fails'),
    'file': (fenced('python', 'b = 3', '<!-- file: code.py -->'), 'not what code.py says'),
    'no file': (fenced('python', 'b = 3', '<!-- file: gone.py -->'), 'does not exist'),
    'unmarked': (command('ls', ''), 'say whether it is run'),
    'command fails': (
        command('prmim configs --copy gone', '<!-- run -->'),
        'prmim configs --copy gone fails:\n',
    ),
    'not a command of ours': (command('ls', '<!-- run -->'), 'only prmim commands are run, not ls'),
    'named': (
        fenced('python', 'no such', '<!-- not run: tests/test_b.py does -->'),
        'tests/test_b.py does not exist',
    ),
    'make': (command('make train'), "no target 'train'"),
    'prmim': (command('prmim fly'), "no command 'fly'"),
    'option': (command('prmim show --fast'), 'no option --fast'),
    'config': (
        command('mim train mmpretrain configs/mmpretrain/gone.py'),
        'gone.py does not exist',
    ),
    'link': ('![a](gone.png)', 'link to gone.png'),
    'heading': ('# A part\n[a](#another-part)', '#another-part: no such heading'),
    'language': (fenced('', 'what is it'), 'no language'),
    'yaml': (fenced('yaml', 'a: {b: 1'), 'no YAML'),
    'extra': (command("pip install '.[fast]'"), "no extra 'fast'"),
    'help': ('<!-- begin: help list -->\nold\n<!-- end -->', 'help list differs'),
    'made': ('<!-- begin: wish list -->\n<!-- end -->', 'neither a file nor'),
    'figure': ('28.0 %<!-- cost.json#rows.0.saving .1% -->', 'saving = 27.9'),
    'key': ('28.0 %<!-- cost.json#rows.1.saving .1% -->', 'has no rows.1.saving'),
    'include': ('<!-- begin: table.md -->\n| b |\n<!-- end -->', 'table.md differs'),
}


@pytest.mark.parametrize('name', RIGHT)
def test_right(checker: ModuleType, name: str) -> None:
    text = RIGHT[name].replace('{list}', checker.generated('help list'))
    Path('doc.md').write_text(text)
    assert list(checker.check(Path('doc.md'))) == []


@pytest.mark.parametrize('name', WRONG)
def test_wrong(checker: ModuleType, name: str) -> None:
    text, message = WRONG[name]
    Path('doc.md').write_text(text)
    (mistake,) = checker.check(Path('doc.md'))
    assert message in mistake


REGISTRIES = ('SAMPLERS', 'AGGREGATORS', 'HOOKS', 'TRANSFORMS', 'DATASETS')


@pytest.mark.parametrize('registry', REGISTRIES)
def test_the_reference_has_all_that_is_registered(registry: str) -> None:
    """Their options are compared by ``make check``; here, that none of them is left out."""
    import mmpretrain.registry

    import prmim_adapters as prmim
    import prmim_adapters.accounting.cost_hook
    import prmim_adapters.openmmlab
    import prmim_adapters.sweep.evaluation
    import prmim_adapters.sweep.pairing

    text = (ROOT / 'docs' / 'reference.md').read_text()
    if registry in ('SAMPLERS', 'AGGREGATORS'):
        found = {name: getattr(prmim, registry).get(name) for name in getattr(prmim, registry)}
    else:
        found = getattr(mmpretrain.registry, registry).module_dict
    ours = {name: getattr(made, 'func', made).__module__ for name, made in found.items()}
    names = [name for name, module in ours.items() if module.startswith('prmim_adapters.')]
    assert names
    markers = [f'<!-- begin: options {registry} {name} -->' for name in names]
    missing = [marker for marker in markers if marker not in text]
    assert missing == [], 'put these into docs/reference.md, then tools/check_docs.py --write'


def test_an_option_without_a_description_is_found(checker: ModuleType) -> None:
    import prmim_adapters as prmim

    @prmim.AGGREGATORS.register_module('described')
    class Described:
        """One.

        Args:
            depth: how deep
                it is.
        """

        def __init__(self, width: int, grid: tuple[int, int], depth: int = 2) -> None: ...

    @prmim.AGGREGATORS.register_module('silent')
    class Silent(Described):
        def __init__(self, width: int, grid: tuple[int, int], depth=2, tall=True) -> None: ...

    try:
        table = checker.generated('options AGGREGATORS described')
        assert table.splitlines()[2:] == ['| `depth`<br>`2` | How deep it is |']
        with pytest.raises(ValueError, match='no line in the docstring for tall'):
            checker.generated('options AGGREGATORS silent')
    finally:
        for name in ('described', 'silent'):
            prmim.AGGREGATORS._entries.pop(name)


def test_every_command_has_its_help_on_the_page() -> None:
    from click import Context

    from prmim_adapters.cli import main

    text = (ROOT / 'docs' / 'commands.md').read_text()
    names = main.list_commands(Context(main))
    assert names and [n for n in names if f'<!-- begin: help {n} -->' not in text] == []

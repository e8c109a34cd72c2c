# SPDX-License-Identifier: Apache-2.0
"""The list of mutations keeps up with the code; running them takes minutes (tools/mutations.py)."""

import ast
from pathlib import Path

import pytest
from contract_case import declared
from originals import ORIGINALS

from prmim_adapters.testing import CHECKS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    import mutation_run
    import mutations

    return mutations, mutation_run


def test_every_text_occurs_once_and_every_test_exists(tools):
    mutations, mutation_run = tools
    mutation_run.check_patterns(mutations.MUTATIONS)
    cases = [case.name for case in declared() + ORIGINALS]
    checks = [check.__name__.removeprefix('check_') for check in CHECKS]
    known = {f'test_adapter[{case}-{check}]' for case in cases for check in checks}
    for mutation in mutations.MUTATIONS:
        for test in mutation.tests:
            path, name = test.split('::')
            tree = ast.parse((ROOT / path).read_text())
            functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert name in (known if '[' in name else functions), (mutation.name, test)


def test_a_text_that_is_gone_is_an_error(tools):
    _, mutation_run = tools
    gone = mutation_run.Mutation('stale', 'core/partition.py', 'no such text', '', ())
    with pytest.raises(SystemExit, match=r"stale: 'no such text' occurs 0 times"):
        mutation_run.check_patterns([gone])


def test_what_survives_is_told_apart(tools, tmp_path):
    """On a package of one file: killed, survived, and a test that does not exist."""
    _, mutation_run = tools
    (tmp_path / 'prmim_adapters').mkdir()
    (tmp_path / 'prmim_adapters' / 'one.py').write_text('ONE = 1\n')
    (tmp_path / 'pytest.ini').write_text('[pytest]\n')
    (tmp_path / 'test_one.py').write_text(
        'from pathlib import Path\n'
        'TEXT = Path("prmim_adapters/one.py").read_text()\n'
        'def test_one():\n    assert "= 1" in TEXT\n'
        'def test_nothing():\n    assert TEXT\n'
    )

    def outcome(test):
        mutation = mutation_run.Mutation('two', 'one.py', '= 1', '= 2', (f'test_one.py::{test}',))
        return mutation_run.outcome(tmp_path, mutation)

    assert outcome('test_one') == 'killed'
    assert outcome('test_nothing') == 'SURVIVED'
    assert outcome('test_gone').startswith('ERROR: pytest exits with 4')
    assert (tmp_path / 'prmim_adapters' / 'one.py').read_text() == 'ONE = 1\n'

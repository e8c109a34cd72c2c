# SPDX-License-Identifier: Apache-2.0
"""Run tests on code that is broken on purpose; :mod:`mutations` has the list."""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Mutation:
    """One change that must not go unnoticed.

    Attributes:
        name: of what is broken.
        path: below ``prmim_adapters``.
        old: text that occurs once.
        new: what it becomes.
        tests: pytest node ids, one of which must fail.
    """

    name: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]


def check_patterns(mutations: list[Mutation]) -> None:
    """Exit where texts do not occur exactly once in their files."""
    lost = []
    for mutation in mutations:
        found = (ROOT / 'prmim_adapters' / mutation.path).read_text().count(mutation.old)
        if found != 1:
            lost.append(
                f'{mutation.name}: {mutation.old!r} occurs {found} times in '
                f'prmim_adapters/{mutation.path}: the code has changed, so must the mutation'
            )
    if lost:
        sys.exit('\n'.join(lost))


def copy_tree(folder: Path) -> None:
    """The working tree as git sees it, without data."""
    files = subprocess.run(
        ['git', 'ls-files', '-co', '--exclude-standard', '-z'],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split('\0')  # fmt: skip
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)


def run_tests(folder: Path, tests: list[str]) -> int:
    """Pytest's exit code, in a fork of this process, which has imported what is slow to import."""

    def child() -> None:
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        with open(folder / 'pytest.log', 'w') as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            import pytest

            os._exit(pytest.main(['-x', '-q', '-p', 'no:cacheprovider', '--tb=short', *tests]))

    process = multiprocessing.get_context('fork').Process(target=child)
    process.start()
    process.join()
    return process.exitcode or 0


def outcome(folder: Path, mutation: Mutation) -> str:
    """'killed', 'SURVIVED', or what went wrong."""
    path = folder / 'prmim_adapters' / mutation.path
    whole = path.read_text()
    path.write_text(whole.replace(mutation.old, mutation.new))
    try:
        code = run_tests(folder, list(mutation.tests))
    finally:
        path.write_text(whole)
    if code > 1:
        return f'ERROR: pytest exits with {code}: {(folder / "pytest.log").read_text()[-2000:]}'
    return ('SURVIVED', 'killed')[code]


def main(mutations: list[Mutation], description: str) -> int:
    """The command line; returns 1 if any mutation survives."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('words', nargs='*', help='run mutations with one of these in their names')
    parser.add_argument('--list', action='store_true', help='print the names and do nothing')
    arguments = parser.parse_args()
    check_patterns(mutations)
    chosen = [
        mutation
        for mutation in mutations
        if not arguments.words or any(w.lower() in mutation.name.lower() for w in arguments.words)
    ]
    if arguments.list:
        print('\n'.join(mutation.name for mutation in chosen))
        return 0
    sys.dont_write_bytecode = True
    for module in ('torch', 'mmpretrain.models', 'transformers', 'fvcore.nn', 'torch._dynamo'):
        importlib.import_module(module)
    bad = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_tree(folder)
        for mutation in chosen:
            upstream = any('[original-' in test for test in mutation.tests)
            if upstream and not os.environ.get('PRMIM_UPSTREAM_DIR'):
                print(f'not run   {mutation.name} (needs PRMIM_UPSTREAM_DIR)', flush=True)
                continue
            result = outcome(folder, mutation)
            print(f'{result:9} {mutation.name}', flush=True)
            if result != 'killed':
                bad.append(mutation)
        tests = sorted({test for mutation in chosen for test in mutation.tests})
        if run_tests(folder, tests):
            print((folder / 'pytest.log').read_text()[-3000:])
            sys.exit('these tests fail without any mutation')
    print(f'{len(chosen) - len(bad)} of {len(chosen)} mutations killed')
    return bool(bad)

# SPDX-License-Identifier: Apache-2.0
"""Set-up files agree with each other and with the README."""

from __future__ import annotations

import configparser
import re
from importlib import metadata
from pathlib import Path

import prmim_adapters

ROOT = Path(__file__).parents[2]


def pins() -> dict[str, str]:
    lines = (ROOT / 'requirements' / 'constraints.txt').read_text().splitlines()
    found = (re.match(r'([\w.-]+)==([^;\s]+)', line) for line in lines)
    return {match[1].lower().replace('_', '-'): match[2] for match in found if match}


def requirements(option: str, section: str = 'options') -> list[str]:
    parser = configparser.ConfigParser()
    parser.read(ROOT / 'setup.cfg')
    lines = parser[section][option].splitlines()
    return [re.split(r'[<>=\[ ]', line)[0].lower() for line in lines if line and line[0] != '#']


def test_every_direct_dependency_is_pinned() -> None:
    names = requirements('install_requires')
    parser = configparser.ConfigParser()
    parser.read(ROOT / 'setup.cfg')
    for extra in set(parser['options.extras_require']) - {'onedl'}:  # in place of what is pinned
        names += requirements(extra, 'options.extras_require')
    assert set(names) - {'prmim-adapters'} <= set(pins())


def test_readme_names_the_pinned_versions() -> None:
    table = (ROOT / 'README.md').read_text().split('## Tested with')[1].split('\n\n')[1]
    rows = re.findall(r'\| ([\w-]+) \| ([\w.]+) \|', table.replace('| |', '|\n|'))
    versions = {name.lower(): version for name, version in rows if name != 'package'}
    python = versions.pop('python')
    assert len(versions) == 9
    assert versions == {name: pins()[name] for name in versions}
    constraints = (ROOT / 'requirements' / 'constraints.txt').read_text()
    markers = set(re.findall(r'python_version == "([\d.]+)"', constraints))
    assert markers == {python}


def test_versions_agree() -> None:
    assert metadata.version('prmim-adapters') == prmim_adapters.__version__
    citation = (ROOT / 'CITATION.cff').read_text()
    assert f'version: {prmim_adapters.__version__}\n' in citation
    assert f'## {prmim_adapters.__version__}' in (ROOT / 'CHANGELOG.md').read_text()


def test_every_folder_with_code_is_a_package() -> None:
    """A folder without __init__.py would be missing from an installed copy."""
    folders = {path.parent for path in (ROOT / 'prmim_adapters').rglob('*.py')}
    assert [str(f.relative_to(ROOT)) for f in folders if not (f / '__init__.py').exists()] == []

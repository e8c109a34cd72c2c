# SPDX-License-Identifier: Apache-2.0
"""A missing extra is named, by the packages of setup.cfg."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from prmim_adapters.extras import EXTRAS, MissingExtraError, require
from prmim_adapters.sweep.slurm_queue import SlurmQueue

SETUP = Path(__file__).parents[1] / 'setup.cfg'


def test_names_are_those_of_setup_cfg() -> None:
    parser = configparser.ConfigParser()
    parser.read(SETUP)
    declared = {
        extra: {re.split(r'[<>=\[ ]', line)[0] for line in lines.splitlines()}
        for extra, lines in parser['options.extras_require'].items()
    }
    for extra, modules in EXTRAS.items():
        assert set(modules.values()) <= declared[extra]


def test_what_is_there_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    require(*EXTRAS)
    monkeypatch.setitem(sys.modules, 'sklearn', None)
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    require('openmmlab')
    message = (
        r"^safetensors, scikit-learn not installed: pip install 'prmim-adapters\[export,sweep\]'$"
    )
    with pytest.raises(MissingExtraError, match=message):
        require('openmmlab', 'export', 'sweep')


def test_beside_an_openmmlab_that_is_there_only_tools_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`[openmmlab]` would write mmcv-lite over a full mmcv."""
    monkeypatch.setitem(sys.modules, 'psutil', None)
    with pytest.raises(MissingExtraError, match=r"^psutil not .*'prmim-adapters\[tools\]'"):
        require('openmmlab')
    monkeypatch.setitem(sys.modules, 'mmengine', None)
    with pytest.raises(MissingExtraError, match=r"^mmengine, psutil not .*\[openmmlab\]'"):
        require('openmmlab')


SAYS = """
import json, sys
for module in ('mmpretrain', 'safetensors', 'tabulate'):
    sys.modules[module] = None
from click.testing import CliRunner
from prmim_adapters.cli import main
for command in json.loads(sys.argv[1]):
    result = CliRunner().invoke(main, command.split())
    print(result.exit_code, result.output.strip().splitlines()[-1])
"""


def test_a_command_says_which(tmp_path: Path) -> None:
    """In a process of its own, where nothing is imported already."""
    (tmp_path / 'file').write_text('')
    commands = {
        'cost x.py': 'openmmlab',
        'bench x.py': 'openmmlab',
        'show x.py file file': 'openmmlab',
        'export file out.safetensors': 'openmmlab,export',
        'sweep file': 'openmmlab,sweep',
    }
    command = [sys.executable, '-c', SAYS, json.dumps(list(commands))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    for (line, extras), said in zip(commands.items(), done.stdout.splitlines(), strict=True):
        assert said.startswith(f'2 Error: prmim {line.split()[0]}: mmpretrain')
        assert said.endswith(f"not installed: pip install 'prmim-adapters[{extras}]'")


def test_slurm_is_an_extra_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, 'submitit', None)
    with pytest.raises(MissingExtraError, match=r"submitit not .*'prmim-adapters\[slurm\]'"):
        SlurmQueue(tmp_path).executor(tmp_path, 1)

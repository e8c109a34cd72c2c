# SPDX-License-Identifier: Apache-2.0
"""The shipped configs: listed, found by their names, copied with what they inherit from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from mmengine.config import Config

from prmim_adapters import shipped
from prmim_adapters.cli import main
from prmim_adapters.openmmlab.models import load_config


def prmim(*arguments: object) -> Result:
    return CliRunner().invoke(main, ['configs', *map(str, arguments)])


def test_list() -> None:
    lines = prmim().output.splitlines()
    rows = [line for line in lines[2:] if line.startswith('|')]
    names = [row.split()[1] for row in rows]
    assert {'mae_prmim_vitb.py', '_demo_/mae_prmim_demo.py'} <= set(names)
    assert not any(name.startswith('_base_') for name in names)
    mae = next(row for row in rows if row.startswith('| mae_prmim_vitb.py |'))
    assert "MAE ViT-B/16 with half of the patches thrown, on mmpretrain's own recipe |" in mae
    found = json.loads(prmim('--json').output)
    assert list(found) == names
    assert all(entry['summary'] for entry in found.values())
    assert lines[-1].endswith(str(shipped.shipped('sweeps')))


def test_names_are_unique() -> None:
    """mim finds a config by its file name alone."""
    stems = [path.stem for path in shipped.configs().values()]
    assert len(stems) == len(set(stems))


@pytest.mark.parametrize('name', ['ibot_prmim_vits_random', '_demo_/mae_prmim_demo.py'])
def test_a_copy_is_the_same_config(name: str, tmp_path: Path) -> None:
    written = list(map(Path, prmim('--copy', name, '--out', tmp_path).output.split()))
    assert written[0].stem == Path(name).stem
    assert set(tmp_path.rglob('*.py')) == set(written)
    assert Config.fromfile(written[0]).to_dict() == Config.fromfile(shipped.find(name)).to_dict()


def test_nothing_of_the_user_is_replaced(tmp_path: Path) -> None:
    config, base, _ = map(Path, prmim('--copy', 'mae_prmim_demo', '--out', tmp_path).output.split())
    config.write_text('mine')
    refused = prmim('--copy', 'mae_prmim_demo', '--out', tmp_path)
    assert refused.exit_code != 0
    assert f'{config} exists and differs' in refused.output
    assert config.read_text() == 'mine'
    assert prmim('--copy', 'mae_prmim_demo', '--out', tmp_path, '--force').exit_code == 0
    assert 'mae_prmim_vitb' in config.read_text()
    base.write_text('mine')  # other configs may inherit it
    refused = prmim('--copy', 'mae_prmim_demo', '--out', tmp_path, '--force')
    assert f'{base} exists and differs' in refused.output


def test_unknown_name() -> None:
    refused = prmim('--copy', 'mae_prmim_vitbb')
    assert refused.exit_code != 0
    assert 'no config mae_prmim_vitbb: like it are mae_prmim_vitb' in refused.output


@pytest.mark.parametrize('name', ['MAE_PRMIM', 'mae_prmim'])
def test_part_of_a_name_gives_those_that_have_it(name: str) -> None:
    found = 'like it are mae_prmim_demo, mae_prmim_vitb, mae_prmim_vith'
    assert found in prmim('--copy', name).output


def test_the_name_that_other_commands_take_is_taken() -> None:
    assert shipped.find('prmim_adapters::mae_prmim_vitb.py') == shipped.find('mae_prmim_vitb')


def test_commands_take_the_name() -> None:
    named = load_config('prmim_adapters::mae_prmim_vitb.py')
    assert named.to_dict() == load_config(shipped.find('mae_prmim_vitb')).to_dict()

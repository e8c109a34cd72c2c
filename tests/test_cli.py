# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from prmim_adapters.cli import main

CONFIG = """
_base_ = 'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py'
custom_imports = dict(imports=['prmim_adapters.openmmlab'], allow_failed_imports=False)
arch = dict(embed_dims=64, num_layers=1, num_heads=2, feedforward_channels=128)
_base_.model.backbone.update(arch=arch, img_size=64, patch_size=8)
_base_.model.neck.update(
    num_patches=64, patch_size=8, embed_dim=64, decoder_embed_dim=32, decoder_depth=1,
    decoder_num_heads=2)
_base_.model.head.update(patch_size=8)
model = dict(_delete_=True, type='PRMIM', framework={{_base_.model}}, throw_ratio=0.5)
train_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='RandomResizedCrop', scale=64),
    dict(type='PackInputs')]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(CONFIG)
    return str(path)


def run(*arguments):
    result = CliRunner().invoke(main, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_help_names_every_command_and_imports_no_framework():
    """Nor torch, which takes two seconds."""
    code = (
        'import sys\n'
        'from prmim_adapters.cli import main\n'
        'try:\n    main(["--help"])\nexcept SystemExit:\n    pass\n'
        'assert not {"torch", "numpy", "mmengine", "mmpretrain", "rich"} & set(sys.modules)'
    )
    shown = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True)
    for name in ('bench', 'cost', 'export', 'list', 'show', 'sweep'):
        assert f'\n  {name} ' in shown.stdout


def test_unknown_command():
    result = run('train')
    assert result.exit_code == 2
    assert 'No such command' in result.output


def test_list():
    found = json.loads(run('list', '--json').output)
    assert found['frameworks']['mmpretrain.models.selfsup.mae.MAE'].startswith('decoder')
    assert all(found['frameworks'].values())
    assert found['samplers']['random'].startswith('Uniformly random')
    assert 'cross_attention' in found['aggregators']
    assert 'farthest_unseeded' in run('list').output
    assert '| mae_prmim_vitb | 0.5 | -27.6% | -27.6% | -31.5% |' in run('list').output


def test_cost(config, tmp_path):
    picture = tmp_path / 'new' / 'cost.png'
    result = run(
        'cost', config, '--throw-ratio', '0.25', '--throw-ratio', '0.5', '--json', '--plot', picture
    )
    costs = json.loads(result.stdout)['costs']
    assert [c['label'] for c in costs] == [
        'framework',
        'plain partial 0.25',
        'PR-MIM 0.25',
        'plain partial 0.5',
        'PR-MIM 0.5',
    ]
    savings = [c['saving']['forward'] for c in costs]
    assert savings[0] == 0 < savings[2] < savings[1] < savings[4] < savings[3]
    assert all(abs(c['closed_form_error']) < 0.01 for c in costs[1:])
    assert picture.exists()


def test_cost_table_says_what_it_does_not_count(config):
    result = run('cost', config)
    assert 'PR-MIM 0.5' in result.output
    assert '1 multiply-add = 1 MAC' in result.output
    assert 'Not counted: element-wise' in result.output


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--throw-ratio', '0.9'], 'throw_ratio=0.9 throws 58 of 64 tokens'),
        (['--throw-ratio', 'nan'], 'throw_ratio=nan'),
        (['--batch-size', '1'], 'batch-size'),
        (['--throw-ratio', '0.25', '--plot', '.'], "File '.' is a directory"),
    ],
)
def test_cost_refuses(config, arguments, message):
    result = run('cost', config, *arguments)
    assert result.exit_code != 0
    assert message in result.output


def test_cost_of_no_file():
    result = run('cost', 'nowhere.py')
    assert result.exit_code == 2
    assert 'nowhere.py' in result.output


def test_bench(config, tmp_path):
    out = tmp_path / 'new' / 'bench.json'
    options = ('--steps', '3', '--warmup', '1', '--batch-size', '2', '--device', 'cpu')
    result = run('bench', config, *options, '--no-memory', '--out', str(out))
    data = json.loads(out.read_text())
    assert [m['label'] for m in data['measured']] == [
        'framework',
        'plain partial 0.5',
        'PR-MIM 0.5',
    ]
    assert all(len(m['times']['seconds']) == 3 for m in data['measured'])
    assert '| PR-MIM 0.5 |' in result.output
    assert 'Data: not measured.' in result.output


@pytest.mark.slow
def test_bench_memory(config):
    options = ('--steps', '3', '--batch-size', '2', '--device', 'cpu', '--precision', 'bf16')
    result = run('bench', config, *options, '--json')
    memory = [m['memory'] for m in json.loads(result.stdout)['measured']]
    assert memory[2]['saved'] < memory[0]['saved']
    assert all(m['resident'] > m['resident_before'] > 0 for m in memory)

# SPDX-License-Identifier: Apache-2.0
"""Typical mistakes over all commands: one line that names file, value and remedy, and code 2."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from prmim_adapters.cli import main

SMALL = """
_base_ = 'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py'
custom_imports = dict(imports=['prmim_adapters.openmmlab'], allow_failed_imports=False)
arch = dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=32)
_base_.model.backbone.update(arch=arch, img_size=32, patch_size=4)
_base_.model.neck.update(
    num_patches=64, patch_size=4, embed_dim=16, decoder_embed_dim=16, decoder_depth=1,
    decoder_num_heads=2)
_base_.model.head.update(patch_size=4)
model = dict(_delete_=True, type='PRMIM', framework={{_base_.model}}, throw_ratio=0.5)
train_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='RandomResizedCrop', scale=32),
    dict(type='PackInputs')]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
"""
CHANGED = {
    'arch.py': "model = dict(framework=dict(backbone=dict(arch='vit-hug')))",
    'type.py': "model = dict(framework=dict(type='SimMIMM'))",
    'sampler.py': "model = dict(sampler='farthst')",
    'aggregator.py': "model = dict(aggregator='cross_atention')",
    'setting.py': 'model = dict(trow_ratio=0.3)',
    'size.py': (
        "train_pipeline = [dict(type='RandomResizedCrop', scale=48), dict(type='PackInputs')]\n"
        'train_dataloader = dict(dataset=dict(pipeline=train_pipeline))'
    ),
    'step.py': (
        "train_pipeline = [dict(type='RandomResizdCrop', scale=32), dict(type='PackInputs')]\n"
        'train_dataloader = dict(dataset=dict(pipeline=train_pipeline))'
    ),
    'part.py': 'model = dict(mask_ratio=0.6)',
    'bare.py': "model = dict(_delete_=True, type='PRMIM', throw_ratio=0.5)",
    'import.py': "custom_imports = dict(imports=['prmim_adaptors.openmmlab'])",
    'no_data.py': "train_dataloader = dict(dataset=dict(_delete_=True, type='CIFAR10'))",
}
FILES = {
    'small.py': SMALL,
    'no_model.py': 'train_cfg = dict(max_epochs=1)\n',
    'syntax.py': 'model = dict(\n',
    'base.py': "_base_ = 'nowhere.py'\n",
    'notes.md': 'text',
    'my_model.py': 'def sized(size): pass\n',
    'exists.png': '',
    'exists.json': '',
    'broken.yaml': 'frameworks: [\n',
    'empty.yaml': 'frameworks: {}\narms: {}\n',
    'folder/text.txt': 'text',
    'repository/main.py': 'print()\n',
    **{name: f"_base_ = 'small.py'\n{text}\n" for name, text in CHANGED.items()},
}

#: Command line, and what its one line says: file, value, remedy.
MISTAKES = {
    'trian': ["No such command 'trian'", 'Commands: bench, configs'],
    'cots small.py': ["No such command 'cots'. Did you mean 'cost'?"],
    'cost': ["Missing argument 'CONFIG'", 'See prmim cost --help'],
    'cost small.py --trow-ratio 0.5': ['--trow-ratio', "Did you mean '--throw-ratio'?"],
    'cost smalll.py': ['smalll.py: no such config', "Did you mean 'small.py'?"],
    'cost mae_prmim_vitb': ["Did you mean 'prmim_adapters::mae_prmim_vitb.py'?"],
    'cost folder': ['folder is a folder', 'give a config file in it'],
    'cost facebook/vit-mae-base': ['no such config', 'MODULE:FUNCTION'],
    'cost other.pth': ['other.pth is no config', '.py'],
    'cost my_model:sized': ['my_model:sized needs size', 'batch_size'],
    'cost my_model.py:sized': ['write my_model:sized'],
    'cost part.py': ["unknown setting 'mask_ratio'. Did you mean model.backbone.mask_ratio?"],
    'cost bare.py': ['bare.py', 'framework=None', 'framework={{_base_.model}}'],
    'cost import.py': ["No module named 'prmim_adaptors'", 'PYTHONPATH'],
    'cost prmim-adapters::mae_prmim_vitb.py': ["Did you mean 'prmim_adapters'?"],
    'cost no_model.py': ['no_model.py has no `model`', '`model = dict(type=...)`'],
    'cost syntax.py': ['syntax.py', 'line 1', 'never closed'],
    'cost base.py': ['base.py', 'nowhere.py: no such file'],
    'cost mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e.py': [
        'mmpretrain has no such config',
        "Did you mean 'mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py'?",
    ],
    'cost mmpretrian::mae/mae.py': ["no package 'mmpretrian'", "Did you mean 'mmpretrain'?"],
    'cost prmim_adapters::mae_prmim_vitx.py': ['mae_prmim_vitx.py', 'mae_prmim_vitb'],
    'cost arch.py': ['arch.py: its model cannot be built', 'vit-hug', 'deit-small'],
    'cost type.py': ["type='SimMIMM' is not registered", "Did you mean 'SimMIM'?"],
    'cost sampler.py': ['sampler.py', "'farthst'. Did you mean 'farthest'?"],
    'cost aggregator.py': ['aggregator.py', "'cross_atention'. Did you mean 'cross_attention'?"],
    'cost setting.py': ['setting.py', "'trow_ratio'", 'throw_ratio, sampler'],
    'cost size.py': ['size.py', '48 x 48 pixels, the model takes 32 x 32', 'set the crop'],
    'cost step.py': ["type='RandomResizdCrop' is not", "Did you mean 'RandomResizedCrop'?"],
    'cost no_data.py': ['no_data.py has no `train_dataloader.dataset.pipeline`'],
    'cost small.py --throw-ratio 0.9': ['small.py', 'throw_ratio=0.9', 'largest valid one'],
    'cost small.py --plot exists.png': ['exists.png exists', '--force to replace it'],
    'cost small.py --plot cost.txt': ['--plot cost.txt', '.png'],
    'cost small.py --out small.py/cost.json': ['small.py is a file, not a folder'],
    'bench small.py --out exists.json': ['exists.json exists', '--force to replace it'],
    'bench small.py --device tpu': ["'tpu' is not one of 'cpu', 'cuda'"],
    'bench small.py --largest-batch --memory-limit 1 --data': ['--data', 'not with --largest'],
    'bench small.py --largest-batch --memory-limit 1 --no-memory': ['--memory is for steps'],
    'bench small.py --memory-limit 1': ['--memory-limit is for --largest-batch'],
    'show small.py nowhere.pth image.png': ['checkpoint nowhere.pth: no such file', 'a URL'],
    'show small.py folder image.png': ['checkpoint folder is a folder', 'last_checkpoint'],
    'show small.py other.pth image.png': ['other.pth is not a checkpoint of', 'small.py'],
    'show small.py image.png image.png': ['image.png cannot be read as a checkpoint: Unsupported'],
    'show other.pth small.py image.png': ['other.pth is no config'],
    'show small.py text.pth image.png': ['text.pth'],
    'show small.py other.pth nowhere.png': ["'nowhere.png' does not exist"],
    'show small.py other.pth folder': ['folder is a folder without pictures (.png, .jpg'],
    'show small.py other.pth image.png --out exists.png': ['exists.png exists', '--force'],
    'show small.py other.pth image.png --out picture': ['--out picture', '.png'],
    'show small.py other.pth image.png --out image.png --force': ['image.png, which is read'],
    'export nowhere.pth out.pth': ["'nowhere.pth' does not exist"],
    'export other.pth out.onnx': ["'out.onnx'", '.safetensors (timm)'],
    'export other.pth exists.json/out.pth': ['exists.json is a file, not a folder'],
    'export other.pth out.pth --encoder neck': ['--encoder is for an encoder', 'all weights'],
    'export other.pth out.safetensors --config small.py --encoder neck': ['has backbone'],
    'sweep empty.yaml --status --report-only': ['--status and --report-only exclude'],
    'configs --out mine': ['--out is for --copy'],
    'configs --copy mae --out mine': ['mae_prmim_demo, mae_prmim_vitb'],
    'sweep nowhere.yaml': ["'nowhere.yaml' does not exist"],
    'sweep broken.yaml': ['broken.yaml'],
    'sweep empty.yaml': ['empty.yaml'],
    'configs --copy mae_prmim_vitx --out mine': ['no config mae_prmim_vitx', 'mae_prmim_vitb'],
    'patch repository': ['repository'],
    'run nowhere.py': ["'nowhere.py' does not exist"],
    'run --without numpi small.py': ['no shim called numpi', 'there are'],
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all commands run; none of them may change a file."""
    folder = tmp_path_factory.mktemp('mistakes')
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    Image.new('RGB', (40, 40)).save(folder / 'image.png')
    # As SimMIM's: another framework's weights.
    torch.save({'state_dict': {'backbone.mask_token': torch.zeros(1, 1, 16)}}, folder / 'other.pth')
    (folder / 'text.pth').write_text('no checkpoint')
    return folder


@pytest.mark.parametrize('line', MISTAKES)
def test_one_line_with_the_remedy(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    # Python caches what a line imports, if no line before it did: not a file of the command's
    monkeypatch.setattr(sys, 'dont_write_bytecode', True)
    before = {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}
    result = CliRunner().invoke(main, shlex.split(line), prog_name='prmim')
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2, result.output
    lines = result.output.splitlines()
    assert len(lines) == 1 and lines[0].startswith('Error: '), result.output
    for part in MISTAKES[line]:
        assert part in lines[0]
    assert len(lines[0]) < 700
    assert {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()} == before

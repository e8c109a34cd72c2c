# SPDX-License-Identifier: Apache-2.0
"""Exported encoders give timm the features that mmpretrain gives."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner
from mmengine.logging import HistoryBuffer
from mmpretrain.registry import MODELS
from random_backbones import BACKBONES, VIT, VIT_ARCH, random_backbone
from safetensors.torch import load_file

import prmim_adapters.openmmlab  # noqa: F401
from prmim_adapters.commands.export import export
from prmim_adapters.export import encoder as encoder_module
from prmim_adapters.export import export_encoder, to_timm
from prmim_adapters.export.settings import checked_encoder, read_literal


@pytest.mark.parametrize('name', BACKBONES)
def test_features_agree(name: str) -> None:
    _, _, difference = to_timm(random_backbone(BACKBONES[name]))
    assert difference < 5e-6


@pytest.mark.parametrize('name', BACKBONES)
def test_a_wrong_weight_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Swap two channels of one converted matrix: the export refuses."""
    backbone = random_backbone(BACKBONES[name])
    converter = encoder_module.find_converter(backbone)

    def swapped(state_dict: dict[str, torch.Tensor], backbone: Any) -> dict[str, torch.Tensor]:
        weights = converter.convert(state_dict, backbone)
        key = next(k for k in weights if k.endswith('mlp.fc1.weight'))
        weights[key] = weights[key].roll(1, dims=1)
        return weights

    wrong = encoder_module.Converter(
        converter.build, swapped, converter.features, converter.untrained
    )
    monkeypatch.setattr(encoder_module, 'find_converter', lambda _: wrong)
    with pytest.raises(ValueError, match='differ by'):
        to_timm(backbone)


def test_unknown_encoder_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match='no timm counterpart for ResNet; known: VisionTransf'):
        to_timm(MODELS.build(dict(type='ResNet', depth=18)))
    with pytest.raises(ValueError, match='no timm counterpart for iTPNHiViT; known: VisionTransf'):
        to_timm(MODELS.build(dict(type='iTPNHiViT', arch='tiny')))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """As mmengine writes one, of a deit-tiny MAE with partial reconstruction."""
    backbone_config = dict(type='MAEViT', arch='deit-tiny', img_size=224, patch_size=16)
    backbone = random_backbone(backbone_config)
    state = {f'backbone.{key}': value for key, value in backbone.state_dict().items()}
    state['neck.mask_token'] = torch.zeros(1, 1, 32)
    model = dict(type='PRMIM', framework=dict(backbone=backbone_config))
    text = f'work_dir = print()\nmodel = {model!r}\n'
    path = tmp_path / 'epoch_1.pth'
    torch.save(dict(state_dict=state, meta=dict(cfg=text)), path)
    return path


def test_timm_create_model_reads_the_file(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / 'encoder.safetensors'
    report = export_encoder(checkpoint, out)
    assert report['timm'] == 'VisionTransformer'
    model = timm.create_model('vit_tiny_patch16_224', num_classes=0, checkpoint_path=str(out))
    images = torch.randn(1, 3, 224, 224)
    backbone = random_backbone(dict(type='MAEViT', arch='deit-tiny', img_size=224, patch_size=16))
    backbone.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            model.eval().forward_features(images),
            backbone(images, mask=None)[-1],
            rtol=1e-4,
            atol=1e-4,
        )
    assert report['parameters'] == sum(v.numel() for v in load_file(out).values())


def test_command(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / 'encoder.safetensors'
    result = CliRunner().invoke(export, [str(checkpoint), str(out)])
    assert result.exit_code == 0, result.output
    assert 'timm VisionTransformer, 150 tensors, 5.52 M parameters' in result.output
    other = str(tmp_path / 'teacher.safetensors')
    wrong = CliRunner().invoke(export, [str(checkpoint), other, '--encoder', 'teacher'])
    assert wrong.exit_code == 2
    assert "no weights under 'teacher'" in wrong.output
    wrong = CliRunner().invoke(export, [str(checkpoint), other, '--encoder', 'neck'])
    assert "no 'neck' in its model, only ['backbone']" in wrong.output


@pytest.mark.parametrize('ending', ['.pth', '.safetensors'])
def test_nothing_is_replaced_unasked(checkpoint: Path, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f'out{ending}'
    out.write_text('mine')
    kept = CliRunner().invoke(export, [str(checkpoint), str(out)])
    assert kept.exit_code == 2 and '--force to replace it' in kept.output
    assert out.read_text() == 'mine'
    damaged = tmp_path / 'damaged.pth'
    damaged.write_bytes(checkpoint.read_bytes()[:-100])
    failed = CliRunner().invoke(export, [str(damaged), str(out), '--force'])
    assert failed.exit_code == 2 and out.read_text() == 'mine'
    assert {path.name for path in tmp_path.iterdir()} == {'epoch_1.pth', 'damaged.pth', out.name}
    replaced = CliRunner().invoke(export, [str(checkpoint), str(out), '--force'])
    assert replaced.exit_code == 0 and out.stat().st_size > 2**20


@pytest.mark.parametrize('link', ['same', 'symbolic', 'hard', 'other spelling'])
def test_the_checkpoint_is_never_replaced(checkpoint: Path, tmp_path: Path, link: str) -> None:
    before, out = checkpoint.read_bytes(), tmp_path / 'link.pth'
    if link == 'symbolic':
        out.symlink_to(checkpoint)
    elif link == 'hard':
        out.hardlink_to(checkpoint)
    else:
        (tmp_path / 'folder').mkdir()
        out = checkpoint if link == 'same' else tmp_path / 'folder' / '..' / checkpoint.name
    result = CliRunner().invoke(export, [str(checkpoint), str(out), '--force'])
    assert result.exit_code == 2 and 'which is read' in result.output
    assert checkpoint.read_bytes() == before


def test_a_config_far_larger_than_the_weights_is_not_built(tmp_path: Path) -> None:
    """Every size is one that an encoder may have; together they would take 60 GB."""
    arch = dict(embed_dims=8192, num_layers=100, num_heads=8, feedforward_channels=8192)
    text = f"model = dict(backbone=dict(type='MAEViT', arch={arch!r}, img_size=64))"
    weights = {'backbone.cls_token': torch.zeros(1, 1, 48)}
    torch.save(dict(state_dict=weights, meta=dict(cfg=text)), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='far larger than the weights in the file'):
        export_encoder(tmp_path / 'a.pth', tmp_path / 'out.safetensors')


def test_bare_weights_need_no_allow_list(tmp_path: Path) -> None:
    """A checkpoint with a log history becomes one that torch loads by itself."""
    checkpoint, out = tmp_path / 'epoch_1.pth', tmp_path / 'weights.pth'
    state = {'backbone.cls_token': torch.randn(1, 1, 8), 'neck.mask_token': torch.randn(1, 1, 8)}
    history = dict(log_scalars={'train/loss': HistoryBuffer([1.0], [1])})
    content = dict(meta=dict(cfg='model = dict()', epoch=1), state_dict=state)
    torch.save(dict(**content, message_hub=history, optimizer=dict(state={})), checkpoint)
    result = CliRunner().invoke(export, [str(checkpoint), str(out)])
    assert result.exit_code == 0, result.output
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        loaded = torch.load(out, weights_only=True)
    finally:
        torch.serialization.add_safe_globals(allowed)
    assert set(loaded) == {'meta', 'state_dict'}
    assert loaded['meta'] == content['meta']
    torch.testing.assert_close(loaded['state_dict'], state, rtol=0, atol=0)


@pytest.mark.parametrize('ending', ['.safetensors', '.pth'])
def test_a_checkpoint_of_mmengines_ddp_strategy_has_the_models_names(
    checkpoint: Path, tmp_path: Path, ending: str
) -> None:
    content = torch.load(checkpoint)
    wrapped = {f'module.{name}': value for name, value in content['state_dict'].items()}
    other = tmp_path / 'wrapped.pth'
    torch.save({**content, 'state_dict': wrapped}, other)
    written = []
    for path in (checkpoint, other):
        out = tmp_path / f'{path.stem}-out{ending}'
        result = CliRunner().invoke(export, [str(path), str(out)])
        assert result.exit_code == 0, result.output
        written.append(load_file(out) if ending != '.pth' else torch.load(out)['state_dict'])
    torch.testing.assert_close(*written, rtol=0, atol=0)


def test_other_endings_are_refused(checkpoint: Path) -> None:
    result = CliRunner().invoke(export, [str(checkpoint), 'encoder.bin'])
    assert result.exit_code == 2
    assert 'give a .safetensors (timm) or .pth (mmpretrain)' in result.output


def test_config_text_is_read_not_executed(tmp_path: Path) -> None:
    marker = tmp_path / 'executed'
    text = f'model = dict(type=open({str(marker)!r}, "w"))\n'
    with pytest.raises(ValueError, match='cannot be read as literals'):
        read_literal(text, 'model')
    assert not marker.exists()
    assert read_literal('model = dict(a=[1, -2.5, None], b={"c": (True, "d")})', 'model') == {
        'a': [1, -2.5, None],
        'b': {'c': (True, 'd')},
    }


@pytest.mark.parametrize('name', BACKBONES)
def test_settings_of_every_encoder_are_known(name: str) -> None:
    """Also with the ``_scope_`` and ``init_cfg`` that inheriting from mmpretrain leaves."""
    settings = dict(BACKBONES[name])
    noise = dict(_scope_='mmpretrain', init_cfg=dict(type='Pretrained', checkpoint='a/b.pth'))
    assert checked_encoder({**settings, **noise}) == settings


HOSTILE_SETTINGS: dict[str, dict[str, Any]] = {
    'called': dict(type='subprocess.getoutput', cmd='touch {marker}'),
    'layer called': dict(
        type='MAEViT', **VIT, norm_cfg=dict(type='subprocess.getoutput', cmd='touch {marker}')
    ),
    'module imported': dict(type='planted.MAEViT'),
    'layer imported': dict(type='MAEViT', **VIT, norm_cfg=dict(type='planted.LN')),
    'imported by another key': dict(type='MAEViT', **VIT, patch_cfg=dict(conv_type='planted.Conv')),
    'imported by scope': dict(type='MAEViT', _scope_='planted', **VIT),
    'imported by inner scope': dict(
        type='MAEViT', **VIT, norm_cfg=dict(type='LN', _scope_='planted')
    ),
    'scope before the name': dict(type='planted/MAEViT', **VIT),
    'another model': dict(type='TIMMBackbone', model_name='resnet18', checkpoint_path='planted'),
    'another layer': dict(type='MAEViT', **VIT, norm_cfg=dict(type='HuggingFaceClassifier')),
    'type is no text': dict(type=['planted', 'MAEViT']),
    'key is no name': {'type': 'MAEViT', 'norm_cfg': {'type': 'LN', 'a b': 1}},
    'size': dict(type='MAEViT', arch=dict(VIT_ARCH, num_layers=10**9), img_size=64),
}


@pytest.mark.parametrize('name', HOSTILE_SETTINGS)
def test_a_foreign_config_runs_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither called nor imported: the module that the settings name would leave the mark."""
    marker = tmp_path / 'ran'
    (tmp_path / 'planted.py').write_text(f'open({str(marker)!r}, "w").close()\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'planted', raising=False)
    text = repr(HOSTILE_SETTINGS[name]).replace('{marker}', str(marker))
    checkpoint = tmp_path / 'foreign.pth'
    weights = {'backbone.cls_token': torch.zeros(1, 1, 48)}
    torch.save(
        dict(state_dict=weights, meta=dict(cfg=f'model = dict(backbone={text})')), checkpoint
    )
    result = CliRunner().invoke(export, [str(checkpoint), str(tmp_path / 'out.safetensors')])
    assert not marker.exists()
    assert not (tmp_path / 'out.safetensors').exists()
    assert result.exit_code == 2
    assert result.output.startswith('Error: ')


def test_channels_of_the_images_are_the_encoders() -> None:
    config = dict(type='MAEViT', **VIT, patch_cfg=dict(in_channels=12))
    model, weights, difference = to_timm(random_backbone(config))
    assert weights['patch_embed.proj.weight'].shape == (48, 12, 16, 16)
    assert model(torch.zeros(1, 12, 64, 64)).shape == (1, 48)
    assert difference < 5e-6


def test_settings_beside_the_framework_and_scoped_names_are_read(tmp_path: Path) -> None:
    """What ``model.backbone...`` on the command line and a pure-Python config leave in the text."""
    backbone = random_backbone(dict(type='MAEViT', **VIT))
    inside = dict(type='mmpretrain.models.MAEViT', arch=VIT_ARCH, img_size=224, patch_size=16)
    model = dict(
        type='prmim_adapters.openmmlab.PRMIM',
        framework=dict(type='mmpretrain.models.MAE', backbone=inside),
        backbone=dict(img_size=64),
        throw_ratio=0.5,
    )
    state = {f'backbone.{key}': value for key, value in backbone.state_dict().items()}
    text = f'model = {model!r}\n'
    torch.save(dict(state_dict=state, meta=dict(cfg=text)), tmp_path / 'a.pth')
    report = export_encoder(tmp_path / 'a.pth', tmp_path / 'a.safetensors')
    assert report['parameters'] == sum(p.numel() for p in backbone.parameters())
    (tmp_path / 'config.py').write_text(text)
    again = export_encoder(tmp_path / 'a.pth', tmp_path / 'b.safetensors', tmp_path / 'config.py')
    assert again == report
    for name, value in load_file(tmp_path / 'a.safetensors').items():
        assert torch.equal(value, load_file(tmp_path / 'b.safetensors')[name])


@pytest.mark.parametrize('encoder', ['simmim vit', 'simmim swin', 'maskfeat'])
def test_the_light_stage_of_an_encoder_that_is_the_heavy_network_stays_behind(
    tmp_path: Path, encoder: str
) -> None:
    """Its weights stand under the encoder's name: ``backbone.partial.aggregators.*``."""
    backbone = dict(BACKBONES[encoder])
    loss = dict(type='PixelReconstructionLoss', criterion='L1', channel=3)
    width, stride = (64, 32) if encoder == 'simmim swin' else (48, 16)
    framework = dict(
        type='SimMIM',
        backbone=backbone,
        neck=dict(type='SimMIMLinearDecoder', in_channels=width, encoder_stride=stride),
        head=dict(type='SimMIMHead', patch_size=stride // 8 if stride == 32 else 16, loss=loss),
    )
    if encoder == 'maskfeat':
        backbone.update(img_size=224)
        framework.update(
            type='MaskFeat',
            neck=dict(type='LinearNeck', in_channels=48, out_channels=108, norm_cfg=None),
            head=dict(type='MIMHead', loss=loss),
            target_generator=dict(type='HOGGenerator', nbins=9, pool=8, gaussian_window=16),
        )
    model = MODELS.build(dict(type='PRMIM', framework=framework, throw_ratio=0.2))
    weights = model.state_dict()
    assert any(name.startswith('backbone.partial.') for name in weights)
    text = f'model = {dict(type="PRMIM", framework=framework, throw_ratio=0.2)!r}'
    torch.save(dict(state_dict=weights, meta=dict(cfg=text)), tmp_path / 'a.pth')
    report = export_encoder(tmp_path / 'a.pth', tmp_path / 'a.safetensors')
    assert report['difference'] < 5e-6
    written = load_file(tmp_path / 'a.safetensors')
    assert not any('partial' in name for name in written)

# SPDX-License-Identifier: Apache-2.0
"""Exported folders give transformers the features that mmpretrain gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import random_backbones
import torch
from click.testing import CliRunner
from mmpretrain.registry import MODELS
from random_backbones import VIT, random_backbone

import prmim_adapters.openmmlab  # noqa: F401
from prmim_adapters import __version__
from prmim_adapters.commands.export import export
from prmim_adapters.export import export_encoder, export_folder, huggingface
from prmim_adapters.export.huggingface import write_folder

transformers = pytest.importorskip('transformers', reason='optional: extra [huggingface]')

CHANNELS = {'mae, 12 channels': dict(type='MAEViT', patch_cfg=dict(in_channels=12), **VIT)}
NAMES = ['mae', 'mae, not square', 'maskfeat', 'simmim swin', 'fcmae']
BACKBONES = CHANNELS | {name: random_backbones.BACKBONES[name] for name in NAMES}
CLASSES = dict(zip(BACKBONES, ['ViTModel'] * 4 + ['SwinModel', 'ConvNextV2Model'], strict=True))


def save_checkpoint(path: Path, config: dict[str, Any], **rest: Any) -> Path:
    """As mmengine writes one."""
    model = dict(
        type='PRMIM', framework=dict(type='MAE', backbone=config), throw_ratio=0.5, sampler='grid'
    )
    dataset = dict(type='CustomDataset', data_root='photos|`<b>')
    loader = dict(batch_size=64, dataset=dataset)
    text = f'model = {model!r}\ntrain_dataloader = {loader!r}\n'
    state = {f'backbone.{k}': v for k, v in random_backbone(config).state_dict().items()}
    meta = dict(cfg=text, epoch=3, iter=120, seed=7, mmengine_version='0.10.7' + 'a1' * 20, **rest)
    torch.save(dict(state_dict=state, meta=meta), path)
    return path


@pytest.mark.parametrize('name', BACKBONES)
def test_from_pretrained_gives_the_same_features(name: str, tmp_path: Path) -> None:
    """Read as users read it, and compared here again: on other images, token by token."""
    checkpoint = save_checkpoint(tmp_path / 'a.pth', BACKBONES[name])
    report = export_folder(checkpoint, tmp_path / 'out')
    assert report['transformers'] == CLASSES[name]
    assert report['difference'] <= 1e-5
    model = transformers.AutoModel.from_pretrained(tmp_path / 'out').eval()
    backbone = random_backbone(BACKBONES[name])
    backbone.eval()
    images = huggingface.noise_images(backbone).roll(1, dims=3)
    features = huggingface.hub_model(backbone).features(backbone, images)
    with torch.no_grad():
        found = model(pixel_values=images).last_hidden_state
    torch.testing.assert_close(found, features, rtol=1e-5, atol=1e-5 * features.abs().max().item())


@pytest.mark.parametrize('name', ['mae', 'simmim swin', 'fcmae'])
def test_a_wrong_weight_is_noticed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Swap two channels of one converted matrix: nothing is left at OUT."""
    checkpoint = save_checkpoint(tmp_path / 'a.pth', BACKBONES[name])
    renamed = huggingface._renamed

    def swapped(weights: dict[str, torch.Tensor], renames: Any) -> dict[str, torch.Tensor]:
        weights = renamed(weights, renames)
        key = next(
            k for k in weights if k.endswith(('intermediate.dense.weight', 'pwconv1.weight'))
        )
        weights[key] = weights[key].roll(1, dims=1)
        return weights

    monkeypatch.setattr(huggingface, '_renamed', swapped)
    with pytest.raises(ValueError, match='differ by'):
        export_folder(checkpoint, tmp_path / 'out')
    assert [path.name for path in tmp_path.iterdir()] == ['a.pth']


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (dict(type='IBOTViT', layer_scale_init_value=0.1, **VIT), 'has no layer scale'),
        (dict(type='SimMIMViT', **VIT), 'no class of transformers for SimMIMViT; known: VisionTr'),
        (dict(type='ResNet', depth=18), 'no class of transformers for ResNet'),
    ],
    ids=['layer scale', 'beit', 'resnet'],
)
def test_what_transformers_lacks_is_refused(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        write_folder(MODELS.build(config), tmp_path)


def test_a_classifier_starts_from_the_folder(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / 'a.pth', BACKBONES['mae'])
    export_folder(checkpoint, tmp_path / 'out')
    model, report = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path / 'out', num_labels=5, output_loading_info=True
    )
    assert set(report['missing_keys']) == {'classifier.weight', 'classifier.bias'}
    assert not report['unexpected_keys']
    weight = model.state_dict()['vit.layernorm.weight']
    torch.testing.assert_close(weight, torch.load(checkpoint)['state_dict']['backbone.ln1.weight'])


def test_command_and_card(tmp_path: Path) -> None:
    """A stranger's text does not leave its cell; what is missing says so."""
    checkpoint = save_checkpoint(tmp_path / 'epoch_3.pth', BACKBONES['mae'])
    out = tmp_path / 'encoder'
    result = CliRunner().invoke(export, [str(checkpoint), str(out)])
    assert result.exit_code == 0, result.output
    assert 'transformers ViTModel' in result.output
    assert {path.name for path in out.iterdir()} == {
        'README.md',
        'config.json',
        'model.safetensors',
    }
    card = (out / 'README.md').read_text()
    for line in (
        '| framework | `MAE` |',
        '| encoder | `backbone` of `epoch_3.pth` |',
        '| throw ratio | `0.5` |',
        '| sampler | `grid` |',
        f'| aggregator | the default, `cross_attention` in prmim_adapters {__version__} |',
        '| data | `CustomDataset` in `photos b ` |',
        '| trained | `3` epochs, `120` steps, `64` images per process |',
        '| versions | mmengine 0.10.7 |',
        '| commit of prmim_adapters | not recorded |',
        '| cost of a training step | not recorded |',
    ):
        assert line in card.splitlines(), line
    again = CliRunner().invoke(export, [str(checkpoint), str(out)])
    assert again.exit_code == 2 and '--force to replace it' in again.output
    (out / 'mine.txt').write_text('kept')
    forced = CliRunner().invoke(export, [str(checkpoint), str(out), '--force', '--json'])
    assert json.loads(forced.stdout)['transformers'] == 'ViTModel'
    assert (out / 'mine.txt').read_text() == 'kept'


def test_the_card_has_the_cost_beside_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / 'a.pth', BACKBONES['fcmae'])
    (tmp_path / '20261126').mkdir()
    costs = [dict(forward=9.795e9), dict(forward=7.095e9)]
    environment = dict(commit='abc+', packages=dict(prmim_adapters='0.1.0', torch='2.14.1'))
    found = json.dumps(dict(costs=costs, environment=environment))
    (tmp_path / '20261126' / 'cost.json').write_text(found)
    export_encoder(checkpoint, tmp_path / 'encoder.safetensors')
    card = (tmp_path / 'encoder.md').read_text()
    assert 'Not trained, at initial values: `head.norm.*`.' in card
    assert '7.095 GMACs forward per image, -27.6% against the framework' in card
    assert '| commit of prmim_adapters | `abc+` |' in card
    assert 'prmim_adapters 0.1.0, torch 2.14.1, mmengine 0.10.7' in card

# SPDX-License-Identifier: Apache-2.0
"""The specs in sweeps/: checked, built, and with a loss, as a sweep would run them."""

# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from prmim_adapters import is_attached
from prmim_adapters.accounting import make_batch
from prmim_adapters.sweep import load_spec
from prmim_adapters.sweep.checking import check_arms, check_configs
from prmim_adapters.sweep.configs import (
    write_base,
    write_point,
    write_transfer,
)

SPECS = sorted((Path(__file__).parents[2] / 'sweeps').glob('*.yaml'))


@pytest.mark.parametrize('path', SPECS, ids=lambda path: path.stem)
def test_the_shipped_specs_pass_the_checks(path):
    check_configs(load_spec(path))
    check_arms(load_spec(path))


def batch_of(config, model):
    if config.data_preprocessor.type != 'DeviceAugment':
        return make_batch(config, model, batch_size=2)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    batch = dict(inputs=images, data_samples=[DataSample(), DataSample()])
    return model.data_preprocessor(batch, True)


@pytest.mark.parametrize('path', SPECS, ids=lambda path: path.stem)
def test_every_arm_of_the_shipped_specs_builds_and_has_a_loss(path, tmp_path):
    spec = load_spec(path)
    for name, framework in spec.frameworks.items():
        write_base(tmp_path / name / 'base.py', framework, spec)
    for point in spec.points():
        if point.seed == spec.seeds[0] and point.ratio in (0.0, max(spec.ratios)):
            config_path = tmp_path / point.name / 'config.py'
            write_point(config_path, tmp_path / point.framework / 'base.py', point, spec)
            config = Config.fromfile(config_path)
            model = MODELS.build({**config.model, 'data_preprocessor': config.data_preprocessor})
            assert is_attached(model) == (point.arm != 'framework')
            total, _ = model.parse_losses(model.loss(**batch_of(config, model)))
            assert torch.isfinite(total)


@pytest.mark.parametrize('path', SPECS, ids=lambda path: path.stem)
def test_transfers_of_the_shipped_specs_load(path, tmp_path):
    spec = load_spec(path)
    point = spec.points()[0]
    for name, transfer in spec.transfers.items():
        write_transfer(tmp_path / f'{name}.py', transfer, tmp_path / 'a.pth', point, spec)
        config = Config.fromfile(tmp_path / f'{name}.py')
        assert config.model.backbone.init_cfg.checkpoint == str(tmp_path / 'a.pth')
        assert transfer.metric == 'accuracy/top1'
        assert config.val_evaluator.topk[0] == 1
        assert 'prmim_adapters.openmmlab' in config.custom_imports.imports
        MODELS.build(config.model)

# SPDX-License-Identifier: Apache-2.0
"""``prmim cost`` and ``prmim bench`` on a function of the user's."""

import json

import pytest
from click.testing import CliRunner

from prmim_adapters.accounting.sources import ConfigSource, FunctionSource, source_of
from prmim_adapters.cli import main

MODULE = """
import torch
import transformers


def tensors(batch_size):
    order = torch.rand(batch_size, 32).argsort(1)
    return torch.randn(batch_size, 4, 3, 32, 32), order < 24


def model():
    config = transformers.VideoMAEConfig(
        image_size=32, patch_size=8, num_frames=4, hidden_size=24, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=48, decoder_hidden_size=32,
        decoder_num_hidden_layers=2, decoder_num_attention_heads=2,
        decoder_intermediate_size=64, norm_pix_loss=False)
    return transformers.VideoMAEForPreTraining(config)


def named(batch_size=2):
    clips, mask = tensors(batch_size)
    return model(), dict(pixel_values=clips, bool_masked_pos=mask)


def in_order():
    return model(), tensors(3)


def with_loss():
    return model(), (*tensors(2), ), lambda output: output.logits.square().mean()


def no_loss():
    return torch.nn.Linear(3, 3), torch.randn(2, 3)


def one():
    return model()


def strings():
    return model(), 'images'


def wrong_model():
    return 'model', tensors(2)


def wrong_loss():
    return model(), tensors(2), 'mse'


number = 5
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    pytest.importorskip('transformers')
    (tmp_path / 'my_video.py').write_text(MODULE)
    (tmp_path / 'broken.py').write_text('import nowhere_to_be_found\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__('sys').modules, 'my_video', raising=False)

    def invoke(*arguments):
        result = CliRunner().invoke(main, arguments)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


@pytest.mark.parametrize(('function', 'images'), [('named', 2), ('in_order', 3), ('with_loss', 2)])
def test_cost(run, function, images):
    result = run('cost', f'my_video:{function}', '--json')
    found = json.loads(result.stdout)
    framework, ours = found['costs']
    assert [framework['label'], ours['label']] == ['framework', 'PR-MIM 0.5']
    assert found['batch_size'] == images
    # 2 blocks of 32 channels on 16 tokens less: linear layers, attention, two norms
    saved = 2 * (16 * 8 * 32**2 + 2 * 32 * (32**2 - 16**2) + 2 * 5 * 32 * 16)
    assert ours['predicted_saving'] == saved
    assert framework['forward'] - (ours['forward'] - ours['aggregation']) == pytest.approx(saved)
    assert found['framework'].endswith('.VideoMAEForPreTraining')
    assert 'Plain partial reconstruction is left out' in found['notes']


def test_batch_size(run):
    assert json.loads(run('cost', 'my_video:named', '--batch-size', '4', '--json').stdout)[
        'batch_size'
    ] == 4  # fmt: skip
    result = run('cost', 'my_video:in_order', '--batch-size', '4')
    assert result.exit_code == 2
    assert 'my_video:in_order has no parameter batch_size' in result.output
    assert FunctionSource('my_video:in_order').images(8) == 3
    assert FunctionSource('my_video:named').images(8) == 8


def test_bench(run):
    result = run(
        'bench', 'my_video:named', '--steps', '3', '--warmup', '0', '--no-memory', '--json'
    )
    found = json.loads(result.stdout)
    assert [m['label'] for m in found['measured']] == ['framework', 'PR-MIM 0.5']
    assert found['name'] == 'my_video:named'
    result = run('bench', 'my_video:named', '--data')
    assert result.exit_code == 2 and '--data is for configs' in result.output


@pytest.mark.parametrize(
    ('function', 'message'),
    [
        ('my_vidoe:named', "there is no module 'my_vidoe' in "),
        ('my_video.sub:named', "there is no module 'my_video.sub' in "),
        ('broken:named', "No module named 'nowhere_to_be_found'"),
        ('my_video:name', "my_video has no function 'name'; did you mean 'named'?"),
        ('my_video:number', "my_video has no function 'number'"),
        ('my_video:one', 'returned a VideoMAEForPreTraining: it must return (model, batch)'),
        ('my_video:strings', 'returned a str as the batch: it must return (model, batch)'),
        ('my_video:wrong_model', 'returned a str as the model: it must return (model, batch)'),
        ('my_video:wrong_loss', 'returned a str as the loss: it must return (model, batch)'),
        ('my_video:no_loss', 'no adapter for torch.nn.modules.linear.Linear'),
    ],
)
def test_wrong_function(run, function, message):
    result = run('cost', function)
    of_their_own = function.startswith('broken')
    assert result.exit_code == (1 if of_their_own else 2)
    error = [line for line in result.output.splitlines() if line.startswith('Error: ')]
    assert len(error) == 1 and message in error[0]


def test_what_is_a_function():
    assert source_of('my.module:make_1') == FunctionSource('my.module:make_1')
    for config in ('mmpretrain::mae/x.py', 'configs/x.py', '/a:b/x.py', 'x.py'):
        assert source_of(config) == ConfigSource(config)

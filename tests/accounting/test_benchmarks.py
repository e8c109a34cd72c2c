# SPDX-License-Identifier: Apache-2.0
"""The scripts in benchmarks/: the peer's decoder, and tables that agree with their results."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prmim_adapters.accounting import count_macs, make_batch
from prmim_adapters.accounting.bench import config_batch

ROOT = Path(__file__).parents[2]
VITB = str(ROOT / 'configs' / 'mmpretrain' / 'mae_prmim_vitb.py')


@pytest.fixture(scope='module')
def cross_decoder():
    sys.path.insert(0, str(ROOT / 'benchmarks'))
    import cross_decoder

    yield cross_decoder
    sys.path.remove(str(ROOT / 'benchmarks'))


def test_queries_do_not_see_each_other(cross_decoder):
    torch.manual_seed(0)
    decoder = cross_decoder.CrossAttentionDecoder(64, 2, 3, 16, 32, 2, 4)
    encoded = torch.randn(2, 17, 16)
    index = torch.arange(20).repeat(2, 1)
    together, some = decoder(encoded, index), decoder(encoded, index[:, 3:7])
    assert together.shape == (2, 20, 12)
    torch.testing.assert_close(together[:, 3:7], some)
    assert not torch.allclose(decoder(encoded.flip(0), index), together)


def test_the_peer_predicts_a_quarter_of_the_patches_among_the_masked(cross_decoder, small_mae):
    model = small_mae()
    model.neck = cross_decoder.CrossAttentionDecoder(64, 8, 3, 64, 32, 2, 2)
    model.__class__ = cross_decoder.CrossMAE
    model.predict_ratio = 0.25
    seen = {}
    model.neck.register_forward_pre_hook(lambda module, args: seen.update(index=args[1]))
    model.backbone.register_forward_hook(lambda module, args, out: seen.update(mask=out[1]))
    batch = make_batch(model, batch_size=3)
    model.loss(**batch)['loss'].backward()
    assert seen['index'].shape == (3, 16)
    assert seen['mask'].gather(1, seen['index']).all()
    assert all(len(row.unique()) == 16 for row in seen['index'])
    assert all(p.grad is not None for p in model.neck.parameters())


@pytest.mark.slow
def test_the_peer_costs_what_the_original_does(cross_decoder):
    """6.477 GMACs: the published decoder at depth 12, ViT-B/16, counted without normalisation."""
    model = cross_decoder.build_cross_mae(VITB)
    count = count_macs(model, config_batch(VITB, 2, model))
    assert count.products / 1e9 == pytest.approx(6.477, rel=2e-3)


def test_tables_agree_with_results():
    command = [sys.executable, str(ROOT / 'benchmarks' / 'tables.py'), '--check']
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_tables_that_do_not_agree_are_found(tmp_path):
    copy = tmp_path / 'benchmarks'
    shutil.copytree(ROOT / 'benchmarks', copy, ignore=shutil.ignore_patterns('results'))
    (copy / 'results').mkdir()
    (tmp_path / 'prmim_adapters' / 'accounting').mkdir(parents=True)
    script = copy / 'tables.py'
    subprocess.run([sys.executable, str(script)], check=True, capture_output=True)
    table = copy / 'results' / 'steps.md'
    assert len(table.read_text().splitlines()) == 2  # no row for what was not measured
    table.write_text(table.read_text() + '| MAE |\n')
    result = subprocess.run(
        [sys.executable, str(script), '--check'], capture_output=True, text=True
    )
    assert result.returncode == 1
    assert 'steps.md is not what its JSON says' in result.stdout

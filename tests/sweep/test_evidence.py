# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from prmim_adapters.sweep import load_spec
from prmim_adapters.sweep.collected import collect
from prmim_adapters.sweep.report import markdown

ROOT = Path(__file__).parents[2]
EVIDENCE = ROOT / 'docs' / 'evidence'


@pytest.mark.parametrize(
    ('spec', 'folder'),
    [
        (ROOT / 'sweeps' / 'cifar10_mae_cpu.yaml', 'cifar10_mae_cpu'),
        (ROOT / 'sweeps' / 'cifar10_mae_cpu_finetune.yaml', 'cifar10_mae_cpu_finetune'),
        (ROOT / 'sweeps' / 'ablation_cpu.yaml', 'ablation_cpu'),
        (EVIDENCE / 'untrained' / 'spec.yaml', 'untrained'),
    ],
)
def test_committed_reports_follow_from_the_committed_results(spec, folder):
    found = collect(load_spec(spec), EVIDENCE / folder)
    assert (EVIDENCE / folder / 'report.md').read_text() == markdown(found, spec.stem)

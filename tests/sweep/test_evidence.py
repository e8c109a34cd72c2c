# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from prmim_adapters.sweep import load_spec
from prmim_adapters.sweep.collected import collect
from prmim_adapters.sweep.report import markdown

ROOT = Path(__file__).parents[2]
EVIDENCE = ROOT / 'docs' / 'evidence'


FOLDERS = sorted(path.parent.name for path in EVIDENCE.glob('*/report.md'))


def test_every_study_has_its_report():
    studies = {path.name for path in EVIDENCE.iterdir() if path.is_dir()} - {'simmim_pilot'}
    assert set(FOLDERS) == studies


@pytest.mark.parametrize('folder', FOLDERS)
def test_committed_reports_follow_from_the_committed_results(folder):
    own = EVIDENCE / folder / 'spec.yaml'
    spec = own if own.exists() else ROOT / 'sweeps' / f'{folder}.yaml'
    found = collect(load_spec(spec), EVIDENCE / folder)
    assert (EVIDENCE / folder / 'report.md').read_text() == markdown(found, spec.stem)

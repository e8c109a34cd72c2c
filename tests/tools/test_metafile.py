# SPDX-License-Identifier: Apache-2.0
"""The committed metafile lists the configs as they are."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_metafile_is_current() -> None:
    spec = importlib.util.spec_from_file_location('tool', ROOT / 'tools' / 'make_metafile.py')
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (ROOT / 'configs' / 'mmpretrain' / 'metafile.yml').read_text()
    assert written == module.metafile(), 'run: python tools/make_metafile.py'
    names = [model['Name'] for model in yaml.safe_load(written)['Models']]
    assert 'mae_prmim_vitb_8xb512-amp-300e_in1k' in names

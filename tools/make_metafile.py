# SPDX-License-Identifier: Apache-2.0
"""Write configs/mmpretrain/metafile.yml: every config with its recipe, in OpenMMLab's format.

A test fails while the file is not what this would write. No entry has weights or results: none of
the recipes has been trained in full.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from mmengine.optim import AmpOptimWrapper
from mmpretrain.registry import MODELS, OPTIM_WRAPPERS

from prmim_adapters.openmmlab.models import framework_settings, is_prmim, load_config, own_ratio
from prmim_adapters.openmmlab.types import is_a, resolved

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs' / 'mmpretrain'
COLLECTION = {
    'Name': 'PR-MIM',
    'Paper': {
        'Title': 'PR-MIM: Delving Deeper into Partial Reconstruction in Masked Image Modeling',
        'URL': 'https://arxiv.org/abs/2411.15746',
    },
    'README': 'README.md',
    'License': 'Apache-2.0',
}


def metafile() -> str:
    """The text of metafile.yml."""
    models = [entry(path) for path in sorted(CONFIGS.glob('*.py'))]
    content = {'Collections': [COLLECTION], 'Models': models}
    return '# Written by tools/make_metafile.py.\n' + yaml.safe_dump(content, sort_keys=False)


def entry(path: Path) -> dict[str, Any]:
    """One config; its name carries the recipe: processes x images each, precision, epochs.

    The number of processes is known where the config says for which total the rate is set.
    """
    config = load_config(path)
    epochs = config.train_cfg.max_epochs
    each = config.train_dataloader.batch_size
    total = config.get('auto_scale_lr', {}).get('base_batch_size')
    batch = f'{total // each}xb{each}' if total else f'b{each}'
    precision = '-amp' if is_a(config.optim_wrapper, OPTIM_WRAPPERS, AmpOptimWrapper) else ''
    metadata = {'Training Data': 'ImageNet-1k', 'Epochs': epochs, 'Batch Size': total}
    if is_prmim(config):
        metadata |= {'Framework': resolved(framework_settings(config), MODELS).__name__}
        metadata |= {'Throw Ratio': own_ratio(config)}
    return {
        'Name': f'{path.stem}_{batch}{precision}-{epochs}e_in1k',
        'Metadata': metadata,
        'In Collection': COLLECTION['Name'],
        'Results': None,
        'Config': str(path.relative_to(ROOT)),
    }


if __name__ == '__main__':
    (CONFIGS / 'metafile.yml').write_text(metafile())

# SPDX-License-Identifier: Apache-2.0
"""What stands around a code block of the documentation: files in the working folder, and names.

A block after ``<!-- with: NAME -->`` runs after the function NAME, a ``python`` block with the names
that it returns. Models are small, so that a block takes seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

DEMO = Path(__file__).parents[1] / 'configs' / 'mmpretrain' / '_demo_' / 'mae_prmim_demo.py'


def timm_encoder() -> dict[str, Any]:
    """``encoder.safetensors`` of an untrained MAE, and a loader of two images."""
    return _exported('encoder.safetensors')


def transformers_encoder() -> dict[str, Any]:
    """The folder ``encoder``, and a loader of two images."""
    return _exported('encoder')


def my_config() -> None:
    """``my_config.py``: the demo's."""
    Path('my_config.py').write_text(f'_base_ = {str(DEMO)!r}\n')


def checkpoint(path: str = 'work_dirs/mae_prmim_vitb/epoch_300.pth') -> None:
    """A checkpoint of an untrained MAE."""
    import torch
    from mmpretrain.registry import MODELS
    from mmpretrain.utils import register_all_modules

    register_all_modules()
    settings = dict(type='MAEViT', arch='deit-tiny', img_size=224, patch_size=16)
    state = {f'backbone.{k}': v for k, v in MODELS.build(dict(settings)).state_dict().items()}
    text = f'model = dict(backbone={settings!r})'
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state_dict=state, meta=dict(cfg=text)), path)


def _exported(out: str) -> dict[str, Any]:
    import torch

    from prmim_adapters.export import export_encoder, export_folder

    checkpoint('epoch_1.pth')
    (export_encoder if Path(out).suffix else export_folder)('epoch_1.pth', out)
    return dict(loader=[(torch.randn(2, 3, 224, 224), torch.tensor([1, 7]))])

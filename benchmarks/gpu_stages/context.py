# SPDX-License-Identifier: Apache-2.0
"""What every stage is told, and small models for those that need no real ones."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs' / 'mmpretrain'

_ARCH = {'embed_dims': 48, 'num_layers': 2, 'num_heads': 2, 'feedforward_channels': 96}
_MAE = {
    'backbone.arch': _ARCH, 'neck.embed_dim': 48, 'neck.decoder_embed_dim': 32,
    'neck.decoder_depth': 2, 'neck.decoder_num_heads': 2,
}  # fmt: skip
_SIMMIM = {'backbone.arch': _ARCH, 'backbone.drop_path_rate': 0.0, 'neck.in_channels': 48}
_IBOT = {
    'backbone.arch': _ARCH, 'backbone.drop_path_rate': 0.0, 'neck.in_channels': 48,
    'neck.hidden_channels': 32, 'neck.out_channels': 64, 'head.out_channels': 64,
}  # fmt: skip
_CONVNEXT = {'depths': [1, 1, 1, 1], 'channels': [4, 8, 16, 32]}
_ITPN = {
    'backbone.arch': {'embed_dims': 48, 'depths': [1, 1, 2], 'num_heads': 2},
    'neck.num_patches': 196, 'neck.embed_dim': 48, 'neck.fpn_dim': 16, 'neck.fpn_depth': 1,
    'neck.decoder_num_heads': 2,
}  # fmt: skip
_BEIT = {'backbone.arch': _ARCH, 'backbone.drop_path_rate': 0.0, 'head.embed_dims': 48}

TINY: dict[str, dict[str, Any]] = {
    'mae_prmim_vitb': _MAE,
    'mae_prmim_vitl': _MAE,
    'simmim_prmim_vitb': _SIMMIM,
    'simmim_prmim_vitb_last_block': _SIMMIM,
    'simmim_prmim_swinb': {
        'backbone.arch': {'embed_dims': 16, 'depths': [1, 2, 1, 1], 'num_heads': [1, 2, 4, 8]},
        'backbone.drop_path_rate': 0.0, 'neck.in_channels': 128,
    },
    'maskfeat_prmim_vitb': {'backbone.arch': _ARCH, 'neck.in_channels': 48},
    'beit_prmim_vitb': {
        **_BEIT, 'head.num_embed': 64, 'target_generator.n_hid': 4,
        'target_generator.vocab_size': 64,
    },
    'beitv2_prmim_vitb': {
        **_BEIT, 'backbone.out_indices': [0, -1], 'neck.backbone_arch': {**_ARCH, 'depth': 2},
        'neck.early_layers': 1, 'neck.num_layers': 1,
        'target_generator.encoder_config.arch': _ARCH,
    },
    'convnextv2_prmim_tiny': {
        'backbone.arch': _CONVNEXT, 'neck.embed_dim': 32, 'neck.decoder_embed_dim': 32,
    },
    'spark_prmim_convnextv2_tiny': {
        'backbone.arch': _CONVNEXT, 'enc_dec_norm_dim': 32, 'neck.feature_dim': 32,
    },
    'ibot_prmim_vits': _IBOT,
    'ibot_prmim_vits_random': _IBOT,
    'milan_prmim_vitb': {
        **_MAE, 'neck.num_patches': 196, 'neck.patch_size': 16, 'neck.predict_feature_dim': 16,
    },
    'cae_prmim_vitb': {
        'backbone.arch': _ARCH, 'neck.num_classes': 64, 'neck.embed_dims': 48, 'neck.num_heads': 2,
        'neck.regressor_depth': 1, 'neck.decoder_depth': 1, 'target_generator.n_hid': 4,
        'target_generator.vocab_size': 64,
    },
    'itpn_prmim_pixel_hivitb': {**_ITPN, 'neck.decoder_embed_dim': 32, 'neck.decoder_depth': 1},
    'itpn_prmim_clip_hivitb': {
        **_ITPN, 'neck.decoder_embed_dim': 48, 'head.embed_dims': 48, 'head.num_embed': 16,
    },
}  # fmt: skip
"""Per config, what makes its model small: image size, patches and masks stay those of the config."""


@dataclass(frozen=True)
class Context:
    """What a stage is told.

    Attributes:
        out: folder of the results.
        dry: on the CPU, with small models and few images.
        device: 'cuda' or 'cpu'.
        deadline: of ``time.time()``, when this stage is ended.
        keep: called with what there is so far, kept should the stage be ended.
    """

    out: Path
    dry: bool
    device: str
    deadline: float
    keep: Callable[[dict[str, Any]], None]

    @property
    def seconds_left(self) -> float:
        """Until this stage is ended."""
        return self.deadline - time.time()

    def config(self, name: str) -> str:
        """Path of a shipped config, or ``module:function``; its small sibling in a dry run."""
        if ':' in name:
            return name.replace(':', ':small_') if self.dry else name
        return self.tiny(name) if self.dry else str(CONFIGS / f'{name}.py')

    def tiny(self, name: str) -> str:
        """Path of a config whose model is small, below the results."""
        path = self.out / 'small_models' / f'{name}.py'
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            from mmengine.config import Config

            config = Config.fromfile(CONFIGS / f'{name}.py')
            framework = config.model.framework
            config.model.pop('neck', None)  # what a config changes of its framework is below
            for key, value in TINY[name].items():
                *parents, last = key.split('.')
                place = framework
                for parent in parents:
                    place = place[parent]
                place[last] = copy.deepcopy(value)
            if 'tokenizer_path' in framework.get('target_generator', {}):
                framework.target_generator.tokenizer_path = str(_small_clip(path.parent))
            settings = config.to_dict().items()
            path.write_text('\n'.join(f'{key} = {value!r}' for key, value in settings) + '\n')
        return str(path)


def _small_clip(folder: Path) -> Path:
    """A file with random weights of a CLIP for images of 224 pixels."""
    import torch
    from mmpretrain.models.utils.clip_generator_helper import CLIP

    path = folder / 'clip.pth'
    if not path.exists():
        vision = {'image_resolution': 224, 'vision_layers': 2, 'vision_width': 64}
        text = {'context_length': 4, 'vocab_size': 8, 'transformer_width': 64}
        layers = {'transformer_heads': 1, 'transformer_layers': 1}
        clip = CLIP(16, vision_patch_size=16, **vision, **text, **layers)
        torch.save(clip.state_dict(), path)
    return path


def optimizer_of(config: str) -> dict[str, Any]:
    """The config's optimizer, as mmengine builds it."""
    from prmim_adapters.openmmlab.models import load_config

    return load_config(config).optim_wrapper.optimizer.to_dict()

# SPDX-License-Identifier: Apache-2.0
"""MACs of full-size models whose adapter is a declaration, at the sizes of their authors' runs.

    PRMIM_UPSTREAM_DIR=... python benchmarks/declared_macs.py NAME [NAME ...]    # up to 15 GB

MACs per image or clip of the loss path, forward by ``prmim_adapters.accounting.count_macs`` (two
counters that must agree), forward and backward by ``training_macs``, and what the closed form says
is saved in forward; random weights, half of all tokens thrown; added to
benchmarks/results/declared.json. Counts do not depend on the machine.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prmim_adapters as prmim
from prmim_adapters.accounting import count_macs, training_macs
from prmim_adapters.accounting.closed_form import predicted_saving
from prmim_adapters.adapters import ADAPTERS

RESULTS = Path(__file__).parent / 'results' / 'declared.json'
CHECKOUTS = Path(__file__).parents[1] / 'tests' / 'contract'  # how they are imported
RATIO = 0.5
Loss = Callable[[nn.Module, tuple[Tensor, ...]], Tensor]
Made = tuple[nn.Module, list[Tensor], Loss]


def masked(length: int, count: int) -> Tensor:
    """(1, L) bool with that many True."""
    return torch.rand(1, length).argsort(1) < count


def returned(model: Any, inputs: tuple[Tensor, ...]) -> Tensor:
    """The loss in what the model returns."""
    out = model(*inputs)
    out = out.loss if hasattr(out, 'loss') else out
    out = out[0] if isinstance(out, tuple) else out
    return out['loss'] if isinstance(out, dict) else out


def predictions(model: Any, inputs: tuple[Tensor, ...]) -> Tensor:
    """Where the loss is the script's: predictions stand for it."""
    out = model(*inputs)
    out = out if isinstance(out, tuple) else (out,)
    return torch.stack([part.sum() for part in out if part.is_floating_point()]).sum()


def videomae(name: str, decoder_depth: int) -> Made:
    """16 frames at 224, tubes of 1,408 of 1,568 tokens masked."""
    module = importlib.import_module('modeling_pretrain')
    model = getattr(module, f'pretrain_videomae_{name}_patch16_224')(decoder_depth=decoder_depth)
    return model, [torch.randn(1, 3, 16, 224, 224), masked(1568, 1408)], predictions


def videomae_v2() -> Made:
    """ViT-B, decoder of four blocks, without the decoder mask."""
    module = importlib.import_module('models.modeling_pretrain')
    model = module.pretrain_videomae_base_patch16_224(decoder_depth=4)
    mask = masked(1568, 1408)
    return model, [torch.randn(1, 3, 16, 224, 224), mask, ~mask], predictions


def mae_pytorch() -> Made:
    module = importlib.import_module('modeling_pretrain')
    model = module.pretrain_mae_base_patch16_224()
    return model, [torch.randn(1, 3, 224, 224), masked(196, 147)], predictions


def mae_st() -> Made:
    """PRETRAIN.md: ViT-L, decoder of four blocks, mask ratio 0.9."""
    module = importlib.import_module('mae_st.models_mae')
    model = module.mae_vit_large_patch16(
        num_frames=16, t_patch_size=2, decoder_depth=4, sep_pos_embed=True, cls_embed=True
    )

    def loss(model: Any, inputs: tuple[Tensor, ...]) -> Tensor:
        latent, mask, restore = model.forward_encoder(inputs[0], 0.9)
        frames = inputs[0][:, :, ::2]
        return model.forward_loss(frames, model.forward_decoder(latent, restore), mask)

    return model, [torch.randn(1, 3, 16, 224, 224)], loss


def hiera(name: str, *size: int) -> Made:
    """Mask ratio 0.6 for images, 0.9 for video."""
    model = getattr(importlib.import_module('hiera.hiera_mae'), f'mae_hiera_base_{name}')()
    ratio = 0.9 if len(size) == 3 else 0.6
    return model, [torch.randn(1, 3, *size)], lambda m, x: m(x[0], mask_ratio=ratio)[0]


def satmae(name: str) -> Made:
    """Ten bands of Sentinel-2 at 96 in three groups, patches of 8, mask ratio 0.75."""
    module = importlib.import_module('models_mae_group_channels')
    model = getattr(module, f'mae_vit_{name}_patch16')(img_size=96, patch_size=8, in_chans=10)
    return model, [torch.randn(1, 10, 96, 96)], returned


def prithvi() -> Made:
    """Prithvi-EO-2.0 300M: four dates of six bands at 224."""
    module = importlib.import_module('terratorch.models.backbones.prithvi_mae')
    model = module.PrithviMAE(
        img_size=224, num_frames=4, in_chans=6, embed_dim=1024, depth=24, num_heads=16
    )
    return model, [torch.randn(1, 6, 4, 224, 224)], returned


def audiomae() -> Made:
    """ViT-B, ten seconds (1,024 x 128), mask ratio 0.8, global decoder of eight blocks."""
    module = importlib.import_module('models_mae')
    model = module.mae_vit_base_patch16(
        img_size=(1024, 128), in_chans=1, audio_exp=True, decoder_mode=0
    )

    def loss(model: Any, inputs: tuple[Tensor, ...]) -> Tensor:
        latent, mask, restore, _ = model.forward_encoder(inputs[0], 0.8)
        return model.forward_loss(inputs[0], model.forward_decoder(latent, restore)[0], mask)

    return model, [torch.randn(1, 1, 1024, 128)], loss


def satmae_temporal() -> Made:
    """Three dates of RGB at 224, patches of 16, mask ratio 0.75."""
    module = importlib.import_module('models_mae_temporal')
    dates = torch.tensor([[[12.0, 3.0, 8.0], [14.0, 7.0, 9.0], [15.0, 1.0, 10.0]]])
    return module.mae_vit_large_patch16(), [torch.randn(1, 3, 3, 224, 224), dates], returned


def satmae_pp() -> Made:
    """ViT-L on RGB at 224, patches of 16, mask ratio 0.75, and its loss at 448."""
    module = importlib.import_module('models_mae')
    inputs = [torch.randn(1, 3, 224, 224), torch.randn(1, 3, 448, 448)]
    return module.mae_vit_large_patch16(), inputs, lambda m, x: sum(m(*x)[:2])


def hpm(file: str) -> Made:
    """ViT-B with the predictor of losses; the teacher's pass is not counted."""
    module = importlib.import_module(file)

    def loss(model: Any, inputs: tuple[Tensor, ...]) -> Tensor:
        out = model(*inputs)
        return out['pix_pred'].sum() + out['loss_pred'].sum()

    model = module.mae_vit_base_patch16_dec512d8b()
    return model, [torch.randn(1, 3, 224, 224), masked(196, 147)], loss


def bootmae() -> Made:
    """ViT-B, 120 of 196 tokens masked; the teacher's pass is not counted."""
    module = importlib.import_module('models.modeling_pretrain_bootmae')
    torch.Tensor.cuda = lambda tensor: tensor  # type: ignore[method-assign, assignment]

    def loss(model: Any, inputs: tuple[Tensor, ...]) -> Tensor:
        pixels, features = model(inputs[0], 120, inputs[1])
        return pixels.sum() + features.sum()

    order = torch.rand(1, 196).argsort(1)
    return module.bootmae_base(), [torch.randn(1, 3, 224, 224), order], loss


def solo_learn() -> Made:
    """ViT-B on one view at 224, decoder of eight blocks as its recipe for ImageNet-100."""
    from omegaconf import OmegaConf

    module = importlib.import_module('solo.methods.mae')
    config = {
        'method': 'mae',
        'backbone': {'name': 'vit_base', 'kwargs': {'img_size': 224, 'patch_size': 16}},
        'data': {
            'dataset': 'custom', 'num_classes': 100, 'num_large_crops': 1, 'num_small_crops': 0
        },
        'max_epochs': 1,
        'optimizer': {
            'name': 'adamw', 'batch_size': 1, 'lr': 1e-4, 'weight_decay': 0.05, 'classifier_lr': 0.1
        },
        'scheduler': {'name': 'none'},
        'method_kwargs': {
            'decoder_embed_dim': 512, 'decoder_depth': 8, 'decoder_num_heads': 16
        },
    }  # fmt: skip

    def loss(model: Any, inputs: tuple[Tensor, ...]) -> Tensor:
        out = model(*inputs)
        return out['pred'].sum() + out['logits'].sum()

    return module.MAE(OmegaConf.create(config)), [torch.randn(1, 3, 224, 224)], loss


def monai() -> Made:
    """ViT-B on volumes of 96 x 96 x 96, patches of 8 (1,728 tokens), otherwise MONAI's defaults."""
    module = importlib.import_module('monai.networks.nets.masked_autoencoder_vit')
    model = module.MaskedAutoEncoderViT(in_channels=1, img_size=96, patch_size=8)
    return model, [torch.randn(1, 1, 96, 96, 96)], predictions


def huggingface(name: str) -> Made:
    """VideoMAE-B and DeiT-B by the library's default configs, Hiera-B at 224."""
    import transformers
    from gpu_stages import transformers_models

    if name == 'deit':
        config = transformers.DeiTConfig()
        config.encoder_stride = config.patch_size
        model = transformers.DeiTForMaskedImageModeling(config)
        inputs: tuple[Tensor, ...] = (torch.randn(1, 3, 224, 224), masked(196, 147))
    else:
        model, inputs = getattr(transformers_models, name)(batch_size=1)
    return model.train(), list(inputs), returned


MODELS: dict[str, tuple[str | None, Callable[[], Made]]] = {
    'VideoMAE-B': ('videomae', lambda: videomae('base', 4)),
    'VideoMAE-L, decoder of 12 blocks': ('videomae', lambda: videomae('large', 12)),
    'VideoMAE V2 B, no decoder mask': ('videomae-v2', videomae_v2),
    'Hiera-B, video': ('hiera', lambda: hiera('16x224', 16, 224, 224)),
    'Hiera-B, images': ('hiera', lambda: hiera('224', 224, 224)),
    'MAE-ST L': ('mae-st', mae_st),
    'SatMAE-B, groups of bands': ('satmae', lambda: satmae('base')),
    'SatMAE-L, groups of bands': ('satmae', lambda: satmae('large')),
    'SatMAE-L, three dates': ('satmae', satmae_temporal),
    'SatMAE++ L, RGB': ('satmae-pp', satmae_pp),
    'Prithvi-EO-2.0 300M': ('terratorch', prithvi),
    'AudioMAE-B, global decoder': ('audiomae', audiomae),
    'MONAI MAE, 96 x 96 x 96': (None, monai),
    'MAE-pytorch B': ('mae-pytorch', mae_pytorch),
    'Hard Patches Mining B, pixel decoder': ('hpm', lambda: hpm('models_mae_learn_loss')),
    'Hard Patches Mining B, feature decoder': (
        'hpm',
        lambda: hpm('models_mae_learn_feature_loss'),
    ),
    'BootMAE-B, pixel decoder': ('bootmae', bootmae),
    'solo-learn MAE-B': ('solo-learn', solo_learn),
    'transformers VideoMAE-B': (None, lambda: huggingface('videomae')),
    'transformers Hiera-B': (None, lambda: huggingface('hiera')),
    'transformers DeiT-B, masked images': (None, lambda: huggingface('deit')),
}


def bootmae_saving() -> float:
    """Two blocks of width 512 on 98 of 197 rows less, whose cross-attention has 77 keys."""
    linear = 98 * (4 + 8 + 2) * 512**2  # attention, MLP, queries and projection of cross-attention
    products = 2 * 512 * (197**2 - 99**2) + 2 * 512 * 98 * 77
    return 2 * (linear + products + 98 * 3 * 5 * 512)


BY_HAND = {
    'models.modeling_pretrain_bootmae.VisionTransformerForMaskedImageModeling': bootmae_saving
}


def figures(made: Made) -> dict[str, Any]:
    """Counts of the framework, and with half of all tokens thrown."""
    model, inputs, loss = made
    batch = dict(inputs=inputs, data_samples=None, call=loss)
    framework = ADAPTERS.find(type(model))
    with torch.no_grad():  # no graph of 1,568 tokens is kept
        before = count_macs(model, batch)
    training = training_macs(model, batch).total
    prmim.attach(model, throw_ratio=RATIO)
    with torch.no_grad():
        after, predicted = count_macs(model, batch), predicted_saving(model, batch)
    training_with = training_macs(model, batch).total
    light = sum(v for k, v in after.by_module.items() if k.endswith('partial.aggregators'))
    saved = before.total - (after.total - light)
    if predicted is None:
        predicted = BY_HAND[framework]()
    return {
        'framework': framework,
        'throw_ratio': RATIO,
        'forward': before.total,
        'forward_with': after.total,
        'light_stage': light,
        'saving': 1 - after.total / before.total,
        'training': training,
        'training_with': training_with,
        'training_saving': 1 - training_with / training,
        'saved': saved,
        'predicted': predicted,
        'closed_form_error': saved / predicted - 1 if predicted else None,
    }


def counted(name: str) -> dict[str, Any]:
    """The figures of one of the models."""
    sys.path.append(str(CHECKOUTS))
    from upstream_checkout import importable

    repository, make = MODELS[name]
    with importable(repository) if repository else nullcontext():
        torch.manual_seed(0)
        return figures(make())


def main() -> None:
    """Count and add to the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('names', choices=MODELS, nargs='+')
    warnings.simplefilter('ignore')
    for name in parser.parse_args().names:
        found = counted(name)
        print(name, json.dumps(found, indent=1))
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        results[name] = found
        ordered = {key: results[key] for key in MODELS if key in results}
        RESULTS.write_text(json.dumps(ordered, indent=1) + '\n')


if __name__ == '__main__':
    main()

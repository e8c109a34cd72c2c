# SPDX-License-Identifier: Apache-2.0
"""Pre-training checkpoints for others: the encoder for timm, bare weights for mmpretrain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..accounting.variants import load_config
from .converter import Converter
from .settings import checked_encoder, read_literal

#: Largest difference of features, relative to their largest value, that counts as equal in fp32.
TOLERANCE = 1e-4


def export_encoder(
    checkpoint: str | Path,
    out: str | Path,
    config: str | Path | None = None,
    encoder: str = 'backbone',
) -> dict[str, Any]:
    """Write the encoder's weights under timm's names, after checking that features agree.

    Args:
        checkpoint: file that mmengine's CheckpointHook wrote.
        out: ``.safetensors`` file to write. ``timm.create_model(name, num_classes=0,
            checkpoint_path=out)`` loads it where timm has a model of these sizes.
        config: training config; by default its text in the checkpoint is read (not executed).
        encoder: dotted name of the encoder in the model, such as ``teacher.module.backbone``.

    Returns:
        ``dict(timm, tensors, parameters, difference)``: class name and arguments of the timm
        model, what was written, and the largest relative difference of features on noise images.

    Raises:
        ValueError: the checkpoint has no such encoder or no config, no converter knows the
            encoder's class, or the features differ; nothing is written then.
    """
    from safetensors.torch import save_file

    content = _load(checkpoint)
    if config is not None:
        settings = encoder_settings(load_config(config).model.to_dict(), encoder)
    else:
        settings = checked_encoder(encoder_settings(_own_config(content, checkpoint), encoder))
    backbone = build_encoder(settings)
    prefix = f'{encoder}.'
    weights = content.get('state_dict', content)
    weights = {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}
    if not weights:
        raise ValueError(f'{checkpoint} has no weights under {encoder!r}; name the encoder in it')
    backbone.load_state_dict(weights)
    model, converted, difference = to_timm(backbone)
    metadata = dict(format='pt', timm_class=type(model).__qualname__, source=str(checkpoint))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in converted.items()}, str(out), metadata)
    return dict(
        timm=type(model).__qualname__,
        tensors=len(converted),
        parameters=sum(v.numel() for v in converted.values()),
        difference=difference,
    )


def export_weights(checkpoint: str | Path, out: str | Path) -> int:
    """Write a checkpoint's model weights and config text, and nothing else of it.

    Optimizer, schedule and log history go, so that the file is small and every loader takes it,
    mmpretrain's fine-tuning configs on torch >= 2.6 among them.

    Args:
        checkpoint: file that mmengine's CheckpointHook wrote.
        out: ``.pth`` file to write.

    Returns:
        Number of tensors written.
    """
    content = _load(checkpoint)
    meta = {k: v for k, v in content.get('meta', {}).items() if isinstance(v, (str, int, float))}
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(meta=meta, state_dict=content['state_dict']), out)
    return len(content['state_dict'])


def _load(checkpoint: str | Path) -> dict[str, Any]:
    from mmengine.runner import CheckpointLoader

    from ..openmmlab import compat

    compat.apply()
    return CheckpointLoader.load_checkpoint(str(checkpoint), map_location='cpu')


def to_timm(backbone: Any) -> tuple[nn.Module, dict[str, Tensor], float]:
    """Convert a backbone of mmpretrain or of this package.

    Returns:
        The timm model with the weights loaded, its state dict, and the largest difference of
        features on noise images relative to the largest feature.

    Raises:
        ValueError: no converter for this class, or the features differ by more than TOLERANCE.
    """
    converter = find_converter(backbone)
    model = converter.build(backbone).eval()
    weights = converter.convert(backbone.state_dict(), backbone)
    initial = model.state_dict()
    weights |= {k: v for k, v in initial.items() if k.startswith(converter.untrained)}
    model.load_state_dict(weights)
    backbone.eval()  # mmpretrain's returns None
    difference = _difference(converter, backbone, model)
    if not difference <= TOLERANCE:
        raise ValueError(
            f'features of {type(backbone).__name__} and timm {type(model).__name__} differ by '
            f'{difference:.2g} of their largest value (allowed: {TOLERANCE:g}); not exported'
        )
    return model, weights, difference


def find_converter(backbone: nn.Module) -> Converter:
    """The converter of the nearest known parent class.

    Raises:
        ValueError: there is none; lists those there are.
    """
    from mmpretrain.models import BEiTViT, SwinTransformer, VisionTransformer

    from ..frameworks.fcmae import FCMAEConvNeXt
    from . import convnext, swin, vit

    known = {
        VisionTransformer: vit.VIT,
        BEiTViT: vit.BEIT,
        SwinTransformer: swin.SWIN,
        FCMAEConvNeXt: convnext.CONVNEXT,
    }
    for cls in type(backbone).__mro__:
        if cls in known:
            return known[cls]
    names = ', '.join(cls.__name__ for cls in known)
    raise ValueError(f'no timm counterpart for {type(backbone).__name__}; known: {names}')


def encoder_settings(model_config: Any, encoder: str = 'backbone') -> dict[str, Any]:
    """What a model config says about the encoder.

    Args:
        model_config: ``model`` of a training config; of type PRMIM or the framework's own.
        encoder: dotted name; the part behind the last dot is looked up in the config.

    Raises:
        ValueError: the config has no such part.
    """
    name = encoder.rsplit('.', 1)[-1]
    parts = model_config.get('framework', model_config) if isinstance(model_config, dict) else None
    if not isinstance(parts, dict) or name not in parts:
        raise ValueError(f'the config has no {name!r} in its model, only {list(parts or ())}')
    return parts[name]


def build_encoder(settings: dict[str, Any]) -> nn.Module:
    """Build an encoder, with random weights.

    Args:
        settings: of the user's own config, or what :func:`checked_encoder` gives: a registry
            imports and calls whatever it names.
    """
    from mmengine.registry import init_default_scope
    from mmpretrain.registry import MODELS

    from .. import openmmlab  # noqa: F401, registers this package's backbones

    init_default_scope('mmpretrain')
    return MODELS.build({k: v for k, v in settings.items() if k != 'init_cfg'})


@torch.no_grad()
def _difference(converter: Converter, backbone: Any, model: Any) -> float:
    height, width = _image_size(backbone)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, height, width, generator=generator)
    ours, theirs = converter.features(backbone, images), model.forward_features(images)
    if ours.shape != theirs.shape:
        return float('inf')
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def _image_size(backbone: Any) -> tuple[int, int]:
    if not hasattr(backbone, 'img_size'):  # Swin
        patch = backbone.patch_embed.projection.kernel_size
        height, width = (n * p for n, p in zip(backbone.patch_resolution, patch, strict=True))
        return height, width
    size = backbone.img_size
    return (size, size) if isinstance(size, int) else tuple(size)


def _own_config(content: dict[str, Any], checkpoint: str | Path) -> Any:
    text = content.get('meta', {}).get('cfg')
    if not isinstance(text, str):
        raise ValueError(f'{checkpoint} holds no config; give the training config with --config')
    return read_literal(text, 'model')

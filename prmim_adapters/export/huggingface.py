# SPDX-License-Identifier: Apache-2.0
"""Encoders as folders that transformers' ``from_pretrained`` reads.

Weights are written under the names that files on the hub have. Those of the modules differ between
versions of transformers; ``from_pretrained`` knows both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..extras import require
from ..openmmlab.models import input_channels
from . import convnext, swin, vit
from .images import noise_images

#: Largest difference of features, relative to their largest value, that counts as equal in fp32.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class HubModel:
    """One class of transformers.

    Attributes:
        name: of the class.
        config: backbone -> settings of the class's config.
        convert: (state dict of the backbone, backbone) -> weights under the hub's names.
        features: (backbone, images (B, C, H, W)) -> what the class gives as last_hidden_state.
        options: of the constructor.
        untrained: prefixes of weights that pre-training does not have.
    """

    name: str
    config: Callable[[Any], dict[str, Any]]
    convert: Callable[[dict[str, Tensor], Any], dict[str, Tensor]]
    features: Callable[[Any, Tensor], Tensor]
    options: tuple[tuple[str, Any], ...] = ()
    untrained: tuple[str, ...] = ()


def hub_model(backbone: Any) -> HubModel:
    """The class of transformers for a backbone.

    Raises:
        ValueError: there is none; lists the backbones that have one.
    """
    from mmpretrain.models import BEiTViT, SwinTransformer, VisionTransformer

    from ..frameworks.fcmae import FCMAEConvNeXt

    known = {VisionTransformer: VIT, SwinTransformer: SWIN, FCMAEConvNeXt: CONVNEXT}
    for cls in type(backbone).__mro__:
        if cls in known:
            return known[cls]
        if cls is BEiTViT:
            break
    names = ', '.join(cls.__name__ for cls in known)
    raise ValueError(
        f'no class of transformers for {type(backbone).__name__}; known: {names} and what derives '
        'from them. For timm, give OUT the ending .safetensors'
    )


def write_folder(backbone: Any, folder: Path) -> dict[str, Any]:
    """Write ``config.json`` and ``model.safetensors``, and read them back.

    Args:
        backbone: of mmpretrain or of this package, trained.
        folder: there already; files of these names are replaced.

    Returns:
        ``dict(transformers, tensors, parameters, difference)``: the class, what was written, and
        the largest relative difference of features on noise images after ``from_pretrained``.

    Raises:
        ValueError: no class for it, or one that lacks what the backbone has; or the features
            differ by more than TOLERANCE.
        ImportError: transformers is not installed.
    """
    from safetensors.torch import save_file

    known = hub_model(backbone)
    cls, config_class = _classes(known.name)
    config = config_class(**known.config(backbone), architectures=[known.name])
    weights = known.convert(backbone.state_dict(), backbone)
    fresh = cls(config, **dict(known.options)).state_dict()
    weights |= {k: v for k, v in fresh.items() if k.startswith(known.untrained)}
    config.save_pretrained(folder)
    tensors = {name: value.contiguous() for name, value in weights.items()}
    save_file(tensors, folder / 'model.safetensors', dict(format='pt'))
    (folder / 'model.safetensors').chmod((folder / 'config.json').stat().st_mode)  # not only ours
    return dict(
        transformers=known.name,
        tensors=len(weights),
        parameters=sum(value.numel() for value in weights.values()),
        difference=_difference(backbone, known, folder),
    )


def _classes(name: str) -> tuple[Any, Any]:
    require('huggingface')
    import transformers

    return getattr(transformers, name), getattr(transformers, name.replace('Model', 'Config'))


@contextmanager
def _without_progress() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@torch.no_grad()
def _difference(backbone: Any, known: HubModel, folder: Path) -> float:
    """Of the features of what ``from_pretrained`` makes of the folder."""
    cls, _ = _classes(known.name)
    with _without_progress():
        model, report = cls.from_pretrained(
            folder, output_loading_info=True, local_files_only=True, **dict(known.options)
        )
    lost = sorted(report['missing_keys']) + sorted(report['unexpected_keys'])
    if lost:
        raise ValueError(f'{known.name} does not take {lost[0]} ({len(lost)} names); not exported')
    backbone.eval()  # mmpretrain's returns None
    images = noise_images(backbone)
    ours = known.features(backbone, images)
    theirs = model.eval()(pixel_values=images).last_hidden_state
    difference = float('inf')
    if ours.shape == theirs.shape:
        difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    if not difference <= TOLERANCE:
        raise ValueError(
            f'features of {type(backbone).__name__} and transformers {known.name} differ by '
            f'{difference:.2g} of their largest value (allowed: {TOLERANCE:g}); not exported'
        )
    return difference


def _renamed(weights: dict[str, Tensor], renames: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """The hub's names for timm's; query, key and value apart."""
    found: dict[str, Tensor] = {}
    for key, value in weights.items():
        for pattern, replacement in renames:
            key = re.sub(pattern, replacement, key)
        if '.qkv.' in key:
            parts = zip(('query', 'key', 'value'), value.chunk(3), strict=True)
            found |= {key.replace('.qkv.', f'.{name}.'): part for name, part in parts}
        else:
            found[key] = value
    return found


_BLOCK = (
    (r'\.norm1\.', '.layernorm_before.'),
    (r'\.norm2\.', '.layernorm_after.'),
    (r'\.attn\.proj\.', '.attention.output.dense.'),
    (r'\.mlp\.fc1\.', '.intermediate.dense.'),
    (r'\.mlp\.fc2\.', '.output.dense.'),
    (r'^patch_embed\.proj\.', 'embeddings.patch_embeddings.projection.'),
    (r'^norm\.', 'layernorm.'),
)
_VIT = (
    *_BLOCK,
    (r'^blocks\.', 'encoder.layer.'),
    (r'\.attn\.', '.attention.attention.'),
    (r'^cls_token$', 'embeddings.cls_token'),
    (r'^pos_embed$', 'embeddings.position_embeddings'),
)
_SWIN = (
    *_BLOCK,
    (r'^patch_embed\.norm\.', 'embeddings.norm.'),
    (r'\.attn\.', '.attention.self.'),
    (r'^layers\.', 'encoder.layers.'),
)
_CONVNEXT = (
    (r'^stem\.0\.', 'embeddings.patch_embeddings.'),
    (r'^stem\.1\.', 'embeddings.layernorm.'),
    (r'\.downsample\.', '.downsampling_layer.'),
    (r'\.blocks\.', '.layers.'),
    (r'\.conv_dw\.', '.dwconv.'),
    (r'\.norm\.', '.layernorm.'),
    (r'\.mlp\.fc1\.', '.pwconv1.'),
    (r'\.mlp\.fc2\.', '.pwconv2.'),
    (r'\.mlp\.grn\.', '.grn.'),
    (r'^stages\.', 'encoder.stages.'),
)


def _side(size: Sequence[int]) -> int | list[int]:
    """One number for a square, as transformers needs it to resize positions."""
    return size[0] if size[0] == size[1] else list(size)


def _vit_config(backbone: Any) -> dict[str, Any]:
    layer = backbone.layers[0]
    if backbone.cls_token is None or hasattr(layer.attn.gamma1, 'weight'):
        raise ValueError("transformers' ViT needs a class token, and has no layer scale")
    return dict(
        image_size=_side(backbone.img_size),
        patch_size=_side(backbone.patch_embed.projection.kernel_size),
        num_channels=input_channels(backbone),
        hidden_size=backbone.embed_dims,
        num_hidden_layers=backbone.num_layers,
        num_attention_heads=layer.attn.num_heads,
        intermediate_size=layer.ffn.feedforward_channels,
        layer_norm_eps=layer.ln1.eps,
        qkv_bias=layer.attn.qkv.bias is not None,
    )


def _swin_config(backbone: Any) -> dict[str, Any]:
    block = backbone.stages[0].blocks[0]
    if backbone.use_abs_pos_embed or block.attn.pad_small_map:
        raise ValueError("transformers' Swin takes no use_abs_pos_embed and no pad_small_map here")
    patch = backbone.patch_embed.projection.kernel_size
    return dict(
        image_size=_side([n * p for n, p in zip(backbone.patch_resolution, patch, strict=True)]),
        patch_size=patch[0],
        num_channels=input_channels(backbone),
        embed_dim=backbone.embed_dims,
        depths=list(backbone.depths),
        num_heads=list(backbone.num_heads),
        window_size=block.attn.window_size,
        mlp_ratio=block.ffn.feedforward_channels / backbone.embed_dims,
        layer_norm_eps=block.norm1.eps,
    )


def _convnext_config(backbone: Any) -> dict[str, Any]:
    return dict(
        image_size=backbone.img_size[0],
        patch_size=backbone.downsample_layers[0][0].kernel_size[0],
        num_channels=input_channels(backbone),
        depths=list(backbone.depths),
        hidden_sizes=list(backbone.channels),
    )


def _convnext_weights(state_dict: dict[str, Tensor], backbone: Any) -> dict[str, Tensor]:
    renamed = _renamed(convnext.convnext_keys(state_dict, backbone), _CONVNEXT)
    return {k: v.view(1, 1, 1, -1) if '.grn.' in k else v for k, v in renamed.items()}


VIT = HubModel(
    'ViTModel',
    _vit_config,
    lambda state_dict, backbone: _renamed(vit.vit_keys(state_dict, backbone), _VIT),
    vit.all_tokens,
    (('add_pooling_layer', False),),
)
SWIN = HubModel(
    'SwinModel',
    _swin_config,
    lambda state_dict, backbone: _renamed(
        _merging_before(swin.swin_keys(state_dict, backbone)), _SWIN
    ),
    lambda backbone, images: swin.last_map(backbone, images).flatten(1, 2),
    (('add_pooling_layer', False),),
)
#: Pre-training has no final norm; that of transformers stays at its initial value.
CONVNEXT = HubModel(
    'ConvNextV2Model',
    _convnext_config,
    _convnext_weights,
    convnext.unmasked_map,
    untrained=('layernorm.',),
)


def _merging_before(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm has the merging of patches in the stage after, transformers in the one before."""

    def moved(key: str) -> str:
        before = re.sub(r'^layers\.(\d+)', lambda found: f'layers.{int(found[1]) - 1}', key)
        return before if '.downsample.' in key else key

    return {moved(key): value for key, value in weights.items()}

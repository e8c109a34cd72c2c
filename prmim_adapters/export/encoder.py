# SPDX-License-Identifier: Apache-2.0
"""Pre-training checkpoints for others: the encoder for timm, bare weights for mmpretrain."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..openmmlab.checkpoints import one_line, read_checkpoint, weights_of
from ..openmmlab.models import framework_settings, load_config, scope_of
from ..openmmlab.prmim import overridden
from .card import Card
from .converter import Converter
from .huggingface import hub_model, write_folder
from .images import noise_images
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

    A model card stands beside them, under the name of ``out`` with the ending ``.md``.

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
        ValueError: the checkpoint is damaged, has no such encoder or no config, no converter
            knows the encoder's class, or the features differ; nothing is written then.
    """
    from safetensors.torch import save_file

    backbone, card = _trained_encoder(checkpoint, config, encoder)
    model, converted, difference = to_timm(backbone)
    metadata = dict(format='pt', timm_class=type(model).__qualname__, source=str(checkpoint))
    tensors = {k: v.contiguous() for k, v in converted.items()}
    _write(out, lambda path: save_file(tensors, path, metadata))
    text = card.text(f'timm `{type(model).__qualname__}`', find_converter(backbone).untrained)
    _write(Path(out).with_suffix('.md'), lambda path: Path(path).write_text(text))
    return dict(
        timm=type(model).__qualname__,
        tensors=len(converted),
        parameters=sum(v.numel() for v in converted.values()),
        difference=difference,
    )


def export_folder(
    checkpoint: str | Path,
    out: str | Path,
    config: str | Path | None = None,
    encoder: str = 'backbone',
) -> dict[str, Any]:
    """Write the encoder as a folder for transformers' ``from_pretrained``, with a model card.

    What ``from_pretrained`` makes of the folder is compared with the encoder before anything
    stands at ``out``.

    Args:
        checkpoint: as in :func:`export_encoder`.
        out: folder; ``config.json``, ``model.safetensors`` and ``README.md`` in it are replaced.
        config: as in :func:`export_encoder`.
        encoder: as in :func:`export_encoder`.

    Returns:
        ``dict(transformers, tensors, parameters, difference)``.

    Raises:
        ValueError: as in :func:`export_encoder`, or transformers has no such encoder.
        ImportError: transformers is not installed.
    """
    backbone, card = _trained_encoder(checkpoint, config, encoder)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{out.name}.', dir=out.parent) as folder:
        report = write_folder(backbone, Path(folder))
        name = f'transformers `{report["transformers"]}`'
        text = card.text(name, hub_model(backbone).untrained, 'transformers')
        Path(folder, 'README.md').write_text(text)
        out.mkdir(exist_ok=True)
        for path in Path(folder).iterdir():
            path.replace(out / path.name)
    return report


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
    content = read_checkpoint(checkpoint)
    weights = weights_of(content, checkpoint)
    meta = {k: v for k, v in _meta(content).items() if isinstance(v, (str, int, float))}
    _write(out, lambda path: torch.save(dict(meta=meta, state_dict=weights), path))
    return len(weights)


def _trained_encoder(
    checkpoint: str | Path, config: str | Path | None, encoder: str
) -> tuple[nn.Module, Card]:
    """The encoder with its weights, and what the checkpoint says of its training."""
    content = read_checkpoint(checkpoint)
    weights = _encoder_weights(content, checkpoint, encoder)
    if config is not None:
        backbone = build_encoder(load_config(config), encoder)
    else:
        backbone = _build_in_bounds(
            _own_settings(content, checkpoint, encoder), weights, checkpoint
        )
    try:
        backbone.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f'{checkpoint}: the weights under {encoder!r} are not those of its config: '
            f'{one_line(error)}'
        ) from error
    return backbone, Card(checkpoint, _meta(content), encoder, backbone)


def _meta(content: Any) -> dict[Any, Any]:
    meta = content.get('meta') if isinstance(content, dict) else None
    return meta if isinstance(meta, dict) else {}


def _encoder_weights(content: Any, checkpoint: str | Path, encoder: str) -> dict[str, Tensor]:
    prefix = f'{encoder}.'
    weights = weights_of(content, checkpoint)
    weights = {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}
    # The light stage is the encoder's where that is the heavy network, and of no use without masks.
    weights = {k: v for k, v in weights.items() if not k.startswith('partial.aggregators.')}
    if not weights:
        parts = sorted({name.partition('.')[0] for name in weights_of(content, checkpoint)})
        raise ValueError(
            f'{checkpoint} has no weights under {encoder!r}: name its encoder (--encoder); it has '
            f'{", ".join(parts[:10])}'
        )
    return weights


def _write(out: str | Path, save: Callable[[str], object]) -> None:
    """Write beside the target, then rename: what was there stays until the new file is whole."""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f'.{out.name}.{os.getpid()}')
    try:
        save(str(partial))
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


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


def encoder_settings(framework: Any, encoder: str = 'backbone') -> dict[str, Any]:
    """What the model config of a framework says about the encoder.

    Args:
        framework: model config of the framework itself.
        encoder: dotted name; the part behind the last dot is looked up in the config.

    Raises:
        ValueError: the config has no such part.
    """
    name = encoder.rsplit('.', 1)[-1]
    if not isinstance(framework, dict) or name not in framework:
        found = list(framework) if isinstance(framework, dict) else []
        raise ValueError(f'the config has no {name!r} in its model, only {found}')
    return framework[name]


def build_encoder(config: Config, encoder: str = 'backbone') -> nn.Module:
    """Build the encoder of a training config of the user's own, with random weights.

    A registry imports and calls whatever a config names, so none of a stranger's comes here.

    Raises:
        ValueError: the config's model has no such part.
    """
    with scope_of(config):
        return _built(encoder_settings(framework_settings(config), encoder))


def _built(settings: dict[str, Any]) -> nn.Module:
    from mmpretrain.registry import MODELS

    return MODELS.build({k: v for k, v in settings.items() if k != 'init_cfg'})


def _build_in_bounds(
    settings: dict[str, Any], weights: dict[str, Tensor], checkpoint: str | Path
) -> nn.Module:
    """Build what a stranger's config describes, with not much more memory than its weights take.

    Raises:
        ValueError: it does not build, or grows beyond that.
    """
    try:
        with _Bounded(16 * sum(v.nbytes for v in weights.values()) + 2**28):
            return _built(settings)
    except Exception as error:  # of whatever class's constructor the settings name
        raise ValueError(
            f'{checkpoint}: the encoder that its config describes does not build: '
            f'{type(error).__name__}: {one_line(error)}'
        ) from error


class _Bounded(TorchDispatchMode):
    """Stops building once its operators have returned more than ``limit`` bytes.

    Large tensors are not touched, and so take no memory, before the operator after the one that
    makes them.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.left = limit

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.left -= 2**10 + (result.nbytes if isinstance(result, Tensor) else 0)
        if self.left < 0:
            raise ValueError('it is far larger than the weights in the file')
        return result


@torch.no_grad()
def _difference(converter: Converter, backbone: Any, model: Any) -> float:
    images = noise_images(backbone)
    ours, theirs = converter.features(backbone, images), model.forward_features(images)
    if ours.shape != theirs.shape:
        return float('inf')
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def _own_settings(content: Any, checkpoint: str | Path, encoder: str) -> dict[str, Any]:
    """What the config in the checkpoint says about the encoder, and nothing that is not known."""
    text = _meta(content).get('cfg')
    if not isinstance(text, str):
        raise ValueError(f'{checkpoint} holds no config; give the training config with --config')
    try:
        return checked_encoder(encoder_settings(_framework_in(text), encoder))
    except ValueError as error:
        raise ValueError(f'{checkpoint}: {error}') from error


def _framework_in(text: str) -> Any:
    """The model config of the framework in a config's text, without asking any registry."""
    model = read_literal(text, 'model')
    framework = model.get('framework') if isinstance(model, dict) else None
    if not isinstance(framework, dict):
        return model
    return overridden(framework, {k: v for k, v in model.items() if k in framework and k != 'type'})

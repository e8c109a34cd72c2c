# SPDX-License-Identifier: Apache-2.0
"""What throwing saves, from layer shapes and token counts: a prediction that no counter made.

Units and conventions are those of :mod:`.flops`: 1 multiply-add = 1 MAC, 5 per element of a
LayerNorm. A light stage is not part of a prediction: subtract its own count before comparing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..adapters import ADAPTERS, Declaration, attachment_of, partial_of
from ..packed.sequences import plan_calls
from .loss_path import Batch


@dataclass(frozen=True)
class Tokens:
    """Token counts of one image.

    Attributes:
        length: L, positions of the patch grid. masked: M. thrown: T.
        predicted: positions whose prediction the loss needs.
        filling: tokens by which attention pads the image's sequence.
    """

    length: int
    masked: int
    thrown: int
    predicted: int
    filling: int = 0


def predicted_saving(model: nn.Module, batch: Batch) -> float | None:
    """Forward MACs per image that the attached model saves against its framework.

    The light stage's own cost left out.

    Args:
        model: attached.
        batch: preprocessed; its masks are looked at where the data make them.

    Returns:
        The prediction, or None where there is no formula: an adapter of your own.
    """
    attachment = attachment_of(model)
    formula, adapter = FORMULAS.get(attachment.framework), ADAPTERS.get(attachment.framework)
    if partial_of(model).num_thrown == 0:
        return 0.0  # the framework itself
    if formula is None:
        return declared(model, adapter) if isinstance(adapter, Declaration) else None
    counts = [token_counts(model, masked) for masked in _masked_counts(model, batch)]
    if partial_of(model).ragged:
        counts = _padded(counts, partial_of(model).num_prefix)
    images = len(batch['data_samples'] or [0])
    if attachment.seams.num_masked is not None:
        images = 1
    return sum(formula(model, tokens) for tokens in counts) / images


def token_counts(model: nn.Module, masked: int) -> Tokens:
    """Counts of an image with M masked tokens, as the attached model partitions it."""
    partial = partial_of(model)
    length = partial.grid[0] * partial.grid[1]
    thrown = partial.num_thrown
    if partial.ragged:
        thrown = int(partial.thrown_counts(torch.tensor(masked)))
    predicted = masked if partial.supervises_thrown else masked - thrown
    return Tokens(length, masked, thrown, predicted)


def _masked_counts(model: nn.Module, batch: Batch) -> list[int]:
    """M of every masked view of the batch."""
    fixed = attachment_of(model).seams.num_masked
    if fixed is not None:
        return [fixed]
    partial = partial_of(model)
    counts = []
    for sample in batch['data_samples']:
        mask = torch.as_tensor(sample.mask)
        share = (mask.flatten(1) if partial.ragged else mask.flatten()[None]).float().mean(1)
        counts += (share * partial.grid[0] * partial.grid[1]).round().int().tolist()
    return counts


def _padded(counts: list[Tokens], prefix: int) -> list[Tokens]:
    """With what attention pads: longer sequences come first, as in ``partition_ragged``."""
    lengths = [prefix + tokens.length - tokens.thrown for tokens in counts]
    widths = {}
    for call in plan_calls(sorted(lengths, reverse=True), torch.device('cpu')):
        widths.update(dict.fromkeys(call.lengths, call.width))
    pairs = zip(counts, lengths, strict=True)
    return [replace(tokens, filling=widths[length] - length) for tokens, length in pairs]


def block_macs(blocks: nn.Module, before: int, after: int) -> float:
    """Transformer blocks on fewer tokens: linear layers, LayerNorms, two attention products."""
    # MONAI's blocks build the norm of a cross-attention that they have not.
    idle = {
        getattr(module, 'norm_cross_attn', None)
        for module in blocks.modules()
        if not getattr(module, 'with_cross_attention', True)
    }
    total = 0.0
    for module in blocks.modules():
        if isinstance(module, nn.Linear):
            total += module.weight.numel() * (before - after)
        elif isinstance(module, nn.LayerNorm) and module not in idle:
            total += 5 * module.normalized_shape[-1] * (before - after)
        elif isinstance(module, nn.MultiheadAttention):  # its input projection is no module
            total += 3 * module.embed_dim**2 * (before - after)
        total += 2 * _attention_width(module) * (before**2 - after**2)
    return total


def _attention_width(module: nn.Module) -> int:
    """Channels of the queries that a self-attention compares with all tokens; 0 of other modules."""
    if isinstance(module, nn.MultiheadAttention):
        return module.embed_dim
    for name, parts in (('qkv', 3), ('query', 1), ('q_proj', 1), ('q', 1)):
        projection = getattr(module, name, None)
        if isinstance(projection, nn.Linear):
            return projection.out_features // parts
    return 0


def declared(model: nn.Module, declaration: Declaration) -> float | None:
    """An adapter by a declaration: its blocks skip thrown tokens, everything else is as it was.

    None where blocks look at tokens of another network, whose number their shapes do not say.
    """
    partial = partial_of(model)
    before = partial.num_prefix + partial.grid[0] * partial.grid[1]
    blocks = model.get_submodule(declaration.blocks_path)
    if any(hasattr(module, 'kv') for module in blocks.modules()):
        return None
    return block_macs(blocks, before, before - partial.num_thrown)


def decoder(model: Any, tokens: Tokens) -> float:
    """MAE, MFF, EVA: the decoder's blocks skip thrown tokens, its prediction visible ones."""
    neck, prefix = model.neck, partial_of(model).num_prefix
    before, after = tokens.length + 1, prefix + tokens.length - tokens.thrown
    blocks = nn.ModuleList([neck.decoder_blocks, neck.decoder_norm])
    prediction = neck.decoder_pred.weight.numel() * (before - tokens.predicted)
    return block_macs(blocks, before, after) + prediction


def encoder(model: Any, tokens: Tokens) -> float:
    """MaskFeat: the encoder skips thrown tokens, the linear neck visible ones."""
    neck = sum(m.weight.numel() for m in model.neck.modules() if isinstance(m, nn.Linear))
    return _vit(model, tokens) + neck * (tokens.length - tokens.predicted)


def simmim(model: Any, tokens: Tokens) -> float:
    """SimMIM: ViT or Swin; the neck is a 1x1 convolution."""
    neck = sum(m.weight.numel() for m in model.neck.modules() if isinstance(m, nn.Conv2d))
    swin = hasattr(model.backbone, 'stages')
    saving = _swin(model.backbone, tokens) if swin else _vit(model, tokens)
    return saving + neck * (tokens.length - tokens.predicted)


def beit(model: Any, tokens: Tokens) -> float:
    """BEiT: the encoder skips thrown tokens. BEiTv2: its neck too, and there are two losses."""
    saving, heads = _vit(model, tokens), 1
    if model.with_neck:
        before = tokens.length + 1
        saving += block_macs(model.neck.patch_aggregation, before, before - tokens.thrown)
        saving += 2 * 5 * model.backbone.embed_dims * tokens.thrown  # the norm of both inputs
        heads = 2
    head = sum(m.weight.numel() for m in model.head.modules() if isinstance(m, nn.Linear))
    return saving + heads * head * (tokens.masked - tokens.predicted)


def milan(model: Any, tokens: Tokens) -> float:
    """MILAN: the decoder queries for kept tokens, with cls and present ones as keys."""
    neck, thrown = model.neck, tokens.thrown
    keys, queries = tokens.length + 1, tokens.masked
    pairs = queries * keys - (queries - thrown) * (keys - thrown)
    blocks = _per_token(neck.decoder_blocks) * thrown
    blocks += len(neck.decoder_blocks) * 2 * neck.mask_token.shape[-1] * pairs
    prediction = neck.decoder_pred.weight.numel() * (tokens.masked - tokens.predicted)
    return blocks + _per_token(neck.decoder_norm) * thrown + prediction


def cae(model: Any, tokens: Tokens) -> float:
    """CAE: as MILAN, without cls, in the regressor; the decoder runs on kept tokens."""
    neck, thrown, masked = model.neck, tokens.thrown, tokens.masked
    pairs = masked * tokens.length - (masked - thrown) * (tokens.length - thrown)
    regressor = nn.ModuleList([neck.regressors, neck.norm_regressor, neck.norm_decoder])
    saving = _per_token(regressor) * thrown + len(neck.regressors) * 2 * neck.embed_dim * pairs
    saving += block_macs(neck.decoders, masked, masked - thrown)
    return saving + _per_token(nn.ModuleList([neck.head])) * (masked - tokens.predicted)


_PYRAMID = (
    (1, ('align_dim_16tofpn', 'split_16to8', 'fpn_modules.0', 'decoder_embed.0', 'norm')),
    (4, ('align_dim_16to8', 'block_16to8', 'split_8to4', 'fpn_modules.1', 'decoder_embed.1')),
    (16, ('align_dim_8to4', 'block_8to4', 'fpn_modules.2', 'decoder_embed.2')),
)
"""Modules of iTPN's neck that run at 1, 4 and 16 positions of a token."""


def itpn(model: Any, tokens: Tokens) -> float:
    """iTPN: blocks of the decoder; or of the encoder, and the pyramid of visible tokens."""
    backbone, neck, length = model.backbone, model.neck, tokens.length
    if backbone.reconstruction_type == 'pixel':
        return block_macs(neck.decoder_blocks, length, length - tokens.thrown)
    saving = block_macs(
        backbone.blocks[-backbone.num_main_blocks :], length, length - tokens.thrown
    )
    modules = dict(neck.named_modules())
    for positions, names in _PYRAMID:
        macs = sum(_per_token(modules[name]) for name in names if name in modules)
        saving += positions * macs * (length - tokens.predicted)
    return saving + model.head.cls_head.weight.numel() * (tokens.masked - tokens.predicted)


def fcmae(model: Any, tokens: Tokens) -> float:
    """FCMAE: projection of visible units, blocks on present ones, prediction of masked ones."""
    neck = model.neck
    saving = neck.proj.weight.numel() * tokens.masked
    saving += neck.pred.weight.numel() * (tokens.length - tokens.predicted)
    for module in neck.decoder.modules():
        if isinstance(module, nn.Linear):
            saving += module.weight.numel() * tokens.thrown
        elif isinstance(module, nn.LayerNorm):
            saving += 5 * module.normalized_shape[-1] * tokens.thrown
    return saving


def ibot(model: Any, tokens: Tokens) -> float:
    """iBOT, one masked view: the student's encoder skips thrown tokens."""
    mlp = (m.weight.numel() for m in model.neck.mlp if isinstance(m, nn.Linear))
    per_token = sum(mlp) + model.neck.last_layer.weight_v.numel()
    return _vit(model, tokens) + per_token * (tokens.masked - tokens.predicted)


def spark(model: Any, tokens: Tokens) -> float:
    """SparK: projections and decoder work per position; a unit has 4**i of them at scale i."""
    macs = sum(_per_position(p) * 4**i for i, p in enumerate(model.enc_dec_projectors))
    for i, module in enumerate(model.neck.decoder):
        macs += module.upsample.weight.numel() * 4**i
        macs += _per_position(module.conv_blocks) * 4 ** (i + 1)
    macs += _per_position(model.neck.proj) * 4 ** len(model.neck.decoder)
    return macs * tokens.thrown


FORMULAS: dict[str, Callable[[Any, Tokens], float]] = {
    'mmpretrain.models.selfsup.mae.MAE': decoder,
    'mmpretrain.models.selfsup.eva.EVA': decoder,
    'mmpretrain.models.selfsup.maskfeat.MaskFeat': encoder,
    'mmpretrain.models.selfsup.simmim.SimMIM': simmim,
    'mmpretrain.models.selfsup.beit.BEiT': beit,
    'mmpretrain.models.selfsup.milan.MILAN': milan,
    'mmpretrain.models.selfsup.cae.CAE': cae,
    'mmpretrain.models.selfsup.itpn.iTPN': itpn,
    'mmpretrain.models.selfsup.spark.SparK': spark,
    'prmim_adapters.frameworks.fcmae.FCMAE': fcmae,
    'prmim_adapters.frameworks.ibot.IBOT': ibot,
}
"""Key in ``ADAPTERS`` to formula ``(model, tokens) -> MACs``; add your adapter's."""


def _vit(model: Any, tokens: Tokens) -> float:
    """All blocks but those that run on all tokens; the norm after them, too, if there are none."""
    backbone, dense = model.backbone, partial_of(model).last_blocks
    before = tokens.length + 1
    blocks = list(backbone.layers)[: len(backbone.layers) - dense]
    if backbone.final_norm and not dense:
        blocks.append(backbone.ln1)
    after = before - tokens.thrown
    filling = (after + tokens.filling) ** 2 - after**2
    skipping = nn.ModuleList(blocks)
    padding = 2 * sum(_attention_width(m) for m in skipping.modules()) * filling
    return block_macs(skipping, before, after) - padding


def _swin(backbone: Any, tokens: Tokens) -> float:
    """Per token everything but attention, whose windows stay dense; thrown are whole units.

    Upstream also projects the zeros that pad a map to whole windows; packed tokens have none.
    """
    height, width = backbone.patch_resolution
    side = 2 ** (len(backbone.stages) - 1)
    embedding = sum(p.numel() for p in backbone.patch_embed.projection.parameters() if p.dim() > 1)
    if backbone.patch_embed.norm is not None:
        embedding += 5 * backbone.embed_dims
    saving = float(embedding * tokens.masked * side**2)
    for stage in backbone.stages:
        saving += _per_token(stage.blocks) * tokens.thrown * side**2
        for block in stage.blocks:
            window, msa = block.attn.window_size, block.attn.w_msa
            padded = -(-height // window) * -(-width // window) * window**2
            saving += (padded - height * width) * _per_token(nn.ModuleList([msa.qkv, msa.proj]))
        if stage.downsample is not None:
            side, height, width = side // 2, height // 2, width // 2
            saving += _per_token(stage.downsample) * tokens.thrown * side**2
    last = getattr(backbone, f'norm{len(backbone.stages) - 1}')
    return saving + _per_token(last) * tokens.thrown


def _per_position(module: nn.Module) -> int:
    """MACs of the convolutions and batch norms in ``module`` at one position of their output."""
    convolutions = sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Conv2d))
    norms = (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return convolutions + sum(5 * norm.num_features for norm in norms)


def _per_token(module: nn.Module) -> int:
    linear = sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))
    norms = sum(m.normalized_shape[-1] for m in module.modules() if isinstance(m, nn.LayerNorm))
    return linear + 5 * norms

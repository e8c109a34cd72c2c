# SPDX-License-Identifier: Apache-2.0
"""MACs of full-size original and Hugging Face models with and without partial reconstruction.

    python benchmarks/upstream_macs.py UPSTREAM_DIR NAME    # a process each: `models` is in three

Forward MACs per image of the loss path by ``prmim_adapters.accounting.count_macs`` (two counters that
must agree), random weights, added to benchmarks/results/upstream.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

import torch
from torch import nn

import prmim_adapters as prmim
from prmim_adapters.accounting import count_macs
from prmim_adapters.upstream.shims import SHIMS

RESULTS = Path(__file__).parent / 'results' / 'upstream.json'
BATCH = 2


def masks(masked: int, side: int, scale: int = 1) -> torch.Tensor:
    """(B, side * scale, side * scale) int64."""
    order = torch.rand(BATCH, side**2).argsort(1)
    mask = torch.zeros_like(order).scatter(1, order[:, :masked], 1).view(-1, side, side)
    return mask.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def mae(name: str) -> tuple[nn.Module, list[torch.Tensor]]:
    """An original MAE, norm_pix_loss, mask ratio 0.75."""
    import models_mae

    return getattr(models_mae, name)(norm_pix_loss=True), [torch.randn(BATCH, 3, 224, 224)]


def simmim_vit() -> tuple[nn.Module, list[torch.Tensor]]:
    """configs/vit_base__800ep."""
    from models.simmim import SimMIM, VisionTransformerForSimMIM

    encoder = VisionTransformerForSimMIM(
        num_classes=0,
        qkv_bias=True,
        init_values=0.1,
        use_abs_pos_emb=False,
        use_shared_rel_pos_bias=True,
        use_mean_pooling=False,
    )
    return SimMIM(encoder, 16), [torch.randn(BATCH, 3, 224, 224), masks(30, 7, 2)]


def simmim_swin() -> tuple[nn.Module, list[torch.Tensor]]:
    """configs/swin_base__100ep."""
    from models.simmim import SimMIM, SwinTransformerForSimMIM

    encoder = SwinTransformerForSimMIM(
        img_size=192,
        embed_dim=128,
        depths=[2, 2, 18, 2],
        num_heads=[4, 8, 16, 32],
        window_size=6,
        num_classes=0,
    )
    return SimMIM(encoder, 32), [torch.randn(BATCH, 3, 192, 192), masks(22, 6, 8)]


class StudentCrops(nn.Module):
    """iBOT's student on global crops; the sum of its outputs stands for the loss."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Crops (B, 3, 224, 224), mask (B, 14, 14)."""
        cls, patches = self.student([x], mask=[mask])
        return cls.sum() + patches.sum()


def ibot(masked: int) -> tuple[nn.Module, list[torch.Tensor]]:
    """ViT-S/16, head of 8192, ``masked`` of 196 tokens masked."""
    import utils
    from models.head import iBOTHead
    from models.vision_transformer import vit_small

    backbone = vit_small(return_all_tokens=True, masked_im_modeling=True)
    head = iBOTHead(384, 8192, shared_head=True)
    nn.utils.remove_weight_norm(head.last_layer)  # which torch cannot copy, as the counters do
    student = utils.MultiCropWrapper(backbone, head)
    return StudentCrops(student), [torch.randn(BATCH, 3, 224, 224), masks(masked, 14).bool()]


def fcmae(name: str) -> tuple[nn.Module, list[torch.Tensor]]:
    """FCMAE, mask ratio 0.6, encoder through the stand-in for MinkowskiEngine."""
    from models import fcmae as module

    return getattr(module, name)(norm_pix_loss=True), [torch.randn(BATCH, 3, 224, 224)]


def huggingface(name: str) -> tuple[nn.Module, list[torch.Tensor]]:
    """The default configuration of each, which is the base model (Swin: tiny)."""
    import transformers

    image = torch.randn(BATCH, 3, 224, 224)
    if name == 'vitmae':
        return transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig()), [image]
    if name == 'vit':
        model = transformers.ViTForMaskedImageModeling(transformers.ViTConfig())
        return model, [image, masks(30, 7, 2).flatten(1).bool()]
    config = transformers.SwinConfig(encoder_stride=32)
    mask = masks(30, 7, 8).flatten(1).bool()
    return transformers.SwinForMaskedImageModeling(config), [image, mask]


MODELS = {
    'mae-vit-base': ('mae', lambda: mae('mae_vit_base_patch16')),
    'mae-vit-large': ('mae', lambda: mae('mae_vit_large_patch16')),
    'simmim-vit-base': ('SimMIM', simmim_vit),
    'simmim-swin-base': ('SimMIM', simmim_swin),
    'ibot-vit-small-global-crop': ('ibot', lambda: ibot(147)),
    'ibot-vit-small-global-crop-mask-0.3': ('ibot', lambda: ibot(59)),
    'convnextv2-base': ('ConvNeXt-V2', lambda: fcmae('convnextv2_base')),
    'convnextv2-atto': ('ConvNeXt-V2', lambda: fcmae('convnextv2_atto')),
    'huggingface-vitmae-base': (None, lambda: huggingface('vitmae')),
    'huggingface-vit-base': (None, lambda: huggingface('vit')),
    'huggingface-swin-tiny': (None, lambda: huggingface('swin')),
}


def main() -> None:
    """Count one model and add it to the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('upstream', type=Path)
    parser.add_argument('name', choices=MODELS)
    arguments = parser.parse_args()
    warnings.simplefilter('ignore')
    folder, make = MODELS[arguments.name]
    if folder:
        sys.path.insert(0, str(arguments.upstream.resolve() / folder))
        for name in ('torch-six', 'numpy-float', 'timm-block', 'minkowski'):
            SHIMS[name](arguments.upstream / folder / 'main.py', [])
    torch.manual_seed(0)
    model, inputs = make()
    batch = dict(inputs=inputs if len(inputs) > 1 else inputs[0], data_samples=None)
    target = getattr(model, 'student', model)
    before = count_macs(model, batch)
    figures = {'images': BATCH, 'unit': 'GMACs per image', 'upstream': before.total / 1e9}
    for label, options in (
        ('cross_attention', {}),
        ('without_aggregator', {'aggregator': None}),
    ):
        if label == 'without_aggregator' and folder == 'ibot':
            continue
        prmim.attach(target, throw_ratio=0.5, **options)
        after = count_macs(model, batch)
        prmim.detach(target)
        light = sum(v for k, v in after.by_module.items() if k.endswith('partial.aggregators'))
        figures[label] = {
            'total': after.total / 1e9,
            'aggregation': light / 1e9,
            'change_percent': 100 * (after.total / before.total - 1),
            'change_percent_without_aggregation': 100 * ((after.total - light) / before.total - 1),
        }
    figures['command'] = f'python benchmarks/upstream_macs.py UPSTREAM_DIR {arguments.name}'
    print(json.dumps({arguments.name: figures}, indent=1))
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results.setdefault('macs', {})[arguments.name] = figures
    RESULTS.write_text(json.dumps(results, indent=2) + '\n')


if __name__ == '__main__':
    main()

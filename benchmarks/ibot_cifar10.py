# SPDX-License-Identifier: Apache-2.0
"""Does iBOT learn, and does it still when half of the patches are thrown? Minutes on one CPU core.

A small ViT (32-pixel global crops, patch 8) on CIFAR-10 image folders; weighted kNN accuracy of
frozen average-pooled features before and after. One JSON line per run:

    python benchmarks/ibot_cifar10.py data/cifar10 --throw-ratio 0 0.5 --seeds 0 --steps 400
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from mmengine.logging import MessageHub, MMLogger
from mmpretrain.registry import MODELS, TRANSFORMS
from mmpretrain.structures import DataSample
from mmpretrain.utils import register_all_modules
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

import prmim_adapters as prmim
import prmim_adapters.openmmlab
from prmim_adapters.openmmlab.device_dataset import BatchRandomResizedCrop
from prmim_adapters.openmmlab.knn import knn_classify, pool_features

MEAN = torch.tensor([125.3, 123.0, 113.9]).view(3, 1, 1)
STD = torch.tensor([63.0, 62.1, 66.7]).view(3, 1, 1)
BATCH, PROTOTYPES, WIDTH = 64, 64, 96


def folder(path: Path, every: int) -> tuple[Tensor, Tensor]:
    """Every so many images of an image folder: uint8 (N, 3, 32, 32), labels (N,)."""
    samples = ImageFolder(str(path), loader=str).samples[::every]
    source = ImageFolder(str(path))
    images = torch.stack([pil_to_tensor(source.loader(name)) for name, _ in samples])
    return images, torch.tensor([label for _, label in samples])


def build(throw_ratio: float) -> nn.Module:
    """The framework with partial reconstruction attached; ratio 0 is the framework."""
    arch = dict(embed_dims=WIDTH, num_layers=2, num_heads=3, feedforward_channels=4 * WIDTH)
    model = MODELS.build(
        dict(
            type='IBOT',
            backbone=dict(type='IBOTViT', arch=arch, img_size=32, patch_size=8),
            neck=dict(
                type='IBOTNeck',
                in_channels=WIDTH,
                hidden_channels=128,
                bottleneck_channels=64,
                out_channels=PROTOTYPES,
            ),
            head=dict(
                type='IBOTHead',
                out_channels=PROTOTYPES,
                teacher_temp=0.04,
                teacher_patch_temp=0.04,
            ),
            base_momentum=0.01,
        )
    )
    model.init_weights()
    for module in (*model.backbone.modules(), *model.neck.modules()):
        if isinstance(module, nn.Linear):  # the original's 0.02 is for widths from 384 on
            nn.init.xavier_uniform_(module.weight)
    return prmim.attach(model, throw_ratio=throw_ratio, max_masked_share=0.75).train()


def jitter(images: Tensor) -> Tensor:
    """Random brightness and contrast of each image (B, 3, h, w); weak, as training is short."""
    strength = 1 + 0.2 * (2 * torch.rand(2, len(images), 1, 1, 1) - 1)
    images = images * strength[0]
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * strength[1]


class Crops:
    """Two masked global crops and one local crop of every image of a batch."""

    def __init__(self) -> None:
        self.globals = BatchRandomResizedCrop(32, scale=(0.4, 1.0))
        self.locals = BatchRandomResizedCrop(16, scale=(0.15, 0.4))
        self.mask = TRANSFORMS.build(
            dict(type='RandomRatioMask', input_size=4, mask_ratio=0.7, variance=0, shape='random')
        )

    def __call__(self, images: Tensor) -> tuple[list[Tensor], list[DataSample]]:
        """Images uint8 (B, 3, 32, 32) to what ``IBOT.loss`` takes."""
        views = [self.globals(images), self.globals(images), self.locals(images)]
        crops = [(jitter(view) - MEAN) / STD for view in views]
        masks = [
            torch.stack([torch.from_numpy(self.mask({})['mask']) for _ in range(2)])
            for _ in range(len(images))
        ]
        return crops, [DataSample().set_mask(mask) for mask in masks]


@torch.no_grad()
def accuracy(
    backbone: nn.Module, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
) -> float:
    """Weighted kNN accuracy in per cent."""
    backbone.eval()
    features = [
        torch.cat([pool_features(backbone, (part - MEAN) / STD) for part in images.split(256)])
        for images, _ in (train, test)
    ]
    backbone.train()
    predicted = knn_classify(features[0], train[1], features[1], num_classes=10)
    return 100 * (predicted == test[1]).double().mean().item()


def run(
    throw_ratio: float,
    seed: int,
    steps: int,
    rate: float,
    train: tuple[Tensor, Tensor],
    voters: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
) -> dict:
    """Train and evaluate one model."""
    torch.manual_seed(seed)
    MessageHub.get_current_instance().update_info('max_iters', steps)
    model, crops = build(throw_ratio), Crops()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.04)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 40))
    began, log = time.process_time(), {}
    start = accuracy(model.backbone, voters, test)
    for step in range(steps):
        images = train[0][torch.randint(len(train[0]), (BATCH,))]
        log = model.loss(*crops(images))
        optimizer.zero_grad()
        model.parse_losses(log)[0].backward()
        optimizer.step()
        warm_up.step()
        if step % 100 == 99:
            scalars = {name: round(float(value), 3) for name, value in log.items()}
            print(step + 1, accuracy(model.backbone, voters, test), scalars, flush=True)
    return dict(
        throw_ratio=throw_ratio,
        seed=seed,
        steps=steps,
        knn_untrained=round(start, 2),
        knn_student=round(accuracy(model.backbone, voters, test), 2),
        knn_teacher=round(accuracy(model.teacher.module.backbone, voters, test), 2),
        cpu_seconds=round(time.process_time() - began, 1),
        **{name: round(float(value), 4) for name, value in log.items()},
    )


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path)
    parser.add_argument('--throw-ratio', type=float, nargs='+', default=[0.0, 0.5])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--steps', type=int, default=400)
    parser.add_argument('--rate', type=float, default=3e-4)
    parser.add_argument('--every', type=int, default=5, help='every so many test images')
    args = parser.parse_args()
    register_all_modules()
    MMLogger.get_instance('mmengine', log_level='WARNING')  # no list of initialised weights
    train, test = folder(args.data / 'train', 5), folder(args.data / 'test', args.every)
    voters = (train[0][:: args.every // 2], train[1][:: args.every // 2])
    for seed in args.seeds:
        for ratio in args.throw_ratio:
            result = run(ratio, seed, args.steps, args.rate, train, voters, test)
            print(json.dumps(result), flush=True)


if __name__ == '__main__':
    main()

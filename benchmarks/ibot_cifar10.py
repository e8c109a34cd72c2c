# SPDX-License-Identifier: Apache-2.0
"""Does iBOT learn, and does it still when half of the patches are thrown?

A small ViT (32-pixel global crops, patch 8) on CIFAR-10 image folders, about 15 minutes of one CPU
core a run; weighted kNN accuracy of frozen features before, during and after. One JSON line per
run, which ``--out`` adds to a file:

    python benchmarks/ibot_cifar10.py data/cifar10 --throw-ratio 0 0.5 --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.runner import set_random_seed
from mmpretrain.registry import MODELS, TRANSFORMS
from mmpretrain.structures import DataSample
from mmpretrain.utils import register_all_modules
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

import prmim_adapters as prmim
import prmim_adapters.openmmlab
from prmim_adapters.accounting.environment import environment
from prmim_adapters.openmmlab.device_dataset import BatchRandomResizedCrop
from prmim_adapters.openmmlab.knn import knn_classify, pool_features

MEAN = torch.tensor([125.3, 123.0, 113.9]).view(3, 1, 1)
STD = torch.tensor([63.0, 62.1, 66.7]).view(3, 1, 1)
BATCH, PROTOTYPES, WIDTH, PATCH = 64, 256, 96, 8
LOCAL_CROPS, WARM_UP = 2, 100


class Data(NamedTuple):
    """Images uint8 (N, 3, 32, 32) and labels (N,)."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def folder(path: Path) -> tuple[Tensor, Tensor]:
    """All images of an image folder, and their labels."""
    source = ImageFolder(str(path), transform=pil_to_tensor)
    images, labels = zip(*source, strict=True)
    return torch.stack(images), torch.tensor(labels)


def build(throw_ratio: float) -> nn.Module:
    """The framework with partial reconstruction attached; ratio 0 is the framework."""
    arch = dict(embed_dims=WIDTH, num_layers=2, num_heads=3, feedforward_channels=4 * WIDTH)
    model = MODELS.build(
        dict(
            type='IBOT',
            backbone=dict(type='IBOTViT', arch=arch, img_size=32, patch_size=PATCH),
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
                teacher_temp=0.03,
                teacher_patch_temp=0.07,
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
    """Flip, brightness, contrast, saturation, tint and grey, drawn for each image (B, 3, h, w)."""

    def draw(strength: float, channels: int = 1) -> Tensor:
        return 1 + strength * (2 * torch.rand(len(images), channels, 1, 1) - 1)

    def some(share: float) -> Tensor:
        return torch.rand(len(images), 1, 1, 1) < share

    images = torch.where(some(0.5), images.flip(-1), images) * draw(0.4)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * draw(0.4)
    grey = images.mean(1, keepdim=True)
    images = (grey + (images - grey) * draw(0.4)) * draw(0.2, channels=3)
    return torch.where(some(0.2), images.mean(1, keepdim=True), images)


class Crops:
    """Two global crops with their masks, and the local crops, of every image of a batch.

    Crops are larger than ImageNet's, as CIFAR-10's objects fill their images.
    """

    def __init__(self) -> None:
        self.globals = BatchRandomResizedCrop(32, scale=(0.5, 1.0))
        self.locals = BatchRandomResizedCrop(16, scale=(0.2, 0.5))
        self.mask = TRANSFORMS.build(
            dict(
                type='RandomRatioMask',
                input_size=32 // PATCH,
                mask_ratio=0.7,
                variance=0,
                shape='random',
            )
        )

    def __call__(self, images: Tensor) -> tuple[list[Tensor], list[DataSample]]:
        """Images uint8 (B, 3, 32, 32) to what ``IBOT.loss`` takes."""
        views = [self.globals(images) for _ in range(2)]
        views += [self.locals(images) for _ in range(LOCAL_CROPS)]
        crops = [(jitter(view) - MEAN) / STD for view in views]
        masks = [
            torch.stack([torch.from_numpy(self.mask({})['mask']) for _ in range(2)])
            for _ in range(len(images))
        ]
        return crops, [DataSample().set_mask(mask) for mask in masks]


@torch.no_grad()
def accuracy(backbone: nn.Module, data: Data) -> dict[str, float]:
    """Weighted kNN accuracy on the test images in per cent; every fifth training image votes.

    Of the class token, and of the average over the patches.
    """
    backbone.eval()
    train, labels = data.train[0][::5], data.train[1][::5]
    found = {}
    for name, class_token in dict(cls=True, patches=False).items():
        voting, asked = (
            torch.cat(
                [
                    pool_features(backbone, (part - MEAN) / STD, class_token)
                    for part in images.split(256)
                ]
            )
            for images in (train, data.test[0])
        )
        predicted = knn_classify(voting, labels, asked, num_classes=10)
        found[name] = round(100 * (predicted == data.test[1]).double().mean().item(), 2)
    backbone.train()
    return found


def rate_at(step: int, steps: int) -> float:
    """Linear warm-up, then cosine decay to 0, as a share of the full rate."""
    return min(1.0, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2


def run(throw_ratio: float, seed: int, steps: int, rate: float, data: Data) -> dict:
    """Train and evaluate one model."""
    set_random_seed(seed)
    MessageHub.get_current_instance().update_info('max_iters', steps)
    model, crops = build(throw_ratio), Crops()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.04)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, steps))
    began, log = time.process_time(), {}
    start = accuracy(model.backbone, data)
    for step in range(steps):
        images = data.train[0][torch.randint(len(data.train[0]), (BATCH,))]
        log = model.loss(*crops(images))
        optimizer.zero_grad()
        model.parse_losses(log)[0].backward()
        optimizer.step()
        schedule.step()
        if step % 500 == 499:
            scalars = {name: round(float(value), 3) for name, value in log.items()}
            print(step + 1, accuracy(model.backbone, data), scalars, flush=True)
    return dict(
        throw_ratio=throw_ratio,
        seed=seed,
        steps=steps,
        knn_untrained=start,
        knn_student=accuracy(model.backbone, data),
        knn_teacher=accuracy(model.teacher.module.backbone, data),
        cpu_seconds=round(time.process_time() - began, 1),
        **{name: round(float(value), 4) for name, value in log.items()},
    )


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path)
    parser.add_argument('--throw-ratio', type=float, nargs='+', default=[0.0, 0.5])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--steps', type=int, default=5000)
    parser.add_argument('--rate', type=float, default=1.5e-3)
    parser.add_argument('--out', type=Path, help='JSON file that results are added to')
    args = parser.parse_args()
    register_all_modules()
    MMLogger.get_instance('mmengine', log_level='WARNING')  # no list of initialised weights
    data = Data(folder(args.data / 'train'), folder(args.data / 'test'))
    for seed in args.seeds:
        for ratio in args.throw_ratio:
            result = run(ratio, seed, args.steps, args.rate, data)
            print(json.dumps(result), flush=True)
            if args.out:
                add(args.out, result)


def add(path: Path, result: dict) -> None:
    """Add a result to the file, in the place of an older one of the same method and seed."""
    found = (
        json.loads(path.read_text())
        if path.exists()
        else dict(environment=environment(torch.device('cpu')))
    )
    runs = {(run['seed'], run['throw_ratio']): run for run in [*found.get('runs', []), result]}
    found['runs'] = [runs[key] for key in sorted(runs)]
    path.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()

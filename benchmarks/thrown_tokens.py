# SPDX-License-Identifier: Apache-2.0
"""Where the loss of thrown tokens sits, what it trains, and what their features miss.

    python benchmarks/thrown_tokens.py SWEEP [--images 1000]

SWEEP is the output of sweeps/thrown_tokens.yaml. On test images, with the same masks and partitions
for all: the loss of kept and thrown tokens of PR-MIM, of the same weights with nothing thrown
(dense), and of MAE; the gradients that those tokens send into the encoder; and how alike features
and gradients of PR-MIM are to those of the dense pass (cosine).

Writes ``benchmarks/results/thrown_tokens.json`` and prints the table of it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from evidence_tables import thrown_tokens
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from torch import Tensor

from prmim_adapters import is_attached, set_throw_ratio
from prmim_adapters.adapters import partial_of
from prmim_adapters.core import TokenPartition, gather_tokens, scatter_tokens

RATIO = 0.5


def trained(point: Path) -> Any:
    """The model of a point, with its weights at the end of training."""
    config = Config.fromfile(point / 'config.py')
    init_default_scope('mmpretrain')
    model = MODELS.build({**config.model, 'data_preprocessor': config.data_preprocessor})
    weights = torch.load(sorted(point.glob('train/*.pth'))[-1], map_location='cpu')
    model.load_state_dict(weights['state_dict'])
    return model.eval()


def images_of(point: Path, folder: str, count: int, model: Any) -> Iterator[Tensor]:
    """Test images (B, 3, H, W), normalised, not augmented."""
    loader = copy.deepcopy(Config.fromfile(point / 'config.py').train_dataloader)
    loader.dataset.dataset.data_prefix = folder
    loader.dataset.per_class = count // 10
    loader.batch_size, loader.sampler.shuffle = 250, False
    for batch in Runner.build_dataloader(loader):
        yield model.data_preprocessor(batch, training=False)['inputs']


class Pass:
    """One forward pass of a MAE, attached or not, on images with the mask of a seed.

    Attributes:
        latent: (B, 1 + V, C), the encoder's output, whose gradient is kept.
        partition: of the pass; None where nothing is thrown.
        loss: (B, L), mean squared error of every patch that was predicted, else 0.
        features: (B, L, C'), what the prediction layer read there.
    """

    partition: TokenPartition | None = None

    def __init__(self, model: Any, images: Tensor, seed: int) -> None:
        torch.manual_seed(seed)
        throws = is_attached(model) and partial_of(model).throw_ratio > 0
        if throws:
            partial_of(model).randomness.seed(seed)
        latent, mask, ids_restore = model.backbone(images, mask=True)
        self.latent = latent.detach().requires_grad_()
        read: list[Tensor] = []
        handle = model.neck.decoder_pred.register_forward_pre_hook(lambda _, x: read.append(x[0]))
        predicted = model.neck(self.latent, ids_restore)
        handle.remove()
        features, target = read[0], model.head.construct_target(images)
        if throws:
            self.partition = partial_of(model).take(len(images))
            predicted, features = (
                scatter_tokens(rows, self.partition.masked, self.partition.length)
                for rows in (predicted, features)
            )
        else:
            features = features[:, 1:]
        self.features = features.detach()
        self.loss = (predicted - target).square().mean(-1) * mask

    def gradient(self, positions: Tensor) -> Tensor:
        """(B, V, C): gradient of the summed loss at positions (B, n) into the encoder's patches."""
        loss = self.loss.gather(1, positions).sum()
        return torch.autograd.grad(loss, self.latent, retain_graph=True)[0][:, 1:]


def compared(prmim: Any, mae: Any, images: Tensor, seed: int) -> dict[str, Tensor]:
    """Figures of one batch, each (B,) or (B, tokens)."""
    ours = Pass(prmim, images, seed)
    set_throw_ratio(prmim, 0.0)
    dense = Pass(prmim, images, seed)
    set_throw_ratio(prmim, RATIO)
    theirs = Pass(mae, images, seed)
    part, found = ours.partition, {}
    for name, run in (('prmim', ours), ('dense', dense), ('mae', theirs)):
        kept, thrown = (run.gradient(index).flatten(1) for index in (part.kept, part.thrown))
        found[f'{name}.loss_kept'] = run.loss.gather(1, part.kept)
        found[f'{name}.loss_thrown'] = run.loss.gather(1, part.thrown)
        found[f'{name}.gradient_kept'] = kept.norm(dim=1) / part.kept.shape[1]
        found[f'{name}.gradient_thrown'] = thrown.norm(dim=1) / part.thrown.shape[1]
        found[f'{name}.gradients_agree'] = F.cosine_similarity(kept, thrown)
    for name, index in (('kept', part.kept), ('thrown', part.thrown)):
        features = [gather_tokens(run.features, index) for run in (ours, dense)]
        gradients = [run.gradient(index).flatten(1) for run in (ours, dense)]
        found[f'prmim.features_{name}'] = F.cosine_similarity(*features, dim=-1)
        found[f'prmim.gradient_like_dense_{name}'] = F.cosine_similarity(*gradients)
    return found


@click.command()
@click.argument('sweep', type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option('--images', default=1000, help='Test images.')
@click.option('--folder', default='data/cifar10/test', help='Where they are, a folder a class.')
def main(sweep: Path, images: int, folder: str) -> None:
    """Measure every seed of SWEEP."""
    seeds = {}
    for point in sorted(sweep.glob(f'mae/prmim-{RATIO:.2f}/seed*')):
        prmim, mae = trained(point), trained(sweep / 'mae' / 'framework' / point.name)
        batches = [
            compared(prmim, mae, batch, number)
            for number, batch in enumerate(images_of(point, folder, images, mae))
        ]
        seeds[point.name] = {
            name: torch.cat([batch[name] for batch in batches]).mean().item() for name in batches[0]
        }
    result = {'ratio': RATIO, 'images': images, 'seeds': seeds}
    target = Path(__file__).parent / 'results' / 'thrown_tokens.json'
    target.write_text(json.dumps(result, indent=1) + '\n')
    click.echo(thrown_tokens())


if __name__ == '__main__':
    main()

# SPDX-License-Identifier: Apache-2.0
"""What the features after every block of a trained encoder are worth: kNN and linear probe.

    python benchmarks/features_by_block.py POINT [POINT ...]

POINT is the folder of one seed in a sweep's output whose runs kept their last checkpoint
(``default_hooks: {checkpoint: {interval: EPOCHS}}`` in the spec), of SimMIM's ViT. Protocol and
images are those of the sweep; patch tokens are averaged, and the last block comes with and without
the final norm.

Writes ``benchmarks/results/features_by_block.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from thrown_tokens import trained
from torch import Tensor

import prmim_adapters.openmmlab  # noqa: F401, registers what the configs name
from prmim_adapters.sweep.evaluation import frozen_accuracy


@torch.no_grad()
def features(model: Any, loader: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """(N, blocks + 1, C) averages after every block and after the final norm; labels (N,)."""
    backbone, found, labels, held = model.backbone, [], [], []
    prefix = backbone.num_extra_tokens
    handles = [
        module.register_forward_hook(lambda *call: held.append(call[2][:, prefix:].mean(dim=1)))
        for module in (*backbone.layers, backbone.norm1)
    ]
    for batch in Runner.build_dataloader(loader):
        data = model.data_preprocessor(batch, training=False)
        held.clear()
        backbone(data['inputs'], None)
        found.append(torch.stack(held, dim=1))
        labels += [int(sample.gt_label) for sample in data['data_samples']]
    for handle in handles:
        handle.remove()
    return torch.cat(found), torch.tensor(labels)


@click.command()
@click.argument('points', nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
def main(points: tuple[Path, ...]) -> None:
    """Measure every POINT."""
    init_default_scope('mmpretrain')
    target = Path(__file__).parent / 'results' / 'features_by_block.json'
    result = json.loads(target.read_text()) if target.exists() else {}
    for point in points:
        hooks = Config.fromfile(point / 'config.py').custom_hooks
        hook = next(hook for hook in hooks if hook['type'].endswith('FrozenFeatureHook'))
        model = trained(point)
        (x, y), (x_test, y_test) = (
            features(model, hook[name]) for name in ('train_dataloader', 'test_dataloader')
        )
        # No dots: documents name a value by its keys, joined with them.
        name = '/'.join(point.resolve().parts[-2:]).replace('.', '_')
        result[name] = {'knn': [], 'linear': []}
        for block in range(x.shape[1]):
            accuracy = frozen_accuracy(
                (x[:, block], y), (x_test[:, block], y_test), hook['num_classes'], hook['k'],
                hook['temperature'], hook['regularization'],
            )  # fmt: skip
            for metric, values in result[name].items():
                values.append(round(accuracy[metric], 2))
        click.echo(f'{name}: {result[name]}')
        target.write_text(json.dumps(dict(sorted(result.items())), indent=1) + '\n')


if __name__ == '__main__':
    main()

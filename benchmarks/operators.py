# SPDX-License-Identifier: Apache-2.0
"""How many operators a training step calls that compute: on a GPU each launches a kernel or more.

    python benchmarks/operators.py

Forward and backward in autocast. Their number depends on depth and on the masks, not on width: iBOT's
twelve layers and 64 images are those of its config, the model is small. Writes
``benchmarks/results/operators.json``.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import torch
from gpu_stages.context import Context
from ibot_ragged import Kernels
from mmengine.config import Config
from result_files import RESULTS

from prmim_adapters.accounting.bench import config_batch
from prmim_adapters.accounting.loss_path import LossPath
from prmim_adapters.accounting.variants import FRAMEWORK, OURS, PLAIN, build_variant

CONFIGS = {'simmim_prmim_swinb': 2, 'ibot_prmim_vits': 64}
"""Config to the images of a step."""

DEPTH = 12


def operators(config: str, variant: str, images: int) -> int:
    """Of a second step: the first one leaves gradients to add to."""
    torch.manual_seed(0), np.random.seed(0)
    model = build_variant(config, variant).train()
    batch = config_batch(config, images, model)
    views = batch['inputs'] if isinstance(batch['inputs'], list) else [batch['inputs']]
    path = LossPath(model, batch)
    for _ in range(2):
        with Kernels() as found:
            with torch.autocast('cpu', torch.bfloat16):
                loss = path(*views)
            loss.backward()
    return found.count


def small(context: Context, name: str) -> str:
    """Path of the config; of iBOT with a narrow model, and all of its layers."""
    if not name.startswith('ibot'):
        return context.config(name)
    path = context.tiny(name)
    config = Config.fromfile(path)
    config.model.framework.backbone.arch.num_layers = DEPTH
    config.dump(path)
    return path


@click.command()
def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        context = Context(Path(folder), False, 'cpu', time.time(), lambda _: None)
        found = {}
        for name, images in CONFIGS.items():
            config = small(context, name)
            counts = {v: operators(config, v, images) for v in (FRAMEWORK, PLAIN, OURS)}
            found[name] = {'images': images, 'operators': counts}
            print(name, counts)
    path = RESULTS / f'{Path(__file__).stem}.json'
    path.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()

# SPDX-License-Identifier: Apache-2.0
"""What a training step asks of the host: operators that compute, and the processor's time.

    python benchmarks/operators.py

On a GPU each such operator launches a kernel or more, and where the host queues them more slowly than
the card runs them, the host sets the pace. Both depend on depth and on the masks, and in a narrow model
little else takes time: the layers are those of the config, iBOT's 64 images too. Forward and backward,
operators in autocast; time in interleaved rounds, against the framework's of the same round, and for
Swin with its window attention recomputed by torch's checkpoint, or stored, as well. Writes
``benchmarks/results/operators.json``.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import numpy as np
import torch
from gpu_stages.context import Context
from ibot_ragged import Kernels
from mmengine.config import Config
from result_files import RESULTS
from tabulate import tabulate
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from prmim_adapters.accounting.bench import config_batch
from prmim_adapters.accounting.loss_path import LossPath
from prmim_adapters.accounting.variants import FRAMEWORK, OURS, PLAIN, build_variant
from prmim_adapters.packed import swin
from prmim_adapters.packed.window_attention import attend


@dataclass(frozen=True)
class Case:
    """Images of a step, depth as in the config, and whether little but the host takes time."""

    images: int
    depth: dict[str, Any]
    timed: bool


CASES = {
    'simmim_prmim_swinb': Case(2, {'depths': [2, 2, 18, 2]}, True),
    'ibot_prmim_vits': Case(64, {'num_layers': 12}, False),  # 64 images make 34 lengths
}

ROUNDS, WARMUP = 15, 2


def step_of(config: str, variant: str, images: int) -> Callable[[], None]:
    """Forward and backward of a variant; gradients add up, as from the second step on."""
    torch.manual_seed(0), np.random.seed(0)
    model = build_variant(config, variant).train()
    batch = config_batch(config, images, model)
    views = batch['inputs'] if isinstance(batch['inputs'], list) else [batch['inputs']]
    path = LossPath(model, batch)
    return lambda: path(*views).backward()


def with_attention(
    step: Callable[[], None], attention: Callable[..., Tensor]
) -> Callable[[], None]:
    """A step of a Swin with another recomputation of its window attention."""

    def run() -> None:
        with patch.object(swin, 'attend_again', attention):
            step()

    return run


def checkpointed(*arguments: Any) -> Tensor:
    """Recomputed by torch's own means."""
    return checkpoint(attend, *arguments, use_reentrant=False, preserve_rng_state=False)


def operators(step: Callable[[], None]) -> int:
    """Of a step in autocast."""
    with Kernels() as found, torch.autocast('cpu', torch.bfloat16):
        step()
    return found.count


def processor_ratios(steps: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Variant to quartiles of its processor time against the framework's of the same round."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(WARMUP + ROUNDS):
        for name, step in steps.items():
            begin = time.process_time()
            step()
            seconds[name].append(time.process_time() - begin)
    base = np.array(seconds[FRAMEWORK][WARMUP:])
    ratios = {name: np.array(found[WARMUP:]) / base for name, found in seconds.items()}
    return {name: np.quantile(found, (0.25, 0.5, 0.75)).tolist() for name, found in ratios.items()}


def narrow(context: Context, name: str) -> str:
    """Path of the config with a narrow network, of the config's depth and stochastic depth."""
    path = context.tiny(name)
    config, whole = (Config.fromfile(found) for found in (path, context.config(name)))
    backbone = config.model.framework.backbone
    backbone.arch.update(CASES[name].depth)
    rate = whole.model.framework.backbone.get('drop_path_rate')
    if rate is None:
        del backbone.drop_path_rate  # the class has one
    else:
        backbone.drop_path_rate = rate
    config.dump(path)
    return path


@click.command()
def main() -> None:
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        context = Context(Path(folder), False, 'cpu', time.time(), lambda _: None)
        for name, case in CASES.items():
            config = narrow(context, name)
            steps = {v: step_of(config, v, case.images) for v in (FRAMEWORK, PLAIN, OURS)}
            for step in steps.values():
                step()
            counts = {variant: operators(step) for variant, step in steps.items()}
            found[name] = {'images': case.images, 'operators': counts}
            rows = [[variant, count] for variant, count in counts.items()]
            if case.timed:
                timed = steps | {
                    'checkpoint': with_attention(steps[OURS], checkpointed),
                    'stored': with_attention(steps[OURS], attend),
                }
                found[name]['processor_ratio'] = ratios = processor_ratios(timed)
                rows = [[v, counts.get(v), *quartiles] for v, quartiles in ratios.items()]
            head = ['', 'operators', 'processor time: lower quartile', 'median', 'upper']
            print(name, tabulate(rows, head[: len(rows[0])], floatfmt='.2f'), sep='\n')
    path = RESULTS / f'{Path(__file__).stem}.json'
    path.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()

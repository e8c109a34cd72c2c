# SPDX-License-Identifier: Apache-2.0
"""One layer of iBOT's student on the present tokens of published masks: three ways, and whole.

    python benchmarks/ibot_ragged.py

ViT-S, forward and backward, one CPU thread, interleaved, medians of processor time; operators that
launch a kernel are counted. Writes ``benchmarks/results/ibot_ragged.json`` and prints the table.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import numpy as np
import tables
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prmim_adapters.accounting.environment import environment
from prmim_adapters.adapters import SAMPLERS
from prmim_adapters.adapters.mmpretrain.ibot import describe
from prmim_adapters.core import PartialReconstruction
from prmim_adapters.frameworks.ibot import IBOTViT
from prmim_adapters.openmmlab.transforms import RandomRatioMask
from prmim_adapters.packed.sequences import encode_packed, pack_present

Way = Callable[[], list[Tensor]]


class Kernels(TorchDispatchMode):
    """Counts operators that compute, not those that only look at a tensor in another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (func.is_view or func._schema.name == 'aten::_unsafe_view')
        return func(*args, **(kwargs or {}))


def step(way: Way) -> None:
    """Forward and backward."""
    sum(x.sum() for x in way()).backward()


def kernels(way: Way) -> int:
    """Operators of a step."""
    step(way)  # gradients of parameters are there from now on
    with Kernels() as found:
        step(way)
    return found.count


def layer(drop_path: float) -> IBOTViT:
    """ViT-S with one layer."""
    arch = dict(embed_dims=384, num_layers=1, num_heads=6, feedforward_channels=1536)
    backbone = IBOTViT(arch=arch)
    backbone.train()
    for module in (backbone.layers[0].attn.out_drop, backbone.layers[0].ffn.dropout_layer):
        module.drop_prob = drop_path
    return backbone


def present_tokens(tokens: Tensor) -> tuple[Tensor, list[int]]:
    """Those of published masks, at the ratio of ``ibot_prmim_vits.py``: packed, and their lengths."""
    transform = RandomRatioMask(14)
    mask = torch.stack([torch.as_tensor(transform({})['mask']).flatten() for _ in tokens])
    partial = PartialReconstruction(0.5, (14, 14), SAMPLERS.get('farthest'), ragged=True)
    groups = partial(mask)
    return pack_present(tokens, groups), [1 + count for count in groups.num_present]


def measure(crops: int, drop_path: float, repeats: int) -> dict:
    """Operators and milliseconds of each way."""
    backbone = layer(drop_path)
    whole = torch.randn(crops, 197, 384)
    packed, sizes = present_tokens(whole)
    runs = [list(run) for _, run in groupby(sizes)]
    parts = packed.split([sum(run) for run in runs])
    lengths = [part.unflatten(0, (len(run), -1)) for part, run in zip(parts, runs, strict=True)]
    ways: dict[str, Way] = {
        'framework, whole crops': lambda: [backbone.encode(whole)],
        'length by length': lambda: [backbone.encode(x) for x in lengths],
        'packed': lambda: [
            encode_packed(packed, sizes, map(describe, backbone.layers), backbone.ln1)
        ],
    }
    found: dict[str, dict] = {
        name: {'kernels': kernels(way), 'seconds': []} for name, way in ways.items()
    }
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.process_time()
            step(way)
            found[name]['seconds'].append(time.process_time() - start)
    return {
        'drop_path': drop_path,
        'crops': crops,
        'lengths': len(lengths),
        'share_of_tokens': len(packed) / (crops * 197),
        'ways': {
            name: {'ms': statistics.median(way['seconds']) * 1e3, 'kernels': way['kernels']}
            for name, way in found.items()
        },
    }


@click.command()
@click.option('--crops', default=64, show_default=True)
@click.option('--repeats', default=9, show_default=True)
def main(crops: int, repeats: int) -> None:
    torch.set_num_threads(1)
    rows = []
    for drop_path in (0.0, 0.1):
        torch.manual_seed(0), np.random.seed(0)
        rows.append(measure(crops, drop_path, repeats))
    result = {'environment': environment(torch.device('cpu')), 'repeats': repeats, 'rows': rows}
    path = tables.RESULTS / f'{Path(__file__).stem}.json'
    path.write_text(json.dumps(result, indent=2) + '\n')
    print(tables.ibot_ragged(), path, sep='\n')


if __name__ == '__main__':
    main()

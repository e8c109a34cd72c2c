# SPDX-License-Identifier: Apache-2.0
"""How fast this device is, for the estimates of the other stages."""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

import torch

from prmim_adapters.accounting.bench import config_batch
from prmim_adapters.accounting.throughput import Timing, time_interleaved, training_step
from prmim_adapters.accounting.variants import FRAMEWORK, build_variant

from .context import Context, optimizer_of
from .plan import MAE, gmacs


def calibrate(context: Context) -> dict[str, Any]:
    """Seconds per training GMAC of MAE ViT-B/16, to build it, and two rates of the device."""
    device, config = torch.device(context.device), context.config(MAE)
    images = 2 if context.dry else 64
    begin = time.perf_counter()
    model = build_variant(config, FRAMEWORK).to(device)
    batch = config_batch(config, images, model)
    build = time.perf_counter() - begin
    timing = Timing(3, 2, 'fp32' if context.dry else 'bf16')
    step = training_step(model, batch, timing, optimizer_of(config))
    seconds = statistics.median(time_interleaved([step], timing, device)[0].seconds)
    return {
        'images': images,
        'step_seconds': seconds,
        'seconds_per_gmac': seconds / images / gmacs(MAE),
        'build_seconds': build,
        'matmul_tflops': matmul_tflops(device, 128 if context.dry else 8192),
        'copy_gigabytes_per_second': copy_rate(device, 10**6 if context.dry else 2**31),
    }


def matmul_tflops(device: torch.device, side: int) -> float:
    """Of a bf16 matrix product of random numbers."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / _median_seconds(partial(torch.matmul, a, b), device) / 1e12


def copy_rate(device: torch.device, size: int) -> float:
    """Gigabytes read and written per second by a copy on the device."""
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2 * size / _median_seconds(partial(target.copy_, source), device) / 1e9


def _median_seconds(call: Any, device: torch.device) -> float:
    found = []
    for turn in range(8):
        _wait(device)
        begin = time.perf_counter()
        call()
        _wait(device)
        if turn >= 3:
            found.append(time.perf_counter() - begin)
    return statistics.median(found)


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)

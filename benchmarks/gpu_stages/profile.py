# SPDX-License-Identifier: Apache-2.0
"""Where the difference between counted multiply-adds and measured time goes."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from prmim_adapters.accounting.bench import config_batch
from prmim_adapters.accounting.largest import release
from prmim_adapters.accounting.throughput import Timing, training_step
from prmim_adapters.accounting.variants import FRAMEWORK, OURS, PLAIN, build_variant

from .context import Context, optimizer_of
from .plan import RESULTS

KINDS = {
    'attention': ('flash', 'fmha', 'attention', 'sdpa', 'softmax'),
    'optimizer': ('adam', 'multi_tensor', 'foreach'),
    'matrix products': (
        'gemm',
        'nvjet',
        'cutlass',
        'xmma',
        'matmul',
        'addmm',
        'aten::mm',
        'aten::bmm',
    ),
    'convolutions': ('conv', 'cudnn', 'winograd', 'im2col'),
    'norms': ('norm', 'gammabeta'),
    'gathers and scatters': ('index', 'gather', 'scatter', 'embedding', 'sort', 'radix', 'cat'),
    'sampling': ('farthest',),
    'copies and casts': ('copy', 'memcpy', 'memset', 'fill', 'zero'),
    'element by element': ('elementwise', 'vectorized', 'reduce', 'add', 'mul', 'gelu', 'sum'),
}
"""Kind of work to what its kernels' names contain, the first that fits."""

STEPS = 3


def profile_steps(
    context: Context, configs: tuple[tuple[str, int], ...], page: str = 'profile.txt'
) -> dict[str, Any]:
    """Time by kind and the ten longest kernels of a step, also written to a page for people."""
    found: dict[str, Any] = {}
    pages = []
    for config, images in configs[:1] if context.dry else configs:
        names = (FRAMEWORK, OURS) if context.dry else (FRAMEWORK, PLAIN, OURS)
        rows = [_profile(context, config, images, name) for name in names]
        found[config] = rows
        pages += [_page(config, row, rows[0]) for row in rows]
        (context.out / page).write_text('\n\n'.join(pages) + '\n')
        context.keep(found)
    return found


def _profile(context: Context, config: str, images: int, name: str) -> dict[str, Any]:
    path, device = context.config(config), torch.device(context.device)
    images = 2 if context.dry else images
    model = build_variant(path, name).to(device)
    timing = Timing(precision='fp32' if context.dry else 'bf16')
    step = training_step(model, config_batch(path, images, model), timing, optimizer_of(path))
    for _ in range(1 if context.dry else 3):
        step()
    activities = [ProfilerActivity.CPU]
    if device.type == 'cuda':
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize(device)
    wall = time.perf_counter()
    for _ in range(STEPS):
        step()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    wall = (time.perf_counter() - wall) / STEPS
    with profile(activities=activities) as profiler:
        for _ in range(STEPS):
            step()
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
    del step, model
    release(device)
    return {
        'variant': name,
        'images': images,
        'wall_ms': wall * 1e3,
        **summary(profiler, device),
    } | {'counted': _counted(config, name)}


def summary(profiler: profile, device: torch.device) -> dict[str, Any]:
    """Per step: milliseconds and calls of every kernel (operator on a CPU), and by kind."""
    milliseconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for name, spent in _spent(profiler, device):
        milliseconds[name] += spent / 1e3 / STEPS
        calls[name] += 1
    kinds: Counter[str] = Counter()
    for name, spent in milliseconds.items():
        kinds[kind_of(name)] += spent
    top = [
        {'name': name, 'ms': spent, 'calls': calls[name] / STEPS}
        for name, spent in milliseconds.most_common(10)
    ]
    return {
        'device_ms': sum(milliseconds.values()),
        'kernels': sum(calls.values()) / STEPS,
        'kinds': dict(kinds.most_common()),
        'top': top,
    }


def _spent(profiler: profile, device: torch.device) -> Iterable[tuple[str, float]]:
    """(name, microseconds) of every kernel on CUDA, of every operator itself on the CPU."""
    wanted = (
        torch.autograd.DeviceType.CUDA if device.type == 'cuda' else torch.autograd.DeviceType.CPU
    )
    for event in profiler.events():
        if event.device_type != wanted or getattr(event, 'is_user_annotation', False):
            continue  # an annotation spans the kernels below it
        if device.type == 'cuda':
            yield event.name, event.time_range.elapsed_us()
        elif event.self_cpu_time_total > 0:
            yield event.name, event.self_cpu_time_total


def kind_of(name: str) -> str:
    """Kind of work of a kernel or operator, by its name."""
    if name == '_kernel':  # the Triton kernel's own name
        return 'sampling'
    lower = name.lower()
    for kind, marks in KINDS.items():
        if any(mark in lower for mark in marks):
            return kind
    return 'other'


def _counted(config: str, name: str) -> float:
    """Counted training MACs against the framework's, of the full-size config."""
    costs = json.loads((RESULTS / 'costs.json').read_text())[config]['costs']
    by_name = {cost['name']: cost['training'] for cost in costs}
    return by_name[name] / by_name[FRAMEWORK]


def _page(config: str, row: dict[str, Any], base: dict[str, Any]) -> str:
    """Text for people: counted and measured shares, kinds beside the framework's, the top ten."""
    lines = [
        f'{config}, {row["images"]} images, {row["variant"]}',
        f'  against the framework: counted {row["counted"]:.3f}, '
        f'device time {row["device_ms"] / base["device_ms"]:.3f}, '
        f'wall {row["wall_ms"] / base["wall_ms"]:.3f}',
        f'  {row["wall_ms"]:.2f} ms a step, device busy {row["device_ms"] / row["wall_ms"]:.2f} of it, '
        f'{row["kernels"]:.0f} kernels',
        f'  {"by kind":<24}{"ms":>9}{"framework":>11}{"ratio":>8}',
    ]
    for kind, spent in row['kinds'].items():
        before = base['kinds'].get(kind, 0.0)
        ratio = f'{spent / before:.3f}' if before else '-'
        lines.append(f'  {kind:<24}{spent:>9.3f}{before:>11.3f}{ratio:>8}')
    lines.append(f'  {"top ten":<72}{"ms":>9}{"calls":>8}')
    lines += [f'  {e["name"][:70]:<72}{e["ms"]:>9.3f}{e["calls"]:>8.0f}' for e in row['top']]
    return '\n'.join(lines)

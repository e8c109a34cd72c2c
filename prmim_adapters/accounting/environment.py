# SPDX-License-Identifier: Apache-2.0
"""Where a measurement was made."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .. import __version__

_PACKAGES = (
    *('torch', 'torchvision', 'mmengine', 'mmpretrain', 'onedl-mmengine', 'onedl-mmpretrain'),
    *('timm', 'triton'),
)
GPU_FIELDS = (
    *('driver_version', 'clocks.sm', 'clocks.max.sm', 'clocks.mem', 'temperature.gpu'),
    *('power.draw', 'power.limit', 'clocks_event_reasons.active'),
)


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """Device, threads, versions and commit of the package, for the record of a measurement.

    Args:
        device: that measured; the GPU, where there is one, by default.
    """
    cuda = torch.cuda.is_available() if device is None else device.type == 'cuda'
    gpu = torch.cuda.get_device_name(device) if cuda else None
    names = _processors()
    return dict(
        device=gpu or names[0],
        gpu=gpu,
        processor=f'{names[0]} x {len(names)}',
        machine=platform.machine(),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        cuda=torch.version.cuda if cuda else None,
        driver=gpu_state('driver_version').get('driver_version') if cuda else None,
        packages=_versions(),
        commit=_commit(),
    )


def _processors() -> list[str]:
    """A name for each processor."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names or [platform.processor() or platform.machine()]


def _versions() -> dict[str, str]:
    packages = dict(prmim_adapters=__version__)
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return packages | dict(torch=torch.__version__)  # with the build: 2.9.0+cu128


def _commit() -> str | None:
    """Commit of the package's checkout, with '+' where files of the package differ from it."""
    folder = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ['git', *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        commit = git('rev-parse', 'HEAD')
        return commit + ('+' if git('status', '--porcelain', '--untracked-files=no', '.') else '')
    except (OSError, subprocess.CalledProcessError):
        return None


def gpu_state(*fields: str) -> dict[str, str]:
    """What nvidia-smi says of the first visible GPU; nothing where it cannot be asked.

    Args:
        fields: names of ``nvidia-smi --query-gpu``; ``GPU_FIELDS`` by default.
    """
    fields = fields or GPU_FIELDS
    command = ['nvidia-smi', f'--query-gpu={",".join(fields)}', '--format=csv,noheader']
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        values = done.stdout.splitlines()[0].split(',')
    except (OSError, subprocess.SubprocessError, IndexError):
        return {}
    return dict(zip(fields, (value.strip() for value in values), strict=False))

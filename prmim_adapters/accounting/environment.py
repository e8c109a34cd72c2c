# SPDX-License-Identifier: Apache-2.0
"""Where a measurement was made."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .. import __version__


def environment(device: torch.device) -> dict[str, Any]:
    """Device, threads and versions, for the record of a measurement."""
    found = {
        'device': _device_name(device),
        'threads': torch.get_num_threads(),
        'python': platform.python_version(),
        'torch': torch.__version__,
        'prmim_adapters': __version__,
    }
    if device.type == 'cuda':
        found['cuda'] = torch.version.cuda
    for name in ('mmengine', 'mmpretrain', 'timm', 'triton'):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _device_name(device: torch.device) -> str:
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()

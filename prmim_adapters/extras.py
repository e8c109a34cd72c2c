# SPDX-License-Identifier: Apache-2.0
"""The extras of this distribution, and a plain sentence where one is missing.

Torch and click are all that is always there. A package that needs more begins by

    require('openmmlab')
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

#: Extra to the modules without which what needs it does not run, by the name of who installs them.
EXTRAS: dict[str, dict[str, str]] = {
    'openmmlab': {'mmcv': 'mmcv-lite', 'mmengine': 'mmengine', 'mmpretrain': 'mmpretrain'},
    'tools': {
        'PIL': 'pillow',
        'matplotlib': 'matplotlib',
        'numpy': 'numpy',
        'psutil': 'psutil',
        'rich': 'rich',
        'torchvision': 'torchvision',
        'yaml': 'pyyaml',
    },
    'export': {'safetensors': 'safetensors', 'timm': 'timm'},
    'sweep': {
        'filelock': 'filelock',
        'scipy': 'scipy',
        'sklearn': 'scikit-learn',
        'tabulate': 'tabulate',
    },
    'slurm': {'submitit': 'submitit'},
    'huggingface': {'transformers': 'transformers'},
    'lightly': {'lightly': 'lightly'},
}


class MissingExtraError(ImportError):
    """Packages of an extra are not installed."""


def require(*extras: str) -> None:
    """Check that the packages of extras are installed, without importing any.

    ``openmmlab`` includes ``tools``, which is all that is asked for beside an OpenMMLab that is
    there already: its full mmcv stays.

    Args:
        extras: names in :data:`EXTRAS`.

    Raises:
        MissingExtraError: some are not, with the command that installs them.
    """
    names = [*extras, 'tools'] if 'openmmlab' in extras else list(extras)
    absent = {name: found for name in names if (found := _absent(name))}
    if absent:
        packages = dict.fromkeys(package for group in absent.values() for package in group)
        wanted = [name for name in absent if name != 'tools' or 'openmmlab' not in absent]
        raise MissingExtraError(
            f"{', '.join(packages)} not installed: pip install 'prmim-adapters[{','.join(wanted)}]'"
        )


def _absent(extra: str) -> list[str]:
    return [package for module, package in EXTRAS[extra].items() if not _is_there(module)]


def _is_there(module: str) -> bool:
    """A module may be one that a test or a shim has put in place, or has blocked by None."""
    if module in sys.modules:
        return sys.modules[module] is not None
    return find_spec(module) is not None

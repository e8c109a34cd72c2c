# SPDX-License-Identifier: Apache-2.0
"""What ``mim train prmim-adapters`` runs: mmpretrain's script of the same name, in this process."""

from __future__ import annotations

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

from .extras import require


def run(name: str) -> None:
    """Run ``tools/<name>`` of mmpretrain with the arguments of this process.

    Raises:
        MissingExtraError: mmpretrain is not installed.
        FileNotFoundError: it has no such script.
    """
    require('openmmlab')
    spec = find_spec('mmpretrain')
    assert spec is not None and spec.origin is not None
    package = Path(spec.origin).parent
    # In its wheel, and in its checkout.
    places = [package / '.mim' / 'tools' / name, package.parent / 'tools' / name]
    script = next((str(place) for place in places if place.is_file()), None)
    if script is None:
        raise FileNotFoundError(
            f'mmpretrain has no tools/{name}: neither {places[0]} nor {places[1]}'
        )
    sys.argv[0] = script
    runpy.run_path(script, run_name='__main__')

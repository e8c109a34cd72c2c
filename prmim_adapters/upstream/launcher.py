# SPDX-License-Identifier: Apache-2.0
"""Runs a script of an original repository after the shims, as ``python script`` would."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from .shims import SHIMS


class UnknownShimError(ValueError):
    """A name that is no shim's."""


def run_script(script: str, arguments: Sequence[str], without: Sequence[str] = ()) -> None:
    """Apply the shims, then run ``script`` as ``__main__``.

    Its folder comes first on the path, the working folder last (for scripts in subfolders).

    Args:
        script: path of the script.
        arguments: its command line.
        without: names of shims to leave out.

    Raises:
        FileNotFoundError: there is no such script.
        UnknownShimError: in ``without``.
    """
    path = Path(script)
    if not path.is_file():
        raise FileNotFoundError(f'{script}: no such script')
    unknown = sorted(set(without) - set(SHIMS))
    if unknown:
        raise UnknownShimError(f'no shim called {", ".join(unknown)}; there are {", ".join(SHIMS)}')
    sys.path[:] = [str(path.resolve().parent), *sys.path, os.getcwd()]
    changed = list(arguments)
    applied = [name for name, shim in SHIMS.items() if name not in without and shim(path, changed)]
    print(f'prmim run: {", ".join(applied) or "no shim needed"}', file=sys.stderr, flush=True)
    sys.argv = [script, *changed]
    runpy.run_path(script, run_name='__main__')

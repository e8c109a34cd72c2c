# SPDX-License-Identifier: Apache-2.0
"""Scripts of a repository, written and started by ``prmim run``."""

import subprocess
import sys
from pathlib import Path


def launch(script: Path, *arguments: str, without: tuple[str, ...] = (), feed: str = ''):
    code = (
        'import sys\nfrom prmim_adapters.upstream.launcher import run_script\n'
        f'run_script({str(script)!r}, sys.argv[1:], {without!r})'
    )
    return subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code, *arguments],
        capture_output=True,
        text=True,
        input=feed,
    )


def written(folder: Path, code: str, name: str = 'main.py') -> Path:
    lines = code.strip('\n').splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    (folder / name).write_text('\n'.join(line[indent:] for line in lines) + '\n')
    return folder / name

# SPDX-License-Identifier: Apache-2.0
"""What setup.cfg cannot say: the folder ``.mim`` in a wheel, and the README outside the repository."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# As in mmpretrain's wheel, where mim looks for them.
SHIPPED = ('configs', 'patches', 'sweeps', 'tools/train.py', 'tools/test.py', 'model-index.yml')
# `![text](picture)` and `[text](page)` that are relative: there is no folder to find them in.
PICTURE = re.compile(r'^!\[[^\]]*\]\((?!https?:)[^)]*\)\n+', re.M)
LINK = re.compile(r'\[([^\]]*)\]\((?!https?:|#|mailto:)([^)]*)\)')


class BuildWithConfigs(build_py):
    """Copies configs, sweeps and patches into the package."""

    def run(self) -> None:
        """Build; an editable install finds the folders in the checkout."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / 'prmim_adapters' / '.mim'
        shutil.rmtree(target, ignore_errors=True)
        for name in SHIPPED:
            source, copy = ROOT / name, target / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                ignored = shutil.ignore_patterns('__pycache__', '*.pyc')
                shutil.copytree(source, copy, ignore=ignored)
            else:
                shutil.copyfile(source, copy)


def long_description() -> str:
    """The README without pictures of the repository, its pages named instead of linked."""
    text = PICTURE.sub('', (ROOT / 'README.md').read_text(encoding='utf-8'))
    return LINK.sub(lambda link: link[1] if link[1] == link[2] else f'{link[1]} ({link[2]})', text)


setup(cmdclass={'build_py': BuildWithConfigs}, long_description=long_description())

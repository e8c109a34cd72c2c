# SPDX-License-Identifier: Apache-2.0
"""The site: ``make docs`` builds it from the same pages that are read on GitHub."""

import os
import re
import sys
import warnings
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))
warnings.filterwarnings('ignore')  # of libraries; Sphinx's own are errors

import prmim_adapters  # noqa: E402
import prmim_adapters.openmmlab  # noqa: E402

project = 'prmim_adapters'
author = 'The prmim_adapters contributors'
version = release = prmim_adapters.__version__

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx_external_toc']
exclude_patterns = ['_build', 'examples', 'notebooks']
external_toc_path = '_toc.yml'
myst_heading_anchors = 4
suppress_warnings = ['myst.header']  # generated reports begin where their tables do

autodoc_member_order = 'bysource'
napoleon_use_ivar = True  # attributes once, not twice

html_theme = 'furo'
html_title = 'prmim_adapters'
html_static_path = ['_static']
html_css_files = ['site.css']
html_show_sourcelink = False
html_show_copyright = False

#: Files outside of docs/ that are pages of the site.
PAGES = {
    ROOT / 'README.md': 'index.md',
    ROOT / 'CHANGELOG.md': 'changes.md',
    ROOT / 'CONTRIBUTING.md': 'contributing.md',
}
LINK = re.compile(r'\[([^][]*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)')


def setup(app: Sphinx) -> None:
    """Links between files of the repository lead to pages of the site."""
    app.connect('source-read', _read)


def _read(app: Sphinx, name: str, source: list[str]) -> None:
    page = DOCS / f'{name}.md'
    outside = {target: path for path, target in PAGES.items() if target != 'index.md'}
    path = outside.get(f'{name}.md', page)
    text = path.read_text() if path != page else source[0]
    source[0] = LINK.sub(lambda link: _link(link, path.parent, page.parent), text)


def _link(link: re.Match[str], base: Path, here: Path) -> str:
    """A link of a file in ``base`` as one of a page in ``here``; its text where there is no page."""
    text, target, heading = link[1], (base / link[2]).resolve(), link[3] or ''
    if target in PAGES:
        heading = '' if PAGES[target] == 'index.md' else heading
        target = DOCS / PAGES[target]
    elif (not target.is_relative_to(DOCS) and target.suffix == '.md') or target.is_dir():
        return f'{text} (`{os.path.relpath(target, ROOT)}`)'
    return f'[{text}]({os.path.relpath(target, here)}{heading})'

# SPDX-License-Identifier: Apache-2.0
"""Check that README.md and docs/ say what the code does; prints every mistake, exits 1 if any.

* ``python`` blocks run, each file's in one namespace from top to bottom and in an empty folder, or
  are compared: a block after ``<!-- file: PATH -->`` is PATH (or consecutive lines of it), one after
  ``<!-- config -->`` is loaded as a config and its model built. ``<!-- with: NAME -->`` calls that
  function of :mod:`doc_setup` first. ``<!-- not run: REASON -->`` skips a block.
* ``bash`` blocks: what they name exists (:mod:`doc_commands`). A block runs after ``<!-- run -->``
  or ``<!-- with: NAME -->``; ``<!-- run: NAME -->`` says that a test runs it, ``<!-- not run:
  REASON -->`` why nobody does. One of these must be there.
* Tests and benchmarks that a REASON names exist.
* Every block has a language; ``yaml`` blocks are YAML, and extras that ``pip install`` names exist.
* Relative links and pictures exist, and the headings that links point to.
* A figure followed by ``<!-- FILE.json#key.path FORMAT -->`` is that value of a committed result;
  ``G`` or ``M`` before the format divides by 1e9 or 1e6.
* What stands between ``<!-- begin: FILE -->`` and ``<!-- end -->`` is that file, or made from the
  code (:mod:`doc_generated`); ``--write`` renews it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import doc_setup
from doc_commands import run_commands, unknown_commands, unknown_file
from doc_generated import generated

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(
    r'(?:<!-- (?P<note>[^\n]*?) -->\n)?^```(?P<language>[^\n`]*)\n(?P<code>.*?)^```$', re.M | re.S
)
LINK = re.compile(r'\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)')
INCLUDE = re.compile(r'(<!-- begin: ([^\n]+?) -->\n)(.*?)(<!-- end -->)', re.S)
UNITS = {'G': 1e9, 'M': 1e6}
FIGURE = re.compile(r'([-+]?\d[\d,]*(?:\.\d+)?)[^\d\n<|]{0,16}<!-- (\S+\.json)#(\S+) (\S+) -->')


def main() -> None:
    """Check all documents."""
    os.chdir(ROOT)
    documents = [Path('README.md'), Path('CONTRIBUTING.md'), *sorted(Path('docs').rglob('*.md'))]
    documents = [path for path in documents if '_build' not in path.parts]
    if '--write' in sys.argv[1:]:
        for path in documents:
            path.write_text(INCLUDE.sub(included, path.read_text()))
    mistakes = [f'{path}: {mistake}' for path in documents for mistake in check(path)]
    print('\n'.join(mistakes) or f'{len(documents)} documents agree with the code')
    sys.exit(bool(mistakes))


def check(path: Path) -> Iterator[str]:
    """Mistakes in one document."""
    text = path.read_text()
    with tempfile.TemporaryDirectory() as folder:
        yield from blocks(text, Path(folder))
    yield from links(path, text)
    yield from figures(text)
    for match in INCLUDE.finditer(text):
        try:
            if match[0] != included(match):
                yield f'{match[2]} differs from what is shown of it; run tools/check_docs.py --write'
        except ValueError as error:
            yield str(error)


def blocks(text: str, folder: Path) -> Iterator[str]:
    """Mistakes in the code blocks, which run in ``folder``."""
    namespace: dict[str, Any] = {'__name__': '__main__'}
    for match in BLOCK.finditer(text):
        line = text[: match.start('code')].count('\n') + 1
        note, language, code = match['note'] or '', match['language'], match['code']
        not_run = note.startswith('not run: ')
        if language == 'bash':
            mistake = bash_block(note, code, folder)
        elif not_run:
            mistake = None
        elif language == 'python':
            mistake = python_block(note, code, namespace, folder)
        elif language == 'yaml':
            mistake = yaml_block(code)
        else:
            mistake = None if language else 'the block has no language; "text" if it is none'
        if not_run:
            named = re.findall(r'\b(?:tests|benchmarks)/[\w./]+\w', note)
            mistake = mistake or next((m for name in named for m in unknown_file(name)), None)
        if mistake:
            yield f'line {line}: {mistake}'


def included(match: re.Match[str]) -> str:
    """The block as it should be; empty where the file does not exist.

    Raises:
        ValueError: it is neither a file nor something that can be made.
    """
    source = Path(match[2])
    if source.suffix:
        content = source.read_text().strip() + '\n' if source.exists() else ''
    else:
        content = generated(match[2])
    return f'{match[1]}{content}{match[4]}'


def python_block(note: str, code: str, namespace: dict[str, Any], folder: Path) -> str | None:
    """Run or compare a block; what is wrong with it."""
    if note.startswith('file: '):
        source = Path(note.removeprefix('file: ').strip())
        if not source.exists():
            return f'{source} does not exist'
        if code.strip() not in source.read_text():
            return f'the block is not what {source} says'
        return None
    try:
        with silent_in(folder):
            if note == 'config':
                build_config(code)
                return None
            if note.startswith('with: '):
                namespace.update(getattr(doc_setup, note.removeprefix('with: '))())
            exec(compile(code, '<block>', 'exec'), namespace)
    except Exception:
        return 'the block fails:\n' + traceback.format_exc(limit=-1)
    return None


def bash_block(note: str, code: str, folder: Path) -> str | None:
    """What is wrong with the block: it names what does not exist, fails, or nobody knows if it does."""
    unknown = next(unknown_commands(code), None)
    if unknown or re.match(r'(not )?run: ', note):
        return unknown
    if note != 'run' and not note.startswith('with: '):
        return 'say whether it is run: <!-- run -->, <!-- run: NAME --> or <!-- not run: REASON -->'
    with silent_in(folder):
        if note != 'run':
            getattr(doc_setup, note.removeprefix('with: '))()
        return run_commands(code)


@contextlib.contextmanager
def silent_in(folder: Path) -> Iterator[None]:
    """Work in that folder, and print nothing."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        os.chdir(before)


def yaml_block(code: str) -> str | None:
    """What is wrong with the block."""
    import yaml

    try:
        yaml.safe_load(code)
    except yaml.YAMLError as error:
        return f'the block is no YAML: {error}'
    return None


def build_config(code: str) -> None:
    """Load the text of a config and build its model."""
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmpretrain.registry import MODELS

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'block.py'
        path.write_text(code)
        config = Config.fromfile(path)
    init_default_scope('mmpretrain')
    MODELS.build(config.model)


def links(path: Path, text: str) -> Iterator[str]:
    """Relative links without a file, or without the heading that they name."""
    for target, heading in LINK.findall(BLOCK.sub('', text)):
        found = path.parent / target if target else path
        if not found.exists():
            yield f'link to {target}, which does not exist'
        elif heading and found.suffix == '.md' and heading not in headings(found.read_text()):
            yield f'link to {target}#{heading}: no such heading'


def headings(text: str) -> set[str]:
    """Names that GitHub gives to headings."""
    titles = re.findall(r'^#+ (.+)$', BLOCK.sub('', text), re.M)
    plain = (re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', title).lower() for title in titles)
    return {re.sub(r'[^\w\- ]', '', title).strip().replace(' ', '-') for title in plain}


def figures(text: str) -> Iterator[str]:
    """Figures that differ from the committed result that they name."""
    for shown, file, key, spec in FIGURE.findall(text):
        if not Path(file).exists():
            yield f'{shown}: {file} does not exist'
            continue
        value: Any = json.loads(Path(file).read_text())
        try:
            for part in key.split('.'):
                value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, ValueError):
            yield f'{shown}: {file} has no {key}'
            continue
        unit = UNITS.get(spec[0], 1)
        found = format(value / unit, spec.lstrip('GM')).rstrip('%')
        if found != shown:
            yield f'{shown}: {file} says {key} = {found}'


if __name__ == '__main__':
    main()

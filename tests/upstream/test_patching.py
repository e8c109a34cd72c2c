# SPDX-License-Identifier: Apache-2.0
"""Patches: files, check, apply, undo; on a script of our own, and on the originals if present."""

import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from prmim_adapters.commands.patch import patch
from prmim_adapters.upstream import patching, repositories
from prmim_adapters.upstream.repositories import REPOSITORIES, Repository

PATCHES = Path(__file__).parents[2] / 'patches'
SCRIPT = b'import argparse\nparser = argparse.ArgumentParser()\nmodel = object()\nprint(model)\n'
MODEL = b'class Model: pass\n'
OURS = Repository(
    name='ours',
    url='https://example.org',
    commit='0123456789abcdef',
    licence='Apache-2.0',
    script='main.py',
    blob=patching.blob_hash(SCRIPT),
    insertions=(
        (1, 'import prmim'),
        (2, 'prmim.add_arguments(parser)'),
        (3, 'prmim.attach(model)'),
    ),
    seams=(('model.py', patching.blob_hash(MODEL)),),
)
PATCHED = (
    b'import argparse\nimport prmim\nparser = argparse.ArgumentParser()\n'
    b'prmim.add_arguments(parser)\nmodel = object()\nprmim.attach(model)\nprint(model)\n'
)


@pytest.fixture
def ours(tmp_path, monkeypatch):
    """A repository of our own, known to the patcher."""
    monkeypatch.setattr(patching, 'REPOSITORIES', (OURS,))
    (tmp_path / 'main.py').write_bytes(SCRIPT)
    (tmp_path / 'model.py').write_bytes(MODEL)
    return tmp_path, OURS


def test_blob_hash_is_gits(tmp_path):
    (tmp_path / 'file').write_bytes(SCRIPT)
    git = subprocess.run(
        ['git', 'hash-object', 'file'], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert patching.blob_hash(SCRIPT) == git.stdout.strip()


def test_apply_and_undo(ours):
    folder, repository = ours
    assert patching.identify(folder) is repository
    assert not patching.is_patched(folder, repository)
    patching.apply(folder, repository)
    assert (folder / 'main.py').read_bytes() == PATCHED
    assert patching.is_patched(folder, repository)
    with pytest.raises(patching.PatchError, match='patched already'):
        patching.apply(folder, repository)
    patching.undo(folder, repository)
    assert (folder / 'main.py').read_bytes() == SCRIPT
    with pytest.raises(patching.PatchError, match='is not patched'):
        patching.undo(folder, repository)


def test_git_applies_the_same(ours):
    folder, repository = ours
    (folder / 'x.patch').write_text(repository.patch)
    subprocess.run(['git', 'apply', '--unidiff-zero', 'x.patch'], cwd=folder, check=True)
    assert (folder / 'main.py').read_bytes() == PATCHED
    assert patching.is_patched(folder, repository)


def test_a_changed_script_is_refused(ours):
    folder, repository = ours
    changed = SCRIPT.replace(b'print', b'repr')
    (folder / 'main.py').write_bytes(changed)
    for action in (patching.apply, patching.undo):
        with pytest.raises(patching.PatchError, match=r'not the file of commit 0123456.*by hand'):
            action(folder, repository)
    assert (folder / 'main.py').read_bytes() == changed


def test_an_unknown_folder_is_refused(ours, tmp_path_factory):
    with pytest.raises(patching.PatchError, match=r'no checkout of a supported.*example\.org'):
        patching.identify(tmp_path_factory.mktemp('empty'))


def test_command(ours):
    folder, _ = ours
    (folder / 'model.py').write_bytes(b'class Model: ...\n')

    def run(*arguments):
        return CliRunner().invoke(patch, [str(folder), *arguments])

    checked = run('--check')
    assert 'can be patched' in checked.output
    assert 'model.py differs from commit 0123456' in checked.output
    assert (folder / 'main.py').read_bytes() == SCRIPT
    assert '| patched |' in run().output
    assert (folder / 'main.py').read_bytes() == PATCHED
    assert '| patched |' in run('--check').output
    assert run().exit_code == 2
    assert 'restored' in run('--undo').output
    assert (folder / 'main.py').read_bytes() == SCRIPT
    assert run('--undo', '--check').exit_code == 2


@pytest.mark.parametrize('repository', REPOSITORIES, ids=lambda r: r.name)
def test_patch_files(repository):
    """The files in patches/ are those that the table makes, and only insert."""
    text = (PATCHES / repository.name / 'prmim.patch').read_text()
    assert text == repository.patch
    lines = text.splitlines()
    assert [line for line in lines[2:] if line[0] not in '@+'] == []
    assert [line for line in lines if line.startswith('@@')] == [
        f'@@ -{after},0 +{after + i} @@'
        for i, (after, _) in enumerate(repository.insertions, start=1)
    ]
    guide = (PATCHES / repository.name / 'README.md').read_text()
    assert repository.commit in guide
    assert repository.licence in guide


def test_every_patch_has_a_repository():
    assert {p.parent.name for p in PATCHES.glob('*/*.patch')} == {r.name for r in REPOSITORIES}


@pytest.mark.parametrize(
    ('checkout', 'repository'),
    [(r.name, r) for r in REPOSITORIES],
    indirect=['checkout'],
    ids=lambda value: getattr(value, 'name', value),
)
def test_the_originals(checkout, repository):
    """The pinned commit is recognised; git and we insert the same, after the right lines."""
    assert patching.identify(checkout) is repository
    assert patching.changed_seams(checkout, repository) == []
    script = checkout / repository.script
    before = script.read_bytes()
    patching.apply(checkout, repository)
    ours = script.read_bytes()
    script.write_bytes(before)
    shutil.copy(PATCHES / repository.name / 'prmim.patch', checkout / 'x.patch')
    subprocess.run(['git', 'apply', '--unidiff-zero', 'x.patch'], cwd=checkout, check=True)
    assert script.read_bytes() == ours
    lines = ours.decode().splitlines()
    previous = {line.strip(): lines[i - 1] for i, line in enumerate(lines) if 'prmim' in line}
    assert 'parser = argparse.ArgumentParser(' in previous[repositories.ARGUMENTS.strip()]
    assert previous[repositories.IMPORT].startswith('import torch')
    following = ours.decode().split('prmim.attach(')[1]
    assert '.cuda()' in following or '.to(device)' in following
    patching.undo(checkout, repository)
    assert script.read_bytes() == before

# SPDX-License-Identifier: Apache-2.0
"""Check, patch and restore a checkout of an original repository."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .repositories import REPOSITORIES, Repository


class PatchError(Exception):
    """A checkout that is not as expected; the message says what was found and what to do."""


def identify(folder: Path) -> Repository:
    """The repository in a folder, told by its files.

    Raises:
        PatchError: it is none of :data:`REPOSITORIES`.
    """
    for repository in REPOSITORIES:
        files = (repository.script, *(path for path, _ in repository.seams))
        if all((folder / path).is_file() for path in files):
            return repository
    known = ', '.join(f'{r.name} ({r.url})' for r in REPOSITORIES)
    raise PatchError(f'{folder} is no checkout of a supported repository: {known}')


def is_patched(folder: Path, repository: Repository) -> bool:
    """Whether the script has the inserted lines.

    Raises:
        PatchError: it is neither the pinned commit's nor the patched one.
    """
    script = folder / repository.script
    content = script.read_bytes()
    if blob_hash(content) == repository.blob:
        return False
    if blob_hash(_restored(content, repository)) == repository.blob:
        return True
    lines = '\n'.join(f'    {line.strip()}' for _, line in repository.insertions)
    raise PatchError(
        f'{script} is not the file of commit {repository.commit[:7]} (blob '
        f'{blob_hash(content)[:7]}, expected {repository.blob[:7]}), so line numbers cannot be '
        f'trusted. Either `git -C {folder} checkout {repository.commit}`, or add these lines by '
        'hand: after the imports, after the parser is made, and after the model is made but '
        f'before it is moved to a device:\n{lines}'
    )


def apply(folder: Path, repository: Repository) -> None:
    """Insert the lines.

    Raises:
        PatchError: they are there already, or as :func:`is_patched`.
    """
    if is_patched(folder, repository):
        raise PatchError(
            f'{folder / repository.script} is patched already; --undo takes the lines out'
        )
    script = folder / repository.script
    lines = script.read_bytes().splitlines(keepends=True)
    for after, line in reversed(repository.insertions):
        lines.insert(after, f'{line}\n'.encode())
    script.write_bytes(b''.join(lines))


def undo(folder: Path, repository: Repository) -> None:
    """Take the lines out: the file is the pinned commit's again, byte for byte.

    Raises:
        PatchError: they are not there, or as :func:`is_patched`.
    """
    if not is_patched(folder, repository):
        raise PatchError(f'{folder / repository.script} is not patched')
    script = folder / repository.script
    script.write_bytes(_restored(script.read_bytes(), repository))


def changed_seams(folder: Path, repository: Repository) -> list[str]:
    """Model files that differ from the pinned commit's: the adapter is not tested with them."""
    return [
        path for path, blob in repository.seams if blob_hash((folder / path).read_bytes()) != blob
    ]


def blob_hash(content: bytes) -> str:
    """Git's hash of a file."""
    return hashlib.sha1(b'blob %d\0' % len(content) + content, usedforsecurity=False).hexdigest()


def _restored(content: bytes, repository: Repository) -> bytes:
    """The content without the inserted lines, if they are at their places."""
    lines = content.splitlines(keepends=True)
    for after, line in repository.insertions:
        if after < len(lines) and lines[after] == f'{line}\n'.encode():
            del lines[after]
    return b''.join(lines)

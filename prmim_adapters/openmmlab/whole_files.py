# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all, whenever the process that writes them is killed.

mmengine writes a checkpoint straight to its final name: killed in between, it leaves a torn file
where the only good one was. Its backend for local files is replaced by one that writes beside the
target and renames.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import IO

import mmengine.fileio
import torch
from mmengine.fileio import LocalBackend


class WholeFileBackend(LocalBackend):
    """Local files, each written whole."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes."""
        with whole_file(filepath) as stream:
            stream.write(obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text."""
        self.put(obj.encode(encoding), filepath)


def write_whole_files() -> None:
    """Make mmengine write local files whole; calling it again changes nothing."""
    mmengine.fileio.register_backend('local', WholeFileBackend, force=True, prefixes='')


@contextmanager
def whole_file(path: str | Path) -> Iterator[IO[bytes]]:
    """A stream to a file beside ``path``, which takes its place when all has been written."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.name}.partial')  # the next attempt uses the same
    with partial.open('wb') as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def damage(path: Path) -> str | None:
    """What keeps a checkpoint from being read, or None: torn, or other bytes than were written.

    A checkpoint of torch is a zip file, whose directory stands at its end, with checksums of all but
    itself: so torch opens it too. Folders (of sharded checkpoints) and files of torch < 1.6 are not
    examined.
    """
    try:
        if path.is_dir() or _is_legacy(path):
            return None
        with zipfile.ZipFile(path) as archive:
            member = archive.testzip()
        if member is not None:
            return f'{member} differs from its checksum'
        torch.load(path, map_location='cpu', mmap=True, weights_only=True)
    except UnpicklingError:  # whole, and asks for more than data
        return None
    # A changed bit in the directory says that a file is encrypted, or compressed in unknown ways.
    except Exception as error:
        return str(error).partition('\n')[0] or type(error).__name__
    return None


def _is_legacy(path: Path) -> bool:
    """Whether the file begins like one pickle, as checkpoints did before torch 1.6."""
    with path.open('rb') as stream:
        return stream.read(2) == b'\x80\x02'


def newest_whole(folder: Path, *patterns: str) -> tuple[Path | None, dict[Path, str]]:
    """The newest whole checkpoint of a folder, and the newer ones that are not, with the reason.

    Args:
        folder: where to look.
        patterns: of file names, beside those that mmengine's hook gives by default.
    """
    names = ('epoch_*.pth', 'iter_*.pth', *patterns)
    found = {path for pattern in names for path in folder.glob(pattern)}
    skipped: dict[Path, str] = {}
    for path in sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        reason = damage(path)
        if reason is None:
            return path, skipped
        skipped[path] = reason
    return None, skipped

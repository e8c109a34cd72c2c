# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files read with suspicion: no code runs, and every refusal is one line with the file.

``weights_only`` keeps pickle from calling what a file names. It does not see that a small file
unpacks to a large one, and its messages are for programmers and name no file.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..allow_list import shown


class CheckpointError(ValueError):
    """A file that is no checkpoint, is damaged, or asks for more than data; names the file."""


def read_checkpoint(path: str | Path, map_location: Any = 'cpu') -> Any:
    """What a file holds, by ``torch.load(weights_only=True)``.

    Args:
        path: local file that ``torch.save`` wrote.
        map_location: as in ``torch.load``.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: it cannot be read, or asks for something else than data.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file')
    _check_memory(path)
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    # torch and pickle raise whatever their parsers stumble over: KeyError, struct.error, ...
    except Exception as error:
        raise CheckpointError(f'{path} cannot be read as a checkpoint: {reason(error)}') from error


_WRAPPED = 'module.'
"""Before all names where a wrapper was saved, as mmengine's ``DDPStrategy`` does."""


def weights_of(content: Any, path: str | Path) -> dict[str, Tensor]:
    """The weights in a checkpoint: its ``state_dict``, or all of it.

    Args:
        content: what :func:`read_checkpoint` gives.
        path: named in errors.

    Returns:
        By the model's own names, also where it was saved inside its wrapper.

    Raises:
        CheckpointError: it is not names with dense tensors that their own bytes fill, or a number
            among them is not finite.
    """
    weights = content.get('state_dict', content) if isinstance(content, dict) else content
    if not isinstance(weights, dict) or not weights:
        raise CheckpointError(f'{path} holds no weights: expected a `state_dict` with tensors')
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f'{path} holds no weights: {shown(name)} is a {type(value).__name__}, no tensor'
            )
        _check_tensor(name, value, path)
    if all(name.startswith(_WRAPPED) for name in weights):
        return {name.removeprefix(_WRAPPED): value for name, value in weights.items()}
    return dict(weights)


def reason(error: BaseException) -> str:
    """The one line of an error of torch or pickle that says what is wrong with a file."""
    text = str(error)
    refused = re.search(r'WeightsUnpickler error:\s*(.*)', text)
    line = (refused.group(1) if refused else text.strip()).splitlines()[:1]
    short = re.sub(
        r' Please use `torch.*| was not an allowed global by default\.', '', *line or ['']
    )
    kind = type(error).__name__
    return short if refused and short else f'{kind}: {short}' if short else kind


def one_line(error: BaseException, length: int = 400) -> str:
    """The text of an error in one line, cut where it lists every key of a model."""
    text = ' '.join(str(error).split())
    return text if len(text) <= length else f'{text[:length]} ...'


#: What torch allows, and what makes as many bytes as a small file asks for.
_BYTES_BY_NUMBER = re.compile(rb'c(builtins|__builtin__)\nbytearray\n')


def _check_memory(path: Path) -> None:
    """torch writes its archives without compression, so no entry is larger than the file."""
    size = path.stat().st_size
    if not size:
        raise CheckpointError(f'{path} is empty')
    unpacked, program = 0, b''
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked <= size:
                names = [name for name in archive.namelist() if name.endswith('data.pkl')]
                program = b''.join(map(archive.read, names))
    except Exception:  # no archive, or a damaged one: torch says which
        program = path.read_bytes()
    if unpacked > size:
        raise CheckpointError(
            f'{path} has {size} bytes and claims to hold {unpacked}: torch does not compress '
            'checkpoints, so this one was made to fill the memory, or is damaged'
        )
    if _BYTES_BY_NUMBER.search(program):
        raise CheckpointError(
            f'{path} cannot be read as a checkpoint: it asks for a bytearray, which could fill the '
            'memory'
        )


def _check_tensor(name: str, value: Tensor, path: str | Path) -> None:
    if value.layout is not torch.strided or value.is_meta or value.is_quantized:
        raise CheckpointError(f'{path}: {name} is not an ordinary tensor')
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise CheckpointError(
            f'{path}: {name} has the shape {tuple(value.shape)} and holds only '
            f'{value.untyped_storage().nbytes()} bytes'
        )
    inexact = value.is_floating_point() or value.is_complex()
    if inexact and not torch.isfinite(value).all():
        raise CheckpointError(f'{path}: {name} is not finite (NaN or infinite): training diverged')

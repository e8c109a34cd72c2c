# SPDX-License-Identifier: Apache-2.0
"""One JSON file per point, written atomically: a result is there whole, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..core.options import check_number
from .files import FileError, read_json
from .spec import Point

RESULT, FAILURE = 'result.json', 'failure.json'
#: Written when a point begins: a training run is resumed only under the settings it began with.
SETTINGS = 'settings.json'
#: What a training run leaves in its work directory for the sweep.
MEASUREMENTS = 'measurements.json'


class ChangedSettingsError(RuntimeError):
    """A folder holds results of other settings than the spec's."""


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write beside the target, then rename: a killed process leaves no half-written file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.{os.getpid()}')
    with partial.open('w') as stream:
        json.dump(data, stream, indent=2, sort_keys=True)
        stream.write('\n')
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def fingerprint(settings: dict[str, Any]) -> str:
    """Short hash of all that decides the outcome of a point."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _fingerprints(settings: dict[str, Any]) -> tuple[str, str]:
    """What a result may have: the second was written before the transfers' files were looked at."""
    before = {key: value for key, value in settings.items() if key != 'transfer_files'}
    return fingerprint(settings), fingerprint(before)


def result_of(point: Point, settings: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """The finished result of a point, None if there is none yet.

    Raises:
        ChangedSettingsError: it was made with other settings.
    """
    result = read_json(folder / RESULT)
    if result is not None:
        _check_result(result, folder / RESULT)
    if result is not None and result['settings'] not in _fingerprints(settings):
        raise _changed(folder, 'the result', point)
    return result


def _check_result(result: dict[str, Any], path: Path) -> None:
    """Refuse a result that lacks what reports read, or has something else than finite numbers there.

    Raises:
        FileError: it does.
    """
    for part in ('accuracy', 'cost'):
        values = result.get(part)
        if not isinstance(values, dict):
            raise FileError(f'{path}: is damaged, {part} holds no numbers; delete it')
        for name, value in values.items():
            try:
                check_number(f'{part}.{name}', value)
            except (TypeError, ValueError) as error:
                raise FileError(f'{path}: is damaged, {error}; delete it') from None
    environment = result.get('environment')
    if not isinstance(environment, dict) or not {'gpu', 'processor'} <= environment.keys():
        raise FileError(f'{path}: is damaged, environment names no machine; delete it')
    if not isinstance(result.get('settings'), str):
        raise FileError(f'{path}: is damaged, it has no settings; delete it')


def check_resumable(point: Point, settings: dict[str, Any], folder: Path) -> None:
    """Refuse to resume a training run that began with other settings, or unknown ones.

    Raises:
        ChangedSettingsError: it did.
    """
    begun = read_json(folder / SETTINGS) or {}
    if has_begun(folder) and begun.get('settings') not in _fingerprints(settings):
        raise _changed(folder, 'an unfinished run', point)


def has_begun(folder: Path) -> bool:
    """Whether the training run of a point has left something to resume."""
    return any((folder / 'train' / name).exists() for name in ('last_checkpoint', MEASUREMENTS))


def _changed(folder: Path, what: str, point: Point) -> ChangedSettingsError:
    return ChangedSettingsError(
        f'{folder} holds {what} of other settings than the spec gives for {point.name}. Never edit '
        'an experiment that has begun: choose another --out, or delete that folder to redo the '
        'point'
    )


def assemble(
    point: Point,
    settings: dict[str, Any],
    measurements: dict[str, Any],
    seconds: float | None,
    launch: dict[str, Any],
) -> dict[str, Any]:
    """A point's JSON: what was run, where, what it cost, what came out.

    ``seconds`` is None where the point was interrupted: nobody knows the time of what came before.
    """
    wall = {} if seconds is None else dict(wall_seconds=seconds)
    return dict(
        point=asdict(point),
        settings=fingerprint(settings),
        arm=settings['arm'],
        accuracy=measurements['accuracy'],
        cost=measurements['cost'] | wall,
        launch=launch,
        environment=measurements['environment'],
    )


def last_scalar(work_dir: Path, metric: str) -> float | None:
    """The last value of ``metric`` in the logs that mmengine wrote under ``work_dir``."""
    for log in sorted(work_dir.glob('*/vis_data/scalars.json'), reverse=True):
        entries = [json.loads(line) for line in log.read_text().splitlines()]
        values = [entry[metric] for entry in entries if metric in entry]
        if values:
            return float(values[-1])
    return None

# SPDX-License-Identifier: Apache-2.0
"""Points of accuracy sweeps with the time that is left: several processes on one card.

A sweep goes seed by seed through all of its arms, so one that is cut off still compares them, and
goes on from there the next time.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from .context import ROOT, Context

NEEDED = {'mim': 'openmim', 'matplotlib': 'matplotlib', 'sklearn': 'scikit-learn'}
SHORT_SECONDS = 20 * 60.0  # in which no run of 200 epochs ends
ENDING_SECONDS = 10.0  # to end its points and let go of the card


@dataclass(frozen=True)
class Study:
    """A sweep, and a folder that it reads from where the command is run."""

    spec: Path
    data: Path


def studies(seconds: float) -> list[Study]:
    """CIFAR-10, a short version of it where little time is left, then Tiny-ImageNet."""
    cifar = 'cifar10_mae' if seconds > SHORT_SECONDS else 'cifar10_mae_minutes'
    data = {cifar: 'data/cifar10/train', 'tinyimagenet_mae': 'data/tiny-imagenet-200'}
    return [Study(ROOT / 'sweeps' / f'{name}.yaml', Path(data[name])) for name in data]


def sweep(context: Context) -> dict[str, Any]:
    """State of each sweep after its share of the time that is left."""
    found: dict[str, Any] = {}
    todo = studies(context.seconds_left)
    for place, study in enumerate(todo):
        reason = missing(study)
        if reason and (not context.dry or reason.endswith('installed')):
            found[study.spec.stem] = {'skipped': reason}
        else:
            if not context.dry:
                share = context.seconds_left / (len(todo) - place) - ENDING_SECONDS
                run_until(_command(context, study), time.time() + share)
            found[study.spec.stem] = _state(context, study)
        context.keep(found)
    return found


def missing(study: Study) -> str | None:
    """Why a study cannot run here, in a word."""
    for module, package in NEEDED.items():
        if importlib.util.find_spec(module) is None:
            return f'{package} is not installed'
    if not study.data.is_dir():
        return f'there is no {study.data}'
    return None


def run_until(command: list[str], deadline: float) -> int | None:
    """Run a command; interrupt it at the deadline (``time.time()``), and end it if it does not heed.

    Returns:
        Its exit code; None if it was interrupted.
    """
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait(max(deadline - time.time(), 0.0))
    except subprocess.TimeoutExpired:
        process.terminate()  # Ctrl-C is ignored by what a shell started in the background
    try:
        process.wait(ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return None


def _arguments(context: Context, study: Study) -> list[str]:
    return [str(study.spec), '--out', str(context.out / 'sweeps' / study.spec.stem)]


def _command(context: Context, study: Study) -> list[str]:
    jobs = min(max((os.cpu_count() or 1) // 3, 1), 6)
    command = [sys.executable, '-m', 'prmim_adapters.cli', 'sweep', *_arguments(context, study)]
    return [*command, '--jobs', str(jobs)]


def _state(context: Context, study: Study) -> dict[str, Any]:
    """Finished, failed and missing points, as the command itself reports them."""
    from prmim_adapters.commands.sweep import sweep as command

    arguments = [*_arguments(context, study), '--report-only', '--json']
    result = CliRunner().invoke(command, arguments)
    text = result.stdout
    if '{' not in text:
        raise RuntimeError(f'prmim sweep {" ".join(arguments)}: {result.output} {result.exception}')
    return json.loads(text[text.index('{') :])

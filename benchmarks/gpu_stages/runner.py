# SPDX-License-Identifier: Apache-2.0
"""Runs stages in order, within the time there is, and keeps every result the moment it is there.

The stages run in one process of their own, so that imports and the device are paid for once. It is
ended, and another started, when a stage hangs, or leaves the device unusable.
"""

from __future__ import annotations

import gc
import importlib
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .plan import CALIBRATION, Stage, estimate, made_of_steps

SUMMARY = 'run.json'
LEAST_LIMIT, LIMIT_FACTOR = 60.0, 4.0  # a stage that takes four times its estimate hangs
DRY_SECONDS = 3.0


@dataclass
class Outcome:
    """How a stage ended: 'done', 'failed', 'stopped' (time) or 'skipped', with a word why not done.

    Attributes:
        result: of the stage; what there was of it, if it did not get to its end.
        record: where it ran.
    """

    status: str
    word: str = ''
    result: Any = None
    record: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


class Worker:
    """The process that runs stages; started when first needed.

    Args:
        out: folder of the results. dry: small models on the CPU.
    """

    def __init__(self, out: Path, dry: bool) -> None:
        self.out, self.dry = out, dry
        self._process: Any = None
        self._pipe: Any = None

    def run(self, stage: Stage, seconds: float) -> Outcome:
        """Run one stage, for at most so many seconds."""
        begin = time.time()
        outcome = self._run(stage, begin + seconds)
        outcome.seconds = time.time() - begin
        return outcome

    def _run(self, stage: Stage, deadline: float) -> Outcome:
        if self._process is None:
            self._start()
        self._pipe.send((stage.task, stage.options, deadline))
        partial = None
        while True:
            if not self._pipe.poll(max(deadline - time.time(), 0.0)):
                self.end()
                return Outcome('stopped', 'its time was over', partial)
            try:
                kind, value, record = self._pipe.recv()
            except EOFError:
                self._process.join(5.0)
                code = self._process.exitcode
                self.end()
                return Outcome('failed', f'its process ended with code {code}', partial)
            if kind == 'partial':
                partial = value
                continue
            if kind == 'done':
                return Outcome('done', '', value, record)
            if kind == 'broken':  # an error of the device stays with its process
                self.end()
            return Outcome('failed', value, partial, record)

    def _start(self) -> None:
        context = multiprocessing.get_context('spawn')
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=serve, args=(theirs, self.out, self.dry), daemon=True
        )
        self._process.start()
        theirs.close()

    def end(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def serve(pipe: Connection, out: Path, dry: bool) -> None:
    """What the process does: run the tasks that it is sent."""
    from .context import Context

    device = 'cpu' if dry else 'cuda'

    def keep(result: dict[str, Any]) -> None:
        pipe.send(('partial', json.loads(json.dumps(result)), {}))

    while True:
        try:
            task, options, deadline = pipe.recv()
        except EOFError:
            return
        module, _, function = task.rpartition('.')
        try:
            run = getattr(importlib.import_module(module), function)
            result = run(Context(out, dry, device, deadline, keep), **options)
            message = ('done', json.loads(json.dumps(result)))
        except Exception as error:
            traceback.print_exc()
            word = _root_cause(error)
            message = ('failed' if _usable(device) else 'broken', word)
        pipe.send((*message, _record(device)))


def _root_cause(error: BaseException) -> str:
    """What it began with, in a line."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    lines = str(error).strip().splitlines() or ['']
    return f'{type(error).__name__}: {lines[0]}'


def _usable(device: str) -> bool:
    """Whether a failed stage left the device as it should be, all memory free again."""
    if device == 'cpu':
        return True
    import torch

    try:
        gc.collect()
        torch.cuda.empty_cache()
        return (
            float(torch.ones(1, device=device).sum()) == 1.0
            and torch.cuda.memory_reserved() < 2**30
        )
    except RuntimeError:
        return False


def _record(device: str) -> dict[str, Any]:
    """Where a stage ran; nothing of one that had no use for torch."""
    if 'torch' not in sys.modules:
        return {}
    import torch

    from prmim_adapters.accounting.environment import environment, gpu_state

    found = environment(torch.device(device))
    return found if device == 'cpu' else {**found, 'gpu': gpu_state()}


class Run:
    """One call of the command.

    Args:
        stages: in order.
        out: folder of the results.
        minutes: there are.
        dry: on the CPU.
        resume: leave out what is done already.
        commit: of the checkout, where git cannot say.
        say: prints a line.
    """

    def __init__(
        self,
        stages: list[Stage],
        out: Path,
        minutes: float,
        dry: bool = False,
        resume: bool = False,
        commit: str | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.stages, self.out, self.dry, self.resume = stages, out, dry, resume
        self.commit, self.say = commit, say
        self.begin = time.time()
        self.deadline = self.begin + minutes * 60
        self.worker = Worker(out, dry)
        self.summary: dict[str, dict[str, Any]] = {}
        self.calibration: dict[str, Any] | None = None
        self._estimated = self._taken = 0.0
        self._missing = ''

    def __call__(self) -> bool:
        """Run all stages; whether none failed."""
        self.out.mkdir(parents=True, exist_ok=True)
        try:
            for number, stage in enumerate([CALIBRATION, *self.stages]):
                title = f'{number}/{len(self.stages)} {stage.name}: {stage.title}'
                if self._missing:
                    self._note(stage, 'skipped', self._missing, title)
                else:
                    self._stage(stage, title)
        finally:
            self.worker.end()
        statuses = [entry['status'] for entry in self.summary.values()]
        parts = [f'{statuses.count(s)} {s}' for s in dict.fromkeys(statuses)]
        self.say(f'{_clock(time.time() - self.begin)}  {", ".join(parts)}; results in {self.out}')
        return 'failed' not in statuses

    def _stage(self, stage: Stage, title: str) -> None:
        left = self.deadline - time.time()
        path = self.out / f'{stage.name}.json'
        before = _read(path) if self.resume and stage is not CALIBRATION else None
        if before is not None and before['status'] == 'done':
            self._note(stage, 'done before', '', title)
            return
        if find_spec(stage.needs) is None:
            self._note(stage, 'skipped', f'{stage.needs} is not installed', title)
            return
        expected = self._expected(stage)
        if expected > left:
            word = f'takes about {expected:.0f} s, {max(left, 0):.0f} s are left'
            self._note(stage, 'skipped', word, title)
            return
        self.say(f'{_clock(left)} left  {title}, about {expected:.0f} s')
        limit = max(LEAST_LIMIT, LIMIT_FACTOR * expected)
        if self.dry or stage.name == 'evidence':  # a loaded CPU says nothing of a stage
            limit = left
        outcome = self.worker.run(stage, min(limit, left))
        self._write(path, stage, outcome, expected)
        if outcome.status == 'done' and stage is CALIBRATION:
            self.calibration = outcome.result
        elif stage is CALIBRATION and outcome.word.startswith(('ModuleNotFound', 'ImportError')):
            self._missing = outcome.word  # every stage would say so
        elif outcome.status == 'done' and made_of_steps(stage):
            self._estimated += expected / self._pace
            self._taken += outcome.seconds
        word = outcome.word or f'in {outcome.seconds:.0f} s'
        self._note(stage, outcome.status, word, '')

    def _expected(self, stage: Stage) -> float:
        """Seconds; the sizes of a dry run have nothing to do with the estimates."""
        if self.dry:
            return DRY_SECONDS
        seconds = estimate(stage, self.calibration)
        return seconds * self._pace if made_of_steps(stage) else seconds

    @property
    def _pace(self) -> float:
        """How much longer steps took than estimated, so far."""
        return self._taken / self._estimated if self._estimated else 1.0

    def _note(self, stage: Stage, status: str, word: str, title: str) -> None:
        left = self.deadline - time.time()
        self.say(f'{_clock(left)} left  {title or stage.name}: {status}{word and ", " + word}')
        self.summary[stage.name] = {'status': status, 'word': word}
        data = {'commit': self.commit, 'dry': self.dry, 'stages': self.summary}
        _write_json(self.out / SUMMARY, data)

    def _write(self, path: Path, stage: Stage, outcome: Outcome, expected: float) -> None:
        if self.commit:
            outcome.record['commit'] = self.commit
        _write_json(
            path,
            {
                'stage': stage.name,
                'title': stage.title,
                'status': outcome.status,
                'word': outcome.word,
                'dry': self.dry,
                'seconds': outcome.seconds,
                'estimated_seconds': expected,
                'finished': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
                'environment': outcome.record,
                'result': outcome.result,
            },
        )


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def _write_json(path: Path, data: Any) -> None:
    """Whole, or not at all."""
    draft = path.with_suffix('.tmp')
    draft.write_text(json.dumps(data, indent=1) + '\n')
    os.replace(draft, path)


def _clock(seconds: float) -> str:
    return f'{int(max(seconds, 0)) // 60:d}:{int(max(seconds, 0)) % 60:02d}'

# SPDX-License-Identifier: Apache-2.0
"""Training ends with ``mim train``, whatever ends that, and on SIGTERM as on Ctrl-C.

``mim train`` starts the training script, or torchrun, as a process of its own and hands no signal on:
ended by Slurm, Kubernetes or ``kill``, it would leave the training running.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import psutil
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

_SECONDS = 1.0  # between two looks


@HOOKS.register_module()
class EndWithLauncherHook(Hook):
    """End this training process by a KeyboardInterrupt on SIGTERM, and when ``mim train`` is gone.

    Without ``mim train`` among its parents, a process (of ``torchrun`` or ``srun``) takes SIGTERM
    only. A program that handles SIGTERM in its own way goes on doing so.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner | None) -> None:
        """Handle the signal, and begin to watch."""
        self.over = threading.Event()
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        ):
            signal.signal(signal.SIGTERM, _interrupt)
        launcher = mim_train()
        if launcher is not None:
            threading.Thread(target=self._watch, args=(launcher,), daemon=True).start()

    def after_run(self, runner: Runner | None) -> None:
        """Leave signals as they were."""
        self.over.set()
        if signal.getsignal(signal.SIGTERM) is _interrupt:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _watch(self, launcher: psutil.Process) -> None:
        while not self.over.wait(_SECONDS):
            if not runs(launcher):
                os.kill(os.getpid(), signal.SIGTERM)
                return


def mim_train() -> psutil.Process | None:
    """The ``mim train`` that this process descends from."""
    for parent in psutil.Process().parents():
        try:
            words = [Path(word).name for word in parent.cmdline()]
        except psutil.Error:  # another user's
            continue
        if 'mim' in words and 'train' in words:
            return parent
    return None


def runs(process: psutil.Process) -> bool:
    """Whether a process is there, and not only waits to be reaped."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt('SIGTERM')

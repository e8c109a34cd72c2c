# SPDX-License-Identifier: Apache-2.0
"""Checkpoints from which a run that was killed at any moment goes on as if it had not been."""

from __future__ import annotations

import inspect
from collections import deque
from pathlib import Path
from typing import Any

from mmengine.dist import all_gather_object, broadcast_object_list, get_rank, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from .data_order import DataOrder
from .distributed import unwrapped
from .random_states import random_states, set_random_states
from .whole_files import newest_whole

_KEY = 'prmim_resume'  # in the checkpoint's `meta`


@HOOKS.register_module()
class ResumableCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, and what it lacks to resume bit for bit.

    * An old checkpoint is removed when the new one is there, not before.
    * ``resume=True`` takes the newest checkpoint that is whole, and names those that are not.
    * The random states of all processes and the order of the data are saved and restored, also in
      the middle of an epoch, with and without data workers.
    * A validation that was to follow the checkpoint is done before training goes on.

    Validation leaves the random states as it finds them. Gradients that are being accumulated are
    not saved: let ``interval`` be a multiple of ``accumulative_counts``.

    In a config, with the arguments of ``CheckpointHook``::

        default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook'))

    Raises:
        TypeError: an option that ``CheckpointHook`` does not have.
    """

    keep_ckpt_ids: deque[int]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.args:  # mmengine would find out at the first checkpoint
            known = list(inspect.signature(CheckpointHook).parameters)[:-1]
            raise TypeError(
                f'ResumableCheckpointHook has no option {next(iter(self.args))!r}. Its options are '
                f'{", ".join(known)}'
            )
        self._saved: dict[str, Any] | None = None
        self._to_continue = False
        self._before_val: dict[str, Any] | None = None

    def before_run(self, runner: Runner) -> None:
        """Choose the checkpoint to resume from, unless the config names it."""
        if runner._resume and runner._load_from is None:
            choice = [self._newest(runner) if is_main_process() else None]
            broadcast_object_list(choice)
            runner._load_from = choice[0]

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Keep what was saved until training begins."""
        self._saved = checkpoint.get('meta', {}).get(_KEY)

    def before_train(self, runner: Runner) -> None:
        """Take the order of the data in hand."""
        super().before_train(runner)
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids = deque(self.keep_ckpt_ids)  # one more while the newest is written
        self.data = DataOrder(runner)
        self._to_continue = runner.iter > 0
        if self._to_continue and self.data.validates_now():
            runner.val_loop.run()

    def before_train_epoch(self, runner: Runner) -> None:
        """Go on where the checkpoint was made, if the run is a resumed one and begins."""
        if self._to_continue:
            self._to_continue = False
            self._continue(runner)

    def before_val(self, runner: Runner) -> None:
        """Keep the random states, so that training does not depend on validation."""
        self._before_val = random_states(unwrapped(runner.model))

    def after_val(self, runner: Runner) -> None:
        """See :meth:`before_val`."""
        if self._before_val is not None:
            set_random_states(self._before_val, unwrapped(runner.model))
            self._before_val = None

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        """On all processes: save, then remove what is older than ``max_keep_ckpts``."""
        states = self._before_val or random_states(unwrapped(runner.model))
        meta[_KEY] = dict(ranks=all_gather_object(states), data=self.data.state())
        self.max_keep_ckpts += 1  # the parent removes before it saves
        super()._save_checkpoint_with_step(runner, step, meta)
        self.max_keep_ckpts -= 1
        while 0 < self.max_keep_ckpts < len(self.keep_ckpt_ids):
            self._remove(self.filename_tmpl.format(self.keep_ckpt_ids.popleft()))

    def _remove(self, name: str) -> None:
        path = self.file_backend.join_path(self.out_dir, name)
        if is_main_process() and self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif is_main_process() and self.file_backend.isdir(path):
            self.file_backend.rmtree(path)  # of a sharded checkpoint

    def _newest(self, runner: Runner) -> str | None:
        """Path of the newest whole checkpoint; None if there is none, as at the first start."""
        folder = Path(runner.work_dir)
        if self.out_dir is not None:
            folder = Path(self.out_dir) / folder.name  # the parent's rule
        path, damaged = newest_whole(folder, self.filename_tmpl.format('*'))
        for other, reason in damaged.items():
            runner.logger.warning(f'{other} is not resumed from, as it is damaged: {reason}')
        if path is None and damaged:
            raise ValueError(
                f'resume=True, but every checkpoint in {folder} is damaged: '
                f'{", ".join(f"{p.name} ({r})" for p, r in damaged.items())}. Remove them to train '
                'from the beginning'
            )
        return None if path is None else str(path)

    def _continue(self, runner: Runner) -> None:
        saved = self._saved or dict(ranks=[], data=self.data.state())
        states = saved['ranks']
        fits = len(states) == runner.world_size
        if not fits:
            runner.logger.warning(
                f'resumed, but not bit for bit: the checkpoint has the random states of '
                f'{len(states)} process(es), and this run {runner.world_size}; they draw anew'
            )

        def restore() -> None:
            if fits:
                set_random_states(states[get_rank()], unwrapped(runner.model))

        if saved['data']['batches'] == self.data.state()['batches']:
            self.data.resume(saved['data'], restore)
        else:
            runner.logger.warning(
                f'an epoch has {self.data.state()["batches"]} batches, and had '
                f'{saved["data"]["batches"]} before: it begins anew'
            )
            restore()

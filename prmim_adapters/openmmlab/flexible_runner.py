# SPDX-License-Identifier: Apache-2.0
"""What mmengine's FlexibleRunner needs to resume as its Runner does.

It reads the checkpoint before any hook is asked, so that ``ResumableCheckpointHook`` could not
choose the newest whole one. Here that hook is asked first.
"""

from __future__ import annotations

import functools

from mmengine.runner import FlexibleRunner

from .resumable_checkpoint import ResumableCheckpointHook


def resume_from_whole_files() -> None:
    """Let the hook choose; calling it again changes nothing."""
    load_or_resume = FlexibleRunner.load_or_resume
    if hasattr(load_or_resume, '__wrapped__'):
        return

    @functools.wraps(load_or_resume)
    def choose_first(runner: FlexibleRunner) -> None:
        for hook in runner.hooks:
            if isinstance(hook, ResumableCheckpointHook):
                hook.before_run(runner)
        load_or_resume(runner)

    FlexibleRunner.load_or_resume = choose_first

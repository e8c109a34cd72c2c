# SPDX-License-Identifier: Apache-2.0
"""The engine that runs points on this machine, some at a time, each in processes of its own."""

from __future__ import annotations

import queue
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from .display import Display
from .point import Launch, PointRun, described
from .processes import Children
from .spec import Point, Spec


@dataclass(frozen=True)
class LocalEngine:
    """Runs points on this machine; they end with the sweep.

    Attributes:
        launch: flags for ``mim train``.
        jobs: points run at a time.
        devices: CUDA devices to share among the jobs, ``launch.gpus`` to each; None leaves
            ``CUDA_VISIBLE_DEVICES`` as it is.

    Raises:
        ValueError: more jobs than the devices can serve.
    """

    launch: Launch = field(default_factory=Launch)
    jobs: int = 1
    devices: list[str] | None = None

    def __post_init__(self) -> None:
        self._device_groups()

    def run(self, points: list[Point], spec: Spec, out: Path, display: Display) -> dict[str, str]:
        """Run points; those that fail do not stop the others.

        Returns:
            dict: name of each failed point to the reason.
        """
        groups: queue.Queue[str | None] = queue.Queue()
        for group in self._device_groups():
            groups.put(group)
        failures: dict[str, str] = {}
        with Children() as children, ThreadPoolExecutor(self.jobs) as executor:

            def run(point: Point) -> None:
                devices = groups.get()
                try:
                    display.begun(point.name)
                    folder = out / point.name
                    PointRun(point, spec, folder, self.launch, devices, children).run()
                finally:
                    groups.put(devices)

            futures: dict[Future[None], Point] = {executor.submit(run, p): p for p in points}
            pending = set(futures)
            try:
                while pending:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        name, error = futures[future].name, future.exception()
                        if error is not None:
                            failures[name] = described(error)
                        display.ended(name, failed=error is not None)
            except BaseException:
                executor.shutdown(wait=False, cancel_futures=True)
                children.end()
                raise
        return failures

    def _device_groups(self) -> list[str | None]:
        """CUDA_VISIBLE_DEVICES of each job."""
        if self.devices is None:
            return [None] * self.jobs
        size, count = max(self.launch.gpus, 1), len(self.devices)
        if self.jobs * size > count:
            raise ValueError(
                f'{self.jobs} jobs of {size} GPU need {self.jobs * size} devices, found {count}: '
                'lower --jobs'
            )
        return [','.join(self.devices[i : i + size]) for i in range(0, count - size + 1, size)]

# SPDX-License-Identifier: Apache-2.0
"""Pictures and losses of kept and thrown tokens during training, in every log backend.

custom_imports = dict(imports=['prmim_adapters.openmmlab',
                               'prmim_adapters.visualization.reconstruction_hook'])
custom_hooks = [dict(type='ReconstructionHook', interval=10)]
visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from torch import nn

from ..adapters import partial_of
from ..core.options import check_flag, check_whole
from ..core.seeding import seeded
from ..openmmlab.cuda_graph import CUDAGraphHook
from ..openmmlab.distributed import unwrapped
from .display import Display, display_of
from .load import image_files, load_images
from .observe import losses_by_role, observe, recorded
from .panels import panels


def _given(images: Any) -> list[str] | None:
    """The option ``images`` as a list."""
    if images is None:
        return None
    paths = list(images) if isinstance(images, (list, tuple)) else [images]
    if not paths or not all(isinstance(path, (str, Path)) and str(path) for path in paths):
        raise ValueError(
            f'ReconstructionHook: images={images!r}: give files and folders, or None for images of '
            'the training set'
        )
    return list(map(str, paths))


@HOOKS.register_module()
class ReconstructionHook(Hook):
    """Draw what the model keeps, throws and rebuilds of a fixed set of images, as ``prmim show``.

    The picture, named ``reconstruction``, goes to every backend of the config's visualizer: before
    the first step, at the interval, and after the last one. Masks and kept tokens of the pictures
    are the same every time. ``loss_kept`` and ``loss_thrown``, the framework's own loss over kept
    and over thrown tokens of each training batch, go where ``loss`` goes; models that predict
    features have neither them nor a reconstruction. Training is the same with and without this
    hook, to the bit; only the main process does anything.

    Args:
        images: files and folders; None takes images of the training set, spread over it, with
            the augmentation of training.
        num_images: rows of the picture.
        interval: epochs or iterations from one picture to the next.
        by_epoch: whether the interval counts epochs.
        losses: whether to log the two losses. They are read by module hooks, which a compiled
            model (``compile`` in the config) or a ``CUDAGraphHook`` does not run as often.
        side: height of a panel in pixels.
        seed: of crops, masks and kept tokens.
        channels: three channels to show as red, green and blue (:func:`.display.display_of`).

    Raises:
        TypeError, ValueError: an option is not as above; before training, if nothing is attached
            to the model, the images do not fit it or have masks of different sizes (iBOT), or no
            backend would take pictures.
        FileNotFoundError: before training, an image is not there.
    """

    priority = 'NORMAL'  # before LoggerHook reads the scalars of the step

    def __init__(
        self,
        images: str | Sequence[str] | None = None,
        num_images: int = 4,
        interval: int = 1,
        by_epoch: bool = True,
        losses: bool = True,
        side: int = 128,
        seed: int = 0,
        channels: Sequence[int] | None = None,
    ) -> None:
        for option, value in dict(num_images=num_images, interval=interval, side=side).items():
            check_whole(f'ReconstructionHook: {option}', value, 1)
        check_whole('ReconstructionHook: seed', seed, 0)
        check_flag('ReconstructionHook: by_epoch', by_epoch)
        check_flag('ReconstructionHook: losses', losses)
        if channels is not None:
            if not isinstance(channels, (list, tuple)) or len(channels) != 3:
                raise ValueError(f'ReconstructionHook: channels={channels!r}: give three, or None')
            for channel in channels:
                check_whole('ReconstructionHook: channels', channel, 0)
        self.images = _given(images)
        self.num_images = num_images
        self.interval = interval
        self.by_epoch = by_epoch
        self.losses = losses
        self.side = side
        self.seed = seed
        self.channels = channels
        self._batch: dict[str, Any] = {}
        self._display: Display | None = None
        self._recording = ExitStack()
        self._records: tuple[list, list] = ([], [])

    def before_train(self, runner: Runner) -> None:
        """Read the images and draw the first picture, so that every mistake shows now."""
        model = unwrapped(runner.model)
        if partial_of(model).throw_ratio == 0:
            runner.logger.warning(
                'ReconstructionHook: throw_ratio=0 is the original method: no '
                'token is kept or thrown, and nothing is drawn'
            )
        captured = any(isinstance(hook, CUDAGraphHook) for hook in runner.hooks)
        if self.losses and (captured or runner.cfg.get('compile')):
            what = 'CUDAGraphHook' if captured else 'a compiled model (`compile`)'
            raise ValueError(
                f'ReconstructionHook: losses=True with {what}: set losses=False, or leave that out'
            )
        if not is_main_process():
            return
        if not runner.visualizer._vis_backends:
            raise ValueError(
                'ReconstructionHook: the visualizer has no backend, so that pictures would go '
                "nowhere: visualizer = dict(vis_backends=[dict(type='TensorboardVisBackend')])"
            )
        self._batch = self._read(runner, model)
        self._display = display_of(runner.cfg, model, self.channels)
        self._draw(runner, runner.iter)

    def _read(self, runner: Runner, model: nn.Module) -> dict[str, Any]:
        """The images as a collated batch."""
        if self.images is not None:
            files = image_files(self.images, self.num_images)[: self.num_images]
            return load_images(runner.cfg, model, files, self.seed)
        loader = runner.train_dataloader
        size = len(loader.dataset)
        count = min(self.num_images, size)
        with seeded(self.seed):
            return loader.collate_fn(
                [loader.dataset[index * size // count] for index in range(count)]
            )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict[str, Any] | None = None
    ) -> None:
        """Begin to record what the loss of this step compares."""
        if self.losses and is_main_process():
            self._records = self._recording.enter_context(recorded(unwrapped(runner.model)))

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict[str, Any] | None = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Log the losses of this step; draw at the interval of iterations and after the last one."""
        self._recording.close()
        if not is_main_process():
            return
        for name, value in self._losses(unwrapped(runner.model)).items():
            runner.message_hub.update_scalar(f'train/{name}', value)
        done = runner.iter + 1
        if done == runner.max_iters or (not self.by_epoch and done % self.interval == 0):
            self._draw(runner, done)

    def after_train_epoch(self, runner: Runner) -> None:
        """Draw at the interval of epochs."""
        if not self.by_epoch or not is_main_process() or runner.iter == runner.max_iters:
            return
        if self.every_n_epochs(runner, self.interval):
            self._draw(runner, runner.iter)

    def _losses(self, model: nn.Module) -> dict[str, float]:
        """Means over the network passes of the step."""
        partitions, compared = self._records
        self._records = ([], [])
        if not compared or len(partitions) != len(compared):
            return {}
        parts = [
            losses_by_role(model, partition, *arguments)
            for partition, arguments in zip(partitions, compared, strict=True)
        ]
        return {name: mean(part[name] for part in parts) for name in parts[0]}

    def _draw(self, runner: Runner, step: int) -> None:
        model = unwrapped(runner.model)
        if partial_of(model).throw_ratio == 0:  # also for a while, in a schedule
            return
        observation = observe(model, self._batch, self.seed, self._display)
        picture = np.asarray(panels(observation, self.side))
        runner.visualizer.add_image('reconstruction', picture, step)

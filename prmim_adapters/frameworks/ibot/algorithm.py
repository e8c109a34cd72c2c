# SPDX-License-Identifier: Apache-2.0
"""iBOT, image BERT pre-training with an online tokenizer (arXiv 2111.07832).

Departures from the original training script, all without effect on the definition:

* The student's head runs on the tokens whose logits the loss reads: class tokens and masked
  patches. The original also projects unmasked patches and all patches of local crops.
* The teacher is updated before the forward pass of the next step, as mmpretrain's MoCoV3 does it,
  rather than after the optimizer's step; the momentum schedule is thereby one step ahead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from mmengine.logging import MessageHub
from mmpretrain.models import BaseSelfSupervisor
from mmpretrain.models.utils import CosineEMA
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from .backbone import MaskedTokens
from .head import IBOTHead
from .neck import IBOTNeck


class _Network(nn.Module):
    """Backbone and neck of the student, or of the teacher: whole images to logits."""

    def __init__(self, backbone: nn.Module, neck: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, 3, H, W) to logits (N, K) of class tokens and (N, L, K) of patches."""
        logits = self.neck(self.backbone(images)[-1])
        return logits[:, 0], logits[:, 1:]


class TeacherEMA(CosineEMA):
    """``CosineEMA`` that updates all parameters at once and never waits for the device.

    Upstream reads the number of steps from the device for every parameter. Where no Runner says how
    long training is, the first momentum stays.
    """

    _known: tuple[Tensor, int, int] | None = None  # the buffer, its version, the number in it

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the teacher's parameters towards those of ``model``, in place; copy its buffers."""
        steps = self.steps_done()
        own = dict(model.named_parameters())
        teacher = dict(self.module.named_parameters())  # fully_shard replaces them
        averaged = [_local(parameter) for parameter in teacher.values()]
        source = [_local(own[name]) for name in teacher]
        if steps == 0:
            torch._foreach_copy_(averaged, source)
        elif steps % self.interval == 0:
            momentum = self.momentum_at(steps)
            torch._foreach_mul_(averaged, 1 - momentum)
            torch._foreach_add_(averaged, source, alpha=momentum)
        buffers = dict(model.named_buffers())  # the student may have more: its sampler's counter
        for name, ours in self.module.named_buffers():
            ours.copy_(buffers[name])
        self.steps += 1
        self._known = (self.steps, self.steps._version, steps + 1)

    def momentum_at(self, steps: int) -> float:
        """Share of the student in the update after so many steps."""
        max_iters = MessageHub.get_current_instance().get_info('max_iters')
        if max_iters is None:
            return self.momentum
        cosine = (math.cos(math.pi * steps / max_iters) + 1) / 2
        return self.end_momentum - (self.end_momentum - self.momentum) * cosine

    def steps_done(self) -> int:
        """The number in the buffer ``steps``, read from the device only if others wrote it."""
        if self._known is not None:
            buffer, version, steps = self._known
            if buffer is self.steps and version == buffer._version:
                return steps
        return int(self.steps)


def _in_shards(parameter: Any) -> bool:
    """By FSDP2, or by the first FSDP, which makes one parameter of many and marks them all."""
    return hasattr(parameter, 'to_local') or hasattr(parameter, '_fsdp_flattened')


def _local(parameter: Any) -> Tensor:
    """The values, or this process's shard of them."""
    return (parameter.to_local() if hasattr(parameter, 'to_local') else parameter).detach()


def _move_teacher(model: IBOT, *_: Any) -> None:
    if model.training:
        model.teacher.update_parameters(_Network(model.backbone, model.neck))


def _check_prototypes(neck: nn.Module, head: nn.Module) -> None:
    if not isinstance(neck, IBOTNeck) or not isinstance(head, IBOTHead):
        return
    made, expected = len(neck.last_layer.weight_v), len(head.center)
    if made != expected:
        raise ValueError(
            f'IBOT: neck.out_channels={made}, but head.out_channels={expected}: set both to the '
            'number of prototypes'
        )


_SHARDED = (
    'IBOT in shards, where the update of its teacher would be lost: call fully_shard on the IBOT '
    'itself (not the first FSDP), whatever module is around it, then its move_teacher_first(), and '
    'call the model rather than its loss()'
)


@MODELS.register_module()
class IBOT(BaseSelfSupervisor):
    """iBOT with multi-crop.

    Inputs are a list of crops, the global ones first; each data sample has a ``mask`` (G, h, w)
    of its global crops (see ``MaskedMultiView``).

    Args:
        backbone (dict): ``IBOTViT``.
        neck (dict): ``IBOTNeck``, the projection head that class and patch tokens share.
        head (dict): ``IBOTHead``, losses and centres.
        num_global_crops (int): G, crops that the teacher sees. Defaults to 2.
        base_momentum (float): Share of the student in the teacher's update, falling to
            ``end_momentum`` by a cosine. 0.004 is the original's momentum of 0.996.
        end_momentum (float): Defaults to 0.
        momentum_interval (int): Update the teacher every so many forward passes: the
            ``accumulative_counts`` of the optim wrapper. Defaults to 1.

    Raises:
        ValueError: Neck and head have other numbers of prototypes.
    """

    _moves_in_loss = True
    _sharded = False

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        head: dict,
        num_global_crops: int = 2,
        base_momentum: float = 0.004,
        end_momentum: float = 0.0,
        momentum_interval: int = 1,
        pretrained: str | None = None,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(
            backbone=backbone,
            neck=neck,
            head=head,
            pretrained=pretrained,
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg,
        )
        _check_prototypes(self.neck, self.head)
        self.num_global_crops = num_global_crops
        self.teacher = TeacherEMA(
            _Network(self.backbone, self.neck), base_momentum, end_momentum, momentum_interval
        ).eval()

    def init_weights(self) -> None:
        """As usual; the teacher starts as the student, which its first update makes it anyway."""
        super().init_weights()
        if self.teacher.steps_done() == 0:
            self.teacher.update_parameters(_Network(self.backbone, self.neck))
            self.teacher.steps.zero_()

    def train(self, mode: bool = True) -> IBOT:
        """The teacher stays in evaluation mode: no stochastic depth."""
        super().train(mode)
        self.teacher.eval()
        self._look_for_shards()
        return self

    def move_teacher_first(self) -> None:
        """Move the teacher before each forward pass rather than in it; call after ``fully_shard``.

        FSDP2 gathers parameters for a pass, and throws away what is written to them there.

        Raises:
            RuntimeError: ``fully_shard`` has not been called on this very model.
        """
        if not isinstance(self, FSDPModule):
            raise RuntimeError(_SHARDED)
        self._moves_in_loss = False
        self.register_forward_pre_hook(_move_teacher, prepend=True)

    def loss(
        self, inputs: list[Tensor], data_samples: list[DataSample], **kwargs: Any
    ) -> dict[str, Tensor]:
        """Losses of one batch; in training mode teacher and centres move on.

        Args:
            inputs: V crops (B, 3, H, W), the G global ones first.
            data_samples: B samples with ``mask`` (G, h, w), True = masked.
            **kwargs: ignored.

        Returns:
            dict: 'loss_cls', 'loss_patch', and what is logged beside them.

        Raises:
            RuntimeError: the teacher is in shards, and would not move.
            ValueError: as in :meth:`branches`.
        """
        if self.training and self._moves_in_loss:
            if self._look_for_shards():
                raise RuntimeError(_SHARDED)
            _move_teacher(self)
        steps = self.branches(inputs, data_samples)
        teacher_cls, teacher_patch = steps['teacher']()
        cls, patch, tokens = steps['student_globals']()
        if 'student_locals' in steps:
            cls = torch.cat((cls, steps['student_locals']()))
        images = len(data_samples)
        losses = self.head.loss(
            cls.unflatten(0, (-1, images)),
            patch,
            teacher_cls.unflatten(0, (-1, images)),
            teacher_patch,
            tokens.rows,
            tokens.weight,
        )
        return {**losses, **tokens.log}

    def _look_for_shards(self) -> bool:
        """Whether parameters are in shards, also where a module around this one holds them.

        Those are seen between passes only: for a pass they are gathered.
        """
        in_shards = isinstance(self, FSDPModule) or any(map(_in_shards, self.parameters()))
        self._sharded = self._sharded or in_shards
        return self._sharded

    def branches(
        self, inputs: list[Tensor], data_samples: list[DataSample]
    ) -> dict[str, Callable[[], Any]]:
        """The three forward passes of a step, each ready to run (and to be counted) by itself.

        Raises:
            ValueError: there are fewer crops than ``num_global_crops``, or masks for another
                number of crops.
        """
        crops = self.num_global_crops
        found = data_samples[0].mask.shape[0]
        if len(inputs) < max(crops, 2) or found != crops:
            raise ValueError(
                f'IBOT: {len(inputs)} crops and masks for {found}; num_global_crops={crops} needs '
                f'at least {max(crops, 2)} crops and masks for {crops}. Use MaskedMultiView with '
                'a mask generator in the views of the global crops, which come first'
            )
        images = torch.cat(inputs[:crops])
        mask = torch.stack([sample.mask for sample in data_samples], dim=1).flatten(0, 1)
        mask = mask.flatten(1).to(images.device, torch.bool)
        steps: dict[str, Callable[[], Any]] = {
            'teacher': partial(self.teach, images),
            'student_globals': partial(self.project_globals, images, mask),
        }
        if len(inputs) > crops:
            steps['student_locals'] = partial(self.project_locals, torch.cat(inputs[crops:]))
        return steps

    @torch.no_grad()
    def teach(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's logits (N, K) of class tokens and (N, L, K) of patches, whole images."""
        return self.teacher(images)

    def project_globals(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, MaskedTokens]:
        """The student's logits (N, K) of class tokens and (R, K) of masked patches."""
        tokens = self.backbone(images, mask)
        logits = self.neck(torch.cat((tokens.cls, tokens.patches)))
        return *logits.split([len(tokens.cls), len(tokens.patches)]), tokens

    def project_locals(self, images: Tensor) -> Tensor:
        """The student's logits (N, K) of the class tokens of unmasked crops (N, 3, H, W)."""
        return self.neck(self.backbone(images)[-1][:, 0])

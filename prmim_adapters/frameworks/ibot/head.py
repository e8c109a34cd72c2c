# SPDX-License-Identifier: Apache-2.0
"""iBOT's losses and centres.

Source: arXiv 2111.07832, equations 2 and 3, with the centring and sharpening of DINO
(arXiv 2104.14294, section 3.1).
"""

from __future__ import annotations

import torch
from mmengine.dist import all_reduce
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class IBOTHead(BaseModule):
    """Self-distillation of class tokens across crops, and of masked patches within a global crop.

    Args:
        out_channels: number of prototypes K.
        student_temp: temperature of the student.
        teacher_temp: temperature of the teacher's class tokens; see ``TeacherTempHook``.
        teacher_patch_temp: the same for its patch tokens.
        center_momentum, patch_center_momentum: share of the old centre that an update keeps.
        cls_weight, patch_weight: weights of the two losses.
    """

    def __init__(
        self,
        out_channels: int = 8192,
        student_temp: float = 0.1,
        teacher_temp: float = 0.07,
        teacher_patch_temp: float = 0.07,
        center_momentum: float = 0.9,
        patch_center_momentum: float = 0.9,
        cls_weight: float = 1.0,
        patch_weight: float = 1.0,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.student_temp = student_temp
        self.teacher_temp = teacher_temp
        self.teacher_patch_temp = teacher_patch_temp
        self.center_momentum = center_momentum
        self.patch_center_momentum = patch_center_momentum
        self.cls_weight = cls_weight
        self.patch_weight = patch_weight
        self.register_buffer('center', torch.zeros(out_channels))
        self.register_buffer('patch_center', torch.zeros(out_channels))

    def loss(
        self,
        student_cls: Tensor,
        student_patch: Tensor,
        teacher_cls: Tensor,
        teacher_patch: Tensor,
        rows: Tensor,
        weight: Tensor,
    ) -> dict[str, Tensor]:
        """Both losses, and the entropy of the teacher's distributions (nats).

        G global crops of B images come first among the V crops. An entropy near 0 or near log K
        means collapse. In training mode the centres are updated after their use.

        Args:
            student_cls: (V, B, K) logits of the student's class tokens.
            student_patch: (R, K) logits of the student's masked patch tokens.
            teacher_cls: (G, B, K) logits of the teacher's class tokens.
            teacher_patch: (G * B, L, K) logits of the teacher's patch tokens.
            rows: (R,) int64, global crop * L + position of each row of ``student_patch``.
            weight: (G * B, L) weight of each masked token, 0 where there is no loss.

        Returns:
            dict: 'loss_cls', 'loss_patch', 'teacher_entropy' and, where any token is masked,
            'teacher_patch_entropy'.
        """
        target = _distribution(teacher_cls, self.center, self.teacher_temp)
        masked = teacher_patch.flatten(0, 1)[rows]
        patch_target = _distribution(masked, self.patch_center, self.teacher_patch_temp)
        losses = {
            'loss_cls': self.cls_weight * self._cls_loss(student_cls, target),
            'loss_patch': self.patch_weight
            * self._patch_loss(student_patch, patch_target, rows, weight),
            'teacher_entropy': _entropy(target),
        }
        if len(rows):
            losses['teacher_patch_entropy'] = _entropy(patch_target)
        if self.training:
            self.update_centers(teacher_cls, teacher_patch)
        return losses

    def _cls_loss(self, student: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy over all pairs of a teacher's crop and another crop."""
        crops, teacher_crops = len(student), len(target)
        log_p = (student.float() / self.student_temp).log_softmax(-1)
        cross = -torch.einsum('qbk,vbk->qv', target, log_p) / student.shape[1]
        return (cross.sum() - cross.diagonal().sum()) / (teacher_crops * (crops - 1))

    def _patch_loss(self, student: Tensor, target: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
        """Mean over crops of the mean over their masked tokens; a crop without mask adds 0."""
        share = weight / weight.sum(1, keepdim=True).clamp(min=1) / len(weight)
        log_p = (student.float() / self.student_temp).log_softmax(-1)
        return -((target * log_p).sum(-1) * share.flatten()[rows]).sum()

    @torch.no_grad()
    def update_centers(self, teacher_cls: Tensor, teacher_patch: Tensor) -> None:
        """Move the centres to the mean logits of all processes.

        Args:
            teacher_cls: (G, B, K) of class tokens.
            teacher_patch: (G * B, L, K) of patch tokens.
        """
        for center, logits, momentum in (
            (self.center, teacher_cls, self.center_momentum),
            (self.patch_center, teacher_patch, self.patch_center_momentum),
        ):
            # processes may have unequally many images
            total = logits.float().sum(dim=(0, 1))
            count = total.new_full((), logits.shape[:2].numel())
            all_reduce(total)
            all_reduce(count)
            center.lerp_(total / count, 1 - momentum)


def _distribution(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """Centred and sharpened: float32, no gradient."""
    return ((logits.detach().float() - center) / temperature).softmax(-1)


def _entropy(distribution: Tensor) -> Tensor:
    """Mean entropy in nats over all leading dimensions."""
    return torch.special.entr(distribution).sum(-1).mean()

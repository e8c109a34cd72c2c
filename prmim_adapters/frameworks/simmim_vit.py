# SPDX-License-Identifier: Apache-2.0
"""SimMIM [0] on a ViT: the backbone that mmpretrain's SimMIM algorithm lacks.

mmpretrain has SimMIM for Swin only. The original's ViT is BEiT's [1]: relative position bias
shared by all blocks, no absolute positions, layer scale 0.1, no bias on the keys, a class token
that the loss does not use. mmpretrain has that network as ``BEiTPretrainViT``; what is missing is
the interface of a SimMIM backbone. With it the algorithm (``SimMIM``), neck
(``SimMIMLinearDecoder``, ``encoder_stride=16``), head (``SimMIMHead``, ``patch_size=16``) and mask
(``SimMIMMaskGenerator``, ``model_patch_size=16``) are mmpretrain's own, and ``BEiTViT``
fine-tunes the checkpoint.

[0] Xie et al., SimMIM, CVPR 2022, https://github.com/microsoft/SimMIM
[1] Bao et al., BEiT, ICLR 2022
"""

from __future__ import annotations

from mmpretrain.models.selfsup.beit import BEiTPretrainViT
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from .pretrained import loaded_last


@MODELS.register_module()
class SimMIMViT(BEiTPretrainViT):
    """ViT backbone for SimMIM pre-training.

    Args:
        **kwargs: Those of ``BEiTPretrainViT``, whose defaults are the original's ViT-B: shared
            relative position bias, no absolute positions, ``layer_scale_init_value=0.1``,
            ``final_norm=True``. The original trains with ``drop_path_rate=0.1``.
    """

    def init_weights(self) -> None:
        """Initialize as the original does, and load the checkpoint that ``init_cfg`` names.

        ``BEiTPretrainViT`` would leave the MLPs with the Xavier initialization of mmpretrain's
        ``TransformerEncoderLayer``, four times as wide as the original's.
        """
        with loaded_last(self):
            super().init_weights()
            self.apply(_init_layer)
            nn.init.trunc_normal_(self.cls_token, std=0.02)
            nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
            self.rescale_init_weight()

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        """Encode masked images.

        Args:
            x: Images, (B, 3, H, W).
            mask: (B, H / patch, W / patch), 1 = masked. None encodes the images unmasked, as
                ``BEiTViT`` does, in the format of ``out_type``.

        Returns:
            Feature maps (B, C, H / patch, W / patch) of the stages ``out_indices``.

        Raises:
            ValueError: The mask is not on the patch grid.
        """
        if mask is None:
            return super().forward(x, None)
        rows, columns = self.patch_resolution
        if mask.shape[1:] != (rows, columns):
            raise ValueError(
                f'SimMIMViT: the mask is {tuple(mask.shape[1:])}, the patch grid {rows, columns}; '
                "set the mask generator's input_size to the image size and its model_patch_size "
                'to the patch size'
            )
        return tuple(
            tokens[:, self.num_extra_tokens :].transpose(1, 2).unflatten(2, (rows, columns))
            for tokens in super().forward(x, mask)
        )


def _init_layer(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)

# SPDX-License-Identifier: Apache-2.0
"""FCMAE, the masked autoencoder of ConvNeXt V2 [0], as an mmpretrain algorithm.

mmpretrain has ConvNeXt V2 as a classifier and inside SparK, but not its own pre-training. The
original [1] needs MinkowskiEngine; here the encoder is mmpretrain's sparse ConvNeXt, dense-masked
or packed (see ``packed_convnext.py``), and mmpretrain's ConvNeXt fine-tunes the checkpoint, whose
keys under ``backbone.`` are its own. The head is mmpretrain's ``MAEPretrainHead`` with
``patch_size=32`` and ``norm_pix=True``; images need not be square (see ``rectangles.py``).

Two choices differ from the original's code. Weights start from a truncated normal of 0.02, as in
mmpretrain's ConvNeXt: the original's ``FCMAE._init_weights`` calls ``trunc_normal_`` without a
standard deviation for depthwise and linear layers, which is 1. Kernels are stored as PyTorch
stores them, as the original's fine-tuning does after ``remap_checkpoint_keys``.

[0] Woo et al., ConvNeXt V2, CVPR 2023, https://arxiv.org/abs/2301.00808
[1] https://github.com/facebookresearch/ConvNeXt-V2 (MIT), models/fcmae.py
"""

from __future__ import annotations

from typing import Any

import torch
from mmengine.model import BaseModule
from mmpretrain.models.backbones.convnext import ConvNeXtBlock
from mmpretrain.models.selfsup import BaseSelfSupervisor
from mmpretrain.models.utils import SparseHelper, to_2tuple
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from ..core.options import check_number
from ..packed.units import active_units
from .packed_convnext import PackedSparseConvNeXt
from .pretrained import loaded_last
from .rectangles import allow_rectangles

allow_rectangles()

INIT_CFG = (
    {'type': 'TruncNormal', 'layer': ['Conv2d', 'Linear'], 'std': 0.02, 'bias': 0.0},
    {'type': 'Constant', 'layer': ['LayerNorm'], 'val': 1.0, 'bias': 0.0},
)


@MODELS.register_module()
class FCMAEConvNeXt(PackedSparseConvNeXt):
    """ConvNeXt V2 encoder of FCMAE: draws the mask and encodes the visible units.

    Args:
        arch (str | dict): As in ``ConvNeXt``: 'atto' to 'huge'.
        img_size (int | tuple[int, int]): Height and width of the images in pixels.
        mask_ratio (float): Share of masked units; ``int(L * (1 - mask_ratio))`` units are visible,
            19 of 49 at 224 pixels.
        execution (str): ``'packed'`` computes visible units only, ``'dense'`` everything.
        grn_scope (str): Definition of GRN under masking, one of ``grn.GRN_SCOPES``. The default is
            the original's, so that a recipe tuned with it stays valid: over the visible positions
            of all images on one device. Its weights depend a little on the batch per device;
            ``'image'`` does not, and equals the GRN of fine-tuning more closely.
        **kwargs: Those of ``SparseConvNeXt``.

    Raises:
        ValueError: A side of the images is not a multiple of the 32-pixel unit, or all units are
            visible or masked.
    """

    def __init__(
        self,
        arch: str | dict = 'tiny',
        img_size: int | tuple[int, int] = 224,
        mask_ratio: float = 0.6,
        execution: str = 'packed',
        grn_scope: str = 'batch',
        use_grn: bool = True,
        layer_scale_init_value: float = 0.0,
        gap_before_output: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            arch=arch,
            execution=execution,
            grn_scope=grn_scope,
            use_grn=use_grn,
            layer_scale_init_value=layer_scale_init_value,
            gap_before_output=gap_before_output,
            **kwargs,
        )
        self.img_size = to_2tuple(img_size)
        self.mask_ratio = check_number('mask_ratio', mask_ratio, 0, 1)
        stem = self.downsample_layers[0][0].kernel_size[0]
        self.unit_size = stem * 2 ** (self.num_stages - 1)
        if any(side % self.unit_size for side in self.img_size):
            raise ValueError(
                f'img_size={self.img_size} is not a multiple of the masked unit of '
                f'{self.unit_size} pixels'
            )
        self.grid = tuple(side // self.unit_size for side in self.img_size)
        if not 0 < self.num_visible < self.grid[0] * self.grid[1]:
            raise ValueError(
                f'mask_ratio={mask_ratio} leaves {self.num_visible} of {self.grid[0]} x '
                f'{self.grid[1]} units visible: at least one must be visible, and one masked'
            )
        if execution == 'dense' and self.grid[0] != self.grid[1]:
            raise ValueError(
                f"mmpretrain's masked convolutions take square images only, not {self.img_size}; "
                "use execution='packed'"
            )

    @property
    def num_visible(self) -> int:
        """Visible units per image, V."""
        return int(self.grid[0] * self.grid[1] * (1 - self.mask_ratio))

    def random_visible(self, batch_size: int, device: torch.device) -> Tensor:
        """Visible units (B, V) int64, ascending, uniformly at random."""
        noise = torch.rand(batch_size, self.grid[0] * self.grid[1], device=device)
        return noise.argsort(dim=1)[:, : self.num_visible].sort(dim=1).values

    def forward(self, x: Tensor, mask: bool | Tensor | None = True) -> tuple[Tensor, ...]:
        """Encode images.

        Args:
            x (Tensor): Images (B, 3, H, W).
            mask (bool | Tensor | None): True draws a random mask; None or False encodes the whole
                images; a bool tensor (B, L), True = masked, gives the mask.

        Returns:
            tuple[Tensor, ...]: With a mask: features (B, C, H/32, W/32), zero at masked units; the
            mask (B, L) bool; the visible units (B, V) int64, ascending. Without: the maps of
            ``out_indices``, as mmpretrain's ``ConvNeXt`` makes them before its final norm.

        Raises:
            ValueError: Masked images are not of ``img_size``.
        """
        if mask is None or mask is False:
            grid = (x.shape[2] // self.unit_size, x.shape[3] // self.unit_size)
            units = torch.arange(grid[0] * grid[1], device=x.device).expand(len(x), -1)
            # Nothing is masked: GRN is per image whatever its definition under masking.
            return self.forward_packed(x, units, grid, grn_scope='image')
        if tuple(x.shape[2:]) != self.img_size:
            raise ValueError(
                f'images of {tuple(x.shape[2:])} pixels, but img_size={self.img_size}: set '
                'backbone.img_size to the size of the crops'
            )
        visible = (
            active_units(~mask)
            if isinstance(mask, Tensor)
            else self.random_visible(len(x), x.device)
        )
        mask = masked_units(visible, self.grid[0] * self.grid[1])
        if self.execution == 'packed':
            features = self.forward_packed(x, visible, self.grid)
        else:
            SparseHelper._cur_active = ~mask.view(-1, 1, *self.grid)
            features = super().forward(x)
        return features[-1], mask, visible


def masked_units(visible: Tensor, length: int) -> Tensor:
    """Mask (B, length) bool, True everywhere but at the visible units (B, V) int64."""
    mask = torch.ones(len(visible), length, dtype=torch.bool, device=visible.device)
    return mask.scatter(1, visible, torch.zeros_like(visible, dtype=torch.bool))


@MODELS.register_module()
class FCMAEPretrainDecoder(BaseModule):
    """Decoder of FCMAE: projection, mask token, ConvNeXt V2 blocks, prediction of the pixels.

    Args:
        embed_dim (int): Channels of the encoder's last stage.
        decoder_embed_dim (int): Channels of the decoder.
        decoder_depth (int): Number of blocks.
        patch_size (int): Side of a unit in pixels.
        in_chans (int): Channels of the images.
        init_cfg (dict | list[dict], optional): Initialization config dict.
    """

    def __init__(
        self,
        embed_dim: int = 768,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 1,
        patch_size: int = 32,
        in_chans: int = 3,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg=[dict(cfg) for cfg in INIT_CFG] if init_cfg is None else init_cfg)
        self.proj = nn.Conv2d(embed_dim, decoder_embed_dim, kernel_size=1)
        self.mask_token = nn.Parameter(torch.zeros(1, decoder_embed_dim, 1, 1))
        self.decoder = nn.Sequential(
            *(
                ConvNeXtBlock(decoder_embed_dim, layer_scale_init_value=0.0, use_grn=True)
                for _ in range(decoder_depth)
            )
        )
        self.pred = nn.Conv2d(decoder_embed_dim, patch_size**2 * in_chans, kernel_size=1)

    def init_weights(self) -> None:
        """Initialize as ``init_cfg`` says, and the mask token from a normal of 0.02."""
        with loaded_last(self):
            super().init_weights()
            nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        """Predict the pixels of every unit.

        Args:
            x (Tensor): Features of the encoder (B, C, H, W).
            visible (Tensor): Visible units (B, V) int64.

        Returns:
            Tensor: (B, H * W, patch_size**2 * in_chans).
        """
        masked = masked_units(visible, x.shape[2] * x.shape[3]).view(-1, 1, *x.shape[2:])
        x = self.proj(x)
        x = torch.where(masked, self.mask_token.to(x.dtype), x)
        return self.pred(self.decoder(x)).flatten(2).transpose(1, 2)


@MODELS.register_module()
class FCMAE(BaseSelfSupervisor):
    """Fully convolutional masked autoencoder."""

    def extract_feat(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Features of whole images (B, 3, H, W): the maps of the encoder's ``out_indices``."""
        return self.backbone(inputs, mask=None)

    def loss(self, inputs: Tensor, data_samples: list[DataSample]) -> dict[str, Tensor]:
        """The forward function in training.

        Args:
            inputs (Tensor): Images (B, 3, H, W).
            data_samples (list[DataSample]): Not used.

        Returns:
            dict[str, Tensor]: ``loss``, the mean squared error of the masked units.
        """
        latent, mask, visible = self.backbone(inputs)
        pred = self.neck(latent, visible)
        return dict(loss=self.head.loss(pred, inputs, mask))

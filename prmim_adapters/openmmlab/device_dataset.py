# SPDX-License-Identifier: Apache-2.0
"""Fast path for small images: augmentation on the device, of images in memory.

At 32 px decoding and cropping on CPU workers take longer than the training step of a small model.
``InMemoryImages`` of ``images.py`` decodes an ordinary mmpretrain data set once, ``ready_batch``
spares the collation, and :class:`DeviceAugment` crops, flips and masks a whole batch where the
model runs, every image with a crop of its own::

    train_dataloader = dict(
        dataset=dict(type='InMemoryImages', dataset=dict(type='CIFAR10', ...)),
        collate_fn=dict(type='ready_batch'), num_workers=0, ...)
    data_preprocessor = dict(
        type='DeviceAugment', mean=..., std=..., to_rgb=True,
        augment=[dict(type='BatchRandomResizedCrop', size=32, scale=(0.2, 1.0))])

Images of different sizes, as of ImageNet, are cropped on the device too: workers then only decode::

    train_dataloader = dict(collate_fn=dict(type='pseudo_collate'), dataset=dict(
        type='ImageNet', pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')], ...))
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from mmpretrain.models import SelfSupDataPreprocessor
from mmpretrain.registry import MODELS, TRANSFORMS
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torchvision.transforms import v2

from ..adapters.registry import qualified
from ..core.options import check_choice, check_number, check_whole


@MODELS.register_module()
class DeviceAugment(SelfSupDataPreprocessor):
    """mmpretrain's preprocessor with augmentation and masks made on the model's device.

    Args:
        augment: modules applied in order to uint8 or float images (B, 3, H, W) in training: the
            batched crops of this file, or any transform of ``torchvision.transforms.v2`` by name
            (which draws one set of parameters for the whole batch). Of a list of images (3, H_i, W_i)
            each is augmented by itself, with parameters of its own.
        mask_generator: an mmpretrain mask transform (``SimMIMMaskGenerator``,
            ``BEiTMaskGenerator``) for frameworks that read ``data_samples[i].mask``.
        batch_augments: what ``ImageClassifier`` passes of its ``train_cfg``; only None is allowed.
        **options: those of ``SelfSupDataPreprocessor``.

    Raises:
        TypeError: ``augment`` is no list.
        ValueError: the classifier asks for Mixup, CutMix or the like.
    """

    def __init__(
        self,
        augment: Sequence[dict[str, Any]] = (),
        mask_generator: dict[str, Any] | None = None,
        batch_augments: None = None,
        **options: Any,
    ) -> None:
        if batch_augments is not None:
            raise ValueError(
                f'DeviceAugment cannot mix images: found train_cfg={batch_augments!r} of the '
                'classifier; remove it, or use ClsDataPreprocessor'
            )
        if not isinstance(augment, (list, tuple)):
            raise TypeError(f'DeviceAugment: augment={augment!r}: expected a list of configs')
        super().__init__(**options)
        self.augment = nn.Sequential(*[_build_augmentation(config) for config in augment])
        self.mask_generator = mask_generator and TRANSFORMS.build(mask_generator)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Augment (in training), then normalise as mmpretrain does.

        Args:
            data: ``inputs`` (B, 3, H, W), or B images (3, H_i, W_i) of different sizes, as
                ``pseudo_collate`` hands them over; and a list of B ``data_samples``.
            training: whether to augment and to make masks.

        Returns:
            dict: ``inputs`` (B, 3, h, w) float and ``data_samples``, on the model's device.

        Raises:
            ValueError: images of different sizes have no common one in the end.
        """
        images = self.cast_data(data['inputs'])
        if isinstance(images, list) and images[0].dim() == 3:
            images = self._stacked([self._augmented(image[None], training) for image in images])
        else:
            images = self._augmented(images, training)
        if training and self.mask_generator is not None:
            samples = self._masked(data['data_samples'])
        else:
            samples = self.cast_data(data['data_samples'])
        result = super().forward(dict(inputs=images, data_samples=None), training)
        return dict(inputs=result['inputs'], data_samples=samples)

    def _augmented(self, images: Any, training: bool) -> Any:
        return self.augment(images) if training else images

    def _stacked(self, images: list[Tensor]) -> Tensor:
        sizes = {tuple(image.shape[-2:]) for image in images}
        if len(sizes) > 1:
            raise ValueError(
                f'DeviceAugment: images of different sizes {sorted(sizes)[:3]}: begin augment with '
                "a crop, such as dict(type='BatchRandomResizedCrop', size=224); for an evaluation "
                "resize them in the data set's pipeline"
            )
        return torch.cat(images)

    def _masked(self, samples: Sequence[DataSample]) -> list[DataSample]:
        """New data samples with masks, moved to the device in one transfer."""
        assert self.mask_generator is not None, 'forward checks'
        masks = np.stack([self.mask_generator({})['mask'] for _ in samples])
        on_device = torch.from_numpy(masks).to(self.device)
        return [DataSample().set_mask(mask) for mask in on_device]


class BatchCrop(nn.Module):
    """Crop, resize and perhaps flip every image of a batch on its own, by two matrix products.

    Resampling is separable, so each image needs a row and a column matrix, and a batch of crops
    of different sizes is two batched products.

    Args:
        size: side of the result in pixels.
        flip: probability of a horizontal flip.
        interpolation: 'bilinear' or 'bicubic', antialiased, as Pillow and torchvision resample.

    Raises:
        TypeError, ValueError: an option is no such value or out of range, naming it.
    """

    def __init__(self, size: int, flip: float = 0.5, interpolation: str = 'bicubic') -> None:
        super().__init__()
        self.size = check_whole(f'{type(self).__name__}: size', size, 1)
        self.flip = check_number(f'{type(self).__name__}: flip', flip, 0, 1)
        name = f'{type(self).__name__}: interpolation'
        self.interpolation = check_choice(name, interpolation, sorted(FILTERS))

    def boxes(self, count: int, height: int, width: int) -> Tensor:
        """(count, 4) float: top, left, height and width of every image's crop, in pixels."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W), values 0..255 -> (B, C, size, size) float32, rounded to whole values."""
        height, width = images.shape[-2:]
        # Drawn on the CPU: the same seed gives the same crops on every device.
        boxes = self.boxes(len(images), height, width)
        flip = torch.rand(len(images)) < self.flip
        rows = resize_matrix(boxes[:, 0], boxes[:, 2], self.size, height, self.interpolation)
        columns = resize_matrix(boxes[:, 1], boxes[:, 3], self.size, width, self.interpolation)
        columns = torch.where(flip[:, None, None], columns.flip(1), columns)
        rows, columns = rows.to(images.device), columns.to(images.device)
        with _full_precision(images.device):
            result = rows[:, None] @ images.float() @ columns[:, None].mT
        return result.round().clamp(0, 255)


def _full_precision(device: torch.device) -> AbstractContextManager:
    """Out of autocast, inside which mmengine runs the preprocessor of a model under AMP."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


class BatchRandomResizedCrop(BatchCrop):
    """Random area and aspect ratio, as torchvision's and mmpretrain's ``RandomResizedCrop``.

    Args:
        size, flip, interpolation: see :class:`BatchCrop`.
        scale: range of the crop's area, as a share of the image's.
        ratio: range of width / height.
        attempts: draws before the largest centre crop of an allowed ratio is taken.
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        attempts: int = 10,
        **options: Any,
    ) -> None:
        super().__init__(size, **options)
        self.scale = _range('BatchRandomResizedCrop: scale', scale)
        self.ratio = _range('BatchRandomResizedCrop: ratio', ratio)
        self.attempts = check_whole('BatchRandomResizedCrop: attempts', attempts, 1)

    def boxes(self, count: int, height: int, width: int) -> Tensor:
        """Crop boxes; see :class:`BatchCrop`."""
        draws = (count, self.attempts)
        area = height * width * torch.empty(draws).uniform_(*self.scale)
        low, high = np.log(self.ratio)
        ratio = torch.empty(draws).uniform_(low, high).exp()
        w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        valid = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        first = valid.int().argmax(dim=1, keepdim=True)
        found = valid.any(dim=1)
        fallback_h, fallback_w = self._largest(height, width)
        h = torch.where(found, h.gather(1, first).squeeze(1), torch.tensor(float(fallback_h)))
        w = torch.where(found, w.gather(1, first).squeeze(1), torch.tensor(float(fallback_w)))
        place = torch.where(found[:, None], torch.rand(count, 2), torch.tensor(0.5))
        top = (place[:, 0] * (height - h + 1)).floor()
        left = (place[:, 1] * (width - w + 1)).floor()
        return torch.stack([top, left, h, w], dim=1)

    def _largest(self, height: int, width: int) -> tuple[int, int]:
        if width / height < self.ratio[0]:
            return round(width / self.ratio[0]), width
        if width / height > self.ratio[1]:
            return height, round(height * self.ratio[1])
        return height, width


class BatchRandomCrop(BatchCrop):
    """A crop of the full side after zero padding: the usual weak augmentation of CIFAR-10.

    Args:
        size, flip: see :class:`BatchCrop`.
        padding: pixels added on each side.
    """

    def __init__(self, size: int, padding: int = 4, flip: float = 0.5) -> None:
        super().__init__(size, flip=flip, interpolation='bilinear')
        self.padding = check_whole('BatchRandomCrop: padding', padding, 0)

    def boxes(self, count: int, height: int, width: int) -> Tensor:
        """Crop boxes, partly outside the image; see :class:`BatchCrop`."""
        free = torch.tensor([height, width]) + 2 * self.padding - self.size + 1
        corner = (torch.rand(count, 2) * free).floor() - self.padding
        return torch.cat([corner, torch.full((count, 2), float(self.size))], dim=1)


def _range(name: str, values: Any) -> tuple[float, float]:
    """Two numbers above 0, in order."""
    if not isinstance(values, (list, tuple)) or len(values) != 2:
        raise TypeError(f'{name}={values!r}: expected the smallest and the largest')
    low, high = (check_number(name, value, 1e-6) for value in values)
    if low > high:
        raise ValueError(f'{name}={values!r}: the first must not be larger than the second')
    return low, high


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution with a = -0.5, the one of Pillow."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


FILTERS = {'bilinear': _triangle, 'bicubic': _cubic}


def resize_matrix(
    start: Tensor, length: Tensor, size: int, full: int, interpolation: str
) -> Tensor:
    """Matrices that resample ``length`` pixels from ``start`` on to ``size`` pixels.

    Args:
        start: (B,) first pixel of the crop; outside the image counts as zeros.
        length: (B,) pixels in the crop.
        size: pixels in the result.
        full: pixels of the whole image side.
        interpolation: key of ``FILTERS``.

    Returns:
        Tensor: (B, size, full); each row sums to 1, or to 0 in the padding.
    """
    scale = (length / size)[:, None, None]
    stretch = scale.clamp(min=1)  # widen the filter when shrinking: antialiasing
    centre = start[:, None, None] + (torch.arange(size)[:, None] + 0.5) * scale
    pixel = torch.arange(full) + 0.5
    weight = FILTERS[interpolation]((pixel - centre) / stretch)
    end = (start + length)[:, None, None]
    weight = weight * ((pixel > start[:, None, None]) & (pixel < end))
    total = weight.sum(dim=2, keepdim=True)
    return torch.where(total.abs() > 1e-6, weight / total, torch.zeros_like(weight))


def _build_augmentation(config: dict[str, Any]) -> nn.Module:
    return augmentation_class(config)(**{k: v for k, v in config.items() if k != 'type'})


def augmentation_class(config: dict[str, Any]) -> type[nn.Module]:
    """A module of this file or of torchvision's v2 that a config names, or gives as the class itself.

    Raises:
        ValueError: No such name.
    """
    own = {cls.__name__: cls for cls in (BatchRandomResizedCrop, BatchRandomCrop)}
    found = kind = config.get('type')
    if isinstance(kind, str):
        found = own.get(kind) or getattr(v2, kind, None) or qualified(kind)
    if found is None:
        raise ValueError(
            f'augmentation {kind!r}: choose {", ".join(own)} or a transform of '
            'torchvision.transforms.v2'
        )
    return found

# SPDX-License-Identifier: Apache-2.0
"""Tiny-ImageNet in its official layout, whose validation images are listed in a text file.

    tiny-imagenet-200/
      wnids.txt                                # one class a line
      train/<wnid>/images/<wnid>_<n>.JPEG      # 200 x 500, 64 px
      val/val_annotations.txt                  # file, wnid and box, separated by tabs
      val/images/val_<n>.JPEG                  # 10,000

Its test images have no published labels. Folders ``train/<class>/*`` and ``test/<class>/*`` need no
class of their own: ``CustomDataset`` reads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS

from ..core.options import check_choice


@DATASETS.register_module()
class TinyImageNet(BaseDataset):
    """Tiny-ImageNet for classification; classes are numbered as ``wnids.txt`` lists them.

    Args:
        data_root: the folder ``tiny-imagenet-200``.
        split: 'train' or 'val'.
        **options: those of mmpretrain's ``BaseDataset``, as ``pipeline``.

    Raises:
        ValueError: another split; ``data_root`` has another layout; ``wnids.txt`` lists a class
            twice; a line of the annotations is none, or names a class that ``wnids.txt`` does not.
    """

    def __init__(self, data_root: str, split: str = 'train', **options: Any) -> None:
        check_choice('TinyImageNet: split', split, ('train', 'val'))
        root = Path(data_root)
        listing = root / 'wnids.txt'
        if not listing.is_file():
            raise ValueError(
                f'TinyImageNet: no {listing}: data_root is the folder that tiny-imagenet-200.zip '
                "unpacks to; for folders train/<class>/* and test/<class>/* use type='CustomDataset'"
            )
        self.split = split
        classes = listing.read_text().split()
        if len(set(classes)) < len(classes):
            raise ValueError(f'TinyImageNet: {listing} lists a class twice')
        super().__init__(
            ann_file='', data_root=data_root, metainfo=dict(classes=classes), **options
        )

    def load_data_list(self) -> list[dict[str, Any]]:
        """Path and label of every image of the split, in the order of their names.

        Raises:
            ValueError: see the class.
        """
        root, number = Path(self.data_root), {name: i for i, name in enumerate(self.CLASSES)}
        found = self._val(root) if self.split == 'val' else self._train(root)
        unknown = sorted({wnid for _, wnid in found} - number.keys())
        if unknown or not found:
            raise ValueError(
                f'TinyImageNet: {len(found)} {self.split} images in {root}, of classes that are '
                f'not in wnids.txt: {", ".join(unknown[:3]) or "none"}'
            )
        return [dict(img_path=str(path), gt_label=number[wnid]) for path, wnid in found]

    def _train(self, root: Path) -> list[tuple[Path, str]]:
        paths = sorted((root / 'train').glob('*/images/*.JPEG'))
        return [(path, path.parts[-3]) for path in paths]

    def _val(self, root: Path) -> list[tuple[Path, str]]:
        listing = root / 'val' / 'val_annotations.txt'
        rows = [line.split('\t') for line in listing.read_text().splitlines() if line.strip()]
        for number, row in enumerate(rows, start=1):
            if len(row) < 2 or Path(row[0]).name != row[0]:
                raise ValueError(
                    f'TinyImageNet: {listing}: row {number}: expected the name of an image, a tab '
                    f'and a class, found {row!r:.80}'
                )
        return [(root / 'val' / 'images' / name, wnid) for name, wnid, *_ in sorted(rows)]

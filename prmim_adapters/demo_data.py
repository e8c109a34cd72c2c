# SPDX-License-Identifier: Apache-2.0
"""Cut photographs that scikit-image ships into tiles: ``python -m prmim_adapters.demo_data DIR``.

Only photographs whose documentation states CC0 or public domain are used. Training and validation
tiles come from different photographs, so that no pixel is seen in both. A few hundred overlapping
tiles of ten photographs show that training runs and falls; they say nothing about the quality of
representations.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

#: Photographs and their licence, as scikit-image's docstrings state it.
PHOTOGRAPHS = {
    'train': {
        'astronaut': 'public domain (NASA)',
        'brick': 'CC0 (CC0Textures)',
        'coffee': 'CC0 (Rachel Michetti)',
        'grass': 'CC0',
        'gravel': 'CC0 (CC0Textures)',
        'hubble_deep_field': 'public domain (NASA)',
        'retina': 'CC0 (Häggström)',
        'rocket': 'public domain (SpaceX)',
    },
    'val': {
        'camera': 'CC0 (Lav Varshney)',
        'chelsea': 'CC0 (Stefan van der Walt)',
    },
}
#: Shorter side of a photograph before it is cut, in pixels: details, objects, the whole of it.
SCALES = (512, 256, 128)


def make_tiles(root: Path, size: int = 128, stride: int = 64) -> dict[str, int]:
    """Write ``root/{train,val}/<photograph>/<scale>_<y>_<x>.png``; existing files stay.

    Args:
        root: target folder, made where missing.
        size: side of the square tiles in pixels.
        stride: distance of neighbouring tiles in pixels.

    Returns:
        Number of tiles by split.
    """
    counts = dict.fromkeys(PHOTOGRAPHS, 0)
    for split, names in PHOTOGRAPHS.items():
        for name in names:
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for tile_name, tile in _tiles(_photograph(name), size, stride).items():
                path = folder / f'{tile_name}.png'
                if not path.exists():
                    tile.save(path)
                counts[split] += 1
    return counts


def _photograph(name: str) -> Image.Image:
    import skimage.data

    return Image.fromarray(np.asarray(getattr(skimage.data, name)())).convert('RGB')


def _tiles(photograph: Image.Image, size: int, stride: int) -> dict[str, Image.Image]:
    tiles = {}
    for scale in SCALES:
        # Never enlarged: smaller photographs enter with the size they have.
        factor = min(1.0, scale / min(photograph.size))
        width, height = (round(side * factor) for side in photograph.size)
        scaled = photograph.resize((width, height), Image.Resampling.LANCZOS)
        for top in range(0, height - size + 1, stride):
            for left in range(0, width - size + 1, stride):
                box = (left, top, left + size, top + size)
                tiles[f'{scale}_{top:03d}_{left:03d}'] = scaled.crop(box)
    return tiles


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description='Cut demo photographs into tiles.')
    parser.add_argument('root', type=Path, help='target folder')
    parser.add_argument('--size', type=int, default=128, help='side of a tile in pixels')
    parser.add_argument('--stride', type=int, default=64, help='step between tiles in pixels')
    args = parser.parse_args()
    counts = make_tiles(args.root, args.size, args.stride)
    print(f'{args.root}: ' + ', '.join(f'{n} {split} tiles' for split, n in counts.items()))


if __name__ == '__main__':
    main()

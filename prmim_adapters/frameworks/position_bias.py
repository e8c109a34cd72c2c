# SPDX-License-Identifier: Apache-2.0
"""Relative position biases of smaller images, which mmpretrain resizes by a SciPy that is gone.

Its BEiT and Swin call ``scipy.interpolate.interp2d`` when they load such weights. SciPy 1.14 has
``RectBivariateSpline`` in its place, which on a regular grid gives the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
from mmpretrain.models.backbones import beit, swin_transformer
from mmpretrain.models.utils import embed

_upstreams = embed.resize_relative_position_bias_table


def resize_with_current_scipy() -> None:
    """Let mmpretrain resize the biases; calling it again changes nothing."""
    for module in (embed, beit, swin_transformer):
        module.resize_relative_position_bias_table = _resized


@functools.wraps(_upstreams)
def _resized(*args: Any, **kwargs: Any) -> Any:
    from scipy import interpolate  # as upstream imports it: few need it

    with mock.patch.object(interpolate, 'interp2d', _interp2d):
        return _upstreams(*args, **kwargs)


def _interp2d(x: Any, y: Any, z: np.ndarray, kind: str) -> Callable[[Any, Any], np.ndarray]:
    """``interp2d`` on a regular grid: z (len(y), len(x)) -> function (x, y) -> (len(y), len(x))."""
    from scipy.interpolate import RectBivariateSpline

    degree = dict(linear=1, cubic=3)[kind]
    spline = RectBivariateSpline(x, y, z.T, kx=degree, ky=degree)
    return lambda new_x, new_y: spline(new_x, new_y).T

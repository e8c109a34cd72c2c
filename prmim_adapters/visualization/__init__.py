# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a model masked, kept, threw and reconstructed."""

from ..extras import require

require('openmmlab')

from .display import Display, display_of
from .load import image_files, load_images, load_model
from .observe import KEPT, THROWN, VISIBLE, Observation, observe
from .panels import panels

__all__ = [
    'KEPT',
    'THROWN',
    'VISIBLE',
    'Display',
    'Observation',
    'display_of',
    'image_files',
    'load_images',
    'load_model',
    'observe',
    'panels',
]

# SPDX-License-Identifier: Apache-2.0
"""Pre-trained encoders for other libraries."""

from ..extras import require

require('openmmlab', 'export')

from .encoder import export_encoder, export_folder, export_weights, to_timm

__all__ = ['export_encoder', 'export_folder', 'export_weights', 'to_timm']

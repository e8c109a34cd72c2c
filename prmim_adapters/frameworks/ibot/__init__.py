# SPDX-License-Identifier: Apache-2.0
"""iBOT (arXiv 2111.07832) as an mmpretrain algorithm: backbone, neck, head, algorithm."""

from .algorithm import IBOT, TeacherEMA
from .backbone import IBOTViT, MaskedTokens
from .head import IBOTHead
from .neck import IBOTNeck, WeightNormLinear

__all__ = [
    'IBOT',
    'IBOTHead',
    'IBOTNeck',
    'IBOTViT',
    'MaskedTokens',
    'TeacherEMA',
    'WeightNormLinear',
]

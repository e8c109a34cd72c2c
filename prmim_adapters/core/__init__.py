# SPDX-License-Identifier: Apache-2.0
"""Tensors in, tensors out: partition, sampling, aggregation, and the pipeline that joins them."""

from .partition import (
    TokenPartition,
    count_masked,
    gather_tokens,
    partition_tokens,
    scatter_tokens,
    table_rows,
)
from .pipeline import PartialReconstruction
from .positions import sincos_positions
from .ragged import RaggedPartition

__all__ = [
    'PartialReconstruction',
    'RaggedPartition',
    'TokenPartition',
    'count_masked',
    'gather_tokens',
    'partition_tokens',
    'scatter_tokens',
    'sincos_positions',
    'table_rows',
]

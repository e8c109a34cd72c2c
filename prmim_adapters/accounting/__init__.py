# SPDX-License-Identifier: Apache-2.0
"""What a model costs: MACs of the loss path, activation memory, parameters, throughput."""

from ..extras import require

require('openmmlab')

from prmim_adapters.accounting.batch import make_batch
from prmim_adapters.accounting.flops import (
    MacCount,
    TrainingMacs,
    UndercountError,
    count_macs,
    training_macs,
)
from prmim_adapters.accounting.memory import activation_bytes, parameter_bytes

__all__ = [
    'MacCount',
    'TrainingMacs',
    'UndercountError',
    'activation_bytes',
    'count_macs',
    'make_batch',
    'parameter_bytes',
    'training_macs',
]

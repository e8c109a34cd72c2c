# SPDX-License-Identifier: Apache-2.0
"""The original repositories of MAE, SimMIM, ConvNeXt V2 and iBOT.

What their patched training scripts call is here; it needs torch only:

    prmim.add_arguments(parser)   # --throw_ratio, --sampler, --aggregator
    prmim.attach(model)           # with those, or PRMIM_THROW_RATIO, ... in the environment
"""

from .patched import add_arguments, attach

__all__ = ['add_arguments', 'attach']

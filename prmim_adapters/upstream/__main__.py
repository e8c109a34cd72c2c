# SPDX-License-Identifier: Apache-2.0
"""``torchrun --nproc_per_node 8 -m prmim_adapters.upstream main_pretrain.py ...``."""

import sys

from .launcher import run_script

if __name__ == '__main__':
    if len(sys.argv) < 2:
        sys.exit('usage: python -m prmim_adapters.upstream SCRIPT [ARGUMENTS]...')
    run_script(sys.argv[1], sys.argv[2:])

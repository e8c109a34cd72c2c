# SPDX-License-Identifier: Apache-2.0
"""mmpretrain's training script; ``mim train prmim-adapters CONFIG`` runs this one."""

from prmim_adapters.mim_tools import run

if __name__ == '__main__':
    run('train.py')

# SPDX-License-Identifier: Apache-2.0
"""Progressive partial reconstruction for masked image modeling."""

__version__ = '0.1.0'

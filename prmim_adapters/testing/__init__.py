# SPDX-License-Identifier: Apache-2.0
"""The contract of an adapter, checked."""

from .access import recorded_partitions

__all__ = ['recorded_partitions']

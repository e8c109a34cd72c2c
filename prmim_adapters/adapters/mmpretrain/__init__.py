# SPDX-License-Identifier: Apache-2.0
"""Adapters of mmpretrain's algorithms, and of those that this package adds to mmpretrain."""

# SPDX-License-Identifier: Apache-2.0
"""MIM algorithms that mmpretrain lacks, in its house style; each complete without PR-MIM."""

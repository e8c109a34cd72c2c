# SPDX-License-Identifier: Apache-2.0
"""Adapters of the original repositories, which a script runs in and nobody installs."""

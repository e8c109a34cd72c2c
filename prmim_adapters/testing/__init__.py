# SPDX-License-Identifier: Apache-2.0
"""The contract of an adapter, checked."""

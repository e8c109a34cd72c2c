# SPDX-License-Identifier: Apache-2.0
"""Present tokens through networks: what a framework computes, without the absent positions.

Torch only, tensors and modules in, tensors out. Adapters and frameworks share it.
"""

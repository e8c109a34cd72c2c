# SPDX-License-Identifier: Apache-2.0
"""The stages of ``benchmarks/gpu.py``: everything that wants a GPU, in order of importance.

``plan`` names them and estimates their time, ``runner`` runs them in a process that may be ended,
the other modules do the work. ``plan`` and ``runner`` import no torch, so that listing is quick and
an error of the device cannot reach what keeps the results.
"""

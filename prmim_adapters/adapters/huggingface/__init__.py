# SPDX-License-Identifier: Apache-2.0
"""Adapters of Hugging Face transformers."""

# SPDX-License-Identifier: Apache-2.0
"""Cross-framework validation: a matrix of training runs, evaluated on frozen features.

``spec`` reads the matrix, ``configs`` writes a config per point, ``point`` is the run of one,
``runner`` runs them all on an engine (``local``), a hook in ``evaluation`` measures, ``results``
stores, ``statistics`` judges, ``report`` and ``plots`` show.
"""

from .spec import Spec, SpecError, load_spec

__all__ = ['Spec', 'SpecError', 'load_spec']

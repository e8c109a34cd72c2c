# SPDX-License-Identifier: Apache-2.0
"""Cross-framework validation: a matrix of training runs, evaluated on frozen features.

``reading`` makes a ``spec`` of YAML by the ``rules``, ``checking`` tries what it names, ``configs``
writes a config per point, ``point`` is the run of one, ``runner`` runs them all on an engine
(``local``). Inside a run ``pairing`` fixes what is drawn, ``equal_cost`` how long it trains,
``evaluation`` measures, with ``cost``. ``results`` stores, ``collected`` reads, ``statistics``
judges, ``report``, ``verdicts`` and ``plots`` show.
"""

from ..extras import require

require('openmmlab', 'sweep')

from .reading import load_spec
from .spec import Spec, SpecError

__all__ = ['Spec', 'SpecError', 'load_spec']

# SPDX-License-Identifier: Apache-2.0
"""Break the code once in each way that the tests must notice, and report what they do not notice.

    python tools/mutations.py             # all: one line each, exit 1 if any survives
    python tools/mutations.py ibot slot   # those with one of these words in their names
    python tools/mutations.py --list

Each mutation replaces a text that must occur exactly once in its file, in a temporary copy of the
working tree, and runs the tests named for it, all of which the default run includes. A text that no
longer occurs, a test that no longer exists, and a test that fails without any mutation are errors,
not kills. Mutations of the original repositories' adapters need PRMIM_UPSTREAM_DIR.
"""

from __future__ import annotations

import sys

from mutation_run import main
from mutations_adapters import ADAPTERS
from mutations_ibot import IBOT
from mutations_pipeline import PIPELINE

MUTATIONS = [*ADAPTERS, *PIPELINE, *IBOT]

if __name__ == '__main__':
    sys.exit(main(MUTATIONS, __doc__))

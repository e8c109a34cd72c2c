# SPDX-License-Identifier: Apache-2.0
import re
from pathlib import Path

from same_masks_runs import PAGES


def test_every_command_that_is_said_to_be_run_by_a_test_is():
    tests = (path.read_text() for path in Path(__file__).parents[1].rglob('test_*.py'))
    tests = [*tests, Path(__file__).with_name('same_masks_runs.py').read_text()]
    used = re.findall(r"""\bpage\(['"](\S+?)['"]\)""", '\n'.join(tests))
    assert set(re.findall(r'^<!-- run: (\S+) -->$', PAGES, re.M)) == set(used)

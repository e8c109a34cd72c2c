# SPDX-License-Identifier: Apache-2.0
import re
from pathlib import Path

from same_masks_runs import PAGE

HERE = Path(__file__).parent


def test_every_command_of_the_page_is_run_by_a_test_or_says_why_not():
    blocks = re.findall(r'^(.*)\n```(?:bash|python)$', PAGE.read_text(), re.M)
    notes = [re.fullmatch(r'<!-- (?:run: (\S+)|not run: .+) -->', line) for line in blocks]
    assert all(notes), blocks
    tests = [*HERE.glob('*.py'), HERE.parent / 'sweep' / 'test_slurm.py']
    used = re.findall(r"page\(['\"](\S+?)['\"]\)", '\n'.join(path.read_text() for path in tests))
    assert {note[1] for note in notes if note[1]} == set(used)

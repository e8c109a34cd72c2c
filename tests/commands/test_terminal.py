# SPDX-License-Identifier: Apache-2.0
"""What commands print: drawn on a terminal, markdown elsewhere, progress on standard error."""

from __future__ import annotations

import io
import subprocess
import sys
from subprocess import _args_from_interpreter_flags  # type: ignore[attr-defined]

import pytest
from rich.console import Console

from prmim_adapters.cli import _quiet
from prmim_adapters.commands._terminal import draw, print_tables, wrapped
from prmim_adapters.progress import reported_to, step, track
from prmim_adapters.tables import Table

COSTS = Table(
    ['', 'framework', 'plain partial 0.25', 'PR-MIM 0.25', 'plain partial 0.5', 'PR-MIM 0.5'],
    [
        ['forward GMACs', '0.214', '0.176 (-17.7%)', '0.180 (-15.9%)', '0.138', '0.142 (+0.1%)'],
        ['- backbone', '0.073', '0.073', '0.073', '0.073', '0.073'],
        ['activations MB, explicit', '3.8', '3.0 (-20.3%)', '3.1 (-16.6%)', '2.5', '2.7'],
        ['closed form, GMACs', '', '-0.038, off +0.00%', '', '', '-0.074, off +5.00% **differs**'],
    ],
    'MAE, 3x96x96, batch 2',
    'Per image, on the loss path. ' * 5,
)
WORDS = Table(
    ['framework', 'what'], [['MaskedVisionTransformerDecoderTIMM', 'words ' * 30]], words=True
)


@pytest.mark.parametrize('width', [80, 120])
def test_drawn_tables_keep_to_the_width(width: int) -> None:
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system='standard')
    draw([COSTS, WORDS], console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert '\x1b[32m(-17.7%)' in text and '\x1b[31m(+0.1%)' in text  # green, red
    assert '&nbsp;' not in text and '**' not in text and '|' not in text
    plain = Console(width=width, file=io.StringIO())
    draw([COSTS, WORDS], plain)
    lines = plain.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= width
    assert any(line.split() == ['backbone', *['0.073'] * 5] for line in lines)
    assert any(line.startswith(' forward GMACs') for line in lines)  # names of rows stay whole
    words = {word for line in lines for word in line.split()}
    assert {'framework', 'partial', 'PR-MIM', '(-20.3%)', '(-16.6%)', '+5.00%'} <= words


def test_a_pipe_gets_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    print_tables([COSTS, WORDS])
    printed = capsys.readouterr().out
    assert printed.splitlines()[:4] == [
        'MAE, 3x96x96, batch 2',
        '',
        '|  | framework | plain partial 0.25 | PR-MIM 0.25 | plain partial 0.5 | PR-MIM 0.5 |',
        '|---|---:|---:|---:|---:|---:|',
    ]
    assert '| - backbone | 0.073 |' in printed and '&nbsp;' not in printed
    assert '|---|---|' in printed  # words to the left


def test_paragraphs_break_between_words_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('COLUMNS', '20')
    stream = io.StringIO()
    text = 'predictions are shown --with the mean of_the_true_patches'
    assert wrapped(text, stream) == text
    monkeypatch.setattr(stream, 'isatty', lambda: True)
    lines = ['predictions are', 'shown --with the', 'mean', 'of_the_true_patches']
    assert wrapped(text, stream).splitlines() == lines


def test_work_says_how_far_it_is() -> None:
    heard: list[tuple[str, int, int | None]] = []
    with reported_to(lambda *said: heard.append(said)):
        assert list(track(['a', 'b'], str.upper)) == ['a', 'b']
        step('resting')
    step('nobody listens')
    assert heard == [('A', 0, 2), ('B', 1, 2), ('resting', 0, None)]


def test_processes_that_measure_warn_as_little_as_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, 'warnoptions', [])
    with _quiet():
        assert '-Wignore' in _args_from_interpreter_flags()  # what multiprocessing hands on
    assert sys.warnoptions == []


def test_every_command_has_help_without_torch_or_numpy() -> None:
    code = (
        'import sys\n'
        'from click.testing import CliRunner\n'
        'from prmim_adapters.cli import main\n'
        'first = CliRunner().invoke(main, ["--help"], terminal_width=80).output\n'
        'assert "..." not in first.replace("[ARGS]...", ""), first\n'
        'for name in main.list_commands(None):\n'
        '    shown = CliRunner().invoke(main, [name, "--help"], terminal_width=80)\n'
        '    assert shown.exit_code == 0, shown.output\n'
        '    assert max(map(len, shown.output.splitlines())) <= 80\n'
        'assert not {"torch", "numpy", "rich"} & set(sys.modules)'
    )
    subprocess.run([sys.executable, '-c', code], check=True)

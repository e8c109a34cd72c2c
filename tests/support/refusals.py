# SPDX-License-Identifier: Apache-2.0
"""Commands that end with a message."""

from typing import Any

from click.testing import CliRunner


def refused(command: Any, *arguments: Any) -> str:
    """The message of a command that ends with one."""
    result = CliRunner().invoke(command, [str(a) for a in arguments])
    assert isinstance(result.exception, SystemExit), result.exception  # no traceback
    assert result.exit_code == 2
    return result.output

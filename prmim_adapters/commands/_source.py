# SPDX-License-Identifier: Apache-2.0
"""What a command is asked about: a config or a function."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from ..accounting.sources import ConfigSource, FunctionSource


def chosen(text: str) -> ConfigSource | FunctionSource:
    """The source that ``text`` names.

    Raises:
        click.UsageError: ``--batch-size`` for a function that takes none.
    """
    from ..accounting.sources import source_of

    source = source_of(text)
    given = click.get_current_context().get_parameter_source('batch_size')
    if given is ParameterSource.COMMANDLINE and not source.takes_batch_size:
        raise click.UsageError(
            f'--batch-size: {text} has no parameter batch_size; its batch is taken as it is'
        )
    return source

# SPDX-License-Identifier: Apache-2.0
"""What the patched scripts call: options on their command line, and ``attach`` with them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import nn

from .. import adapters

Model = TypeVar('Model', bound=nn.Module)

#: option to environment variable, default, help
OPTIONS = {
    '--throw_ratio': ('PRMIM_THROW_RATIO', '0.5', 'Thrown tokens / all tokens; 0: as upstream.'),
    '--sampler': ('PRMIM_SAMPLER', 'farthest', 'Which masked tokens are kept.'),
    '--aggregator': (
        'PRMIM_AGGREGATOR',
        'cross_attention',
        "How thrown tokens are reconstructed; 'none': not at all.",
    ),
}


class _ToEnvironment(argparse.Action):
    """Keeps an option where ``attach`` finds it, however the script hands its arguments on."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        os.environ[OPTIONS[self.option_strings[0]][0]] = str(values)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of :data:`OPTIONS` to a script's parser."""
    group = parser.add_argument_group('partial reconstruction')
    for option, (variable, default, text) in OPTIONS.items():
        group.add_argument(
            option,
            action=_ToEnvironment,
            default=argparse.SUPPRESS,
            help=f'{text} Default: ${variable} or {default}.',
        )


def attach(model: Model) -> Model:
    """``prmim_adapters.attach`` with the options of the command line or the environment.

    Raises:
        ValueError: ``PRMIM_THROW_RATIO`` is no number, or as ``prmim_adapters.attach``.
    """
    ratio, sampler, aggregator = (
        os.environ.get(variable, default) for variable, default, _ in OPTIONS.values()
    )
    try:
        throw_ratio = float(ratio)
    except ValueError:
        raise ValueError(f'throw_ratio={ratio!r}: expected a number from 0 to 1') from None
    return adapters.attach(
        model, throw_ratio, sampler, None if aggregator.lower() == 'none' else aggregator
    )

# SPDX-License-Identifier: Apache-2.0
"""Samplers and light stages by what ``attach`` is given: a name, a function or class, or a dict."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from ..core.partition import Sampler
from .registry import AGGREGATORS, SAMPLERS, Registry, qualified
from .seams import Seams

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

Spec = str | Callable[..., Any] | dict[str, Any] | None


def build_sampler(spec: Spec) -> Sampler:
    """The sampler that a spec names, with its options bound.

    Raises:
        TypeError: it names none, or an option is unknown.
        KeyError: it is not registered.
    """
    function, options = _entry_and_options(SAMPLERS, spec)
    # A wrong option shows here rather than in the first step.
    _check_call(f'sampler {_shown(spec)}', function, ('mask', 'num_kept', 'grid', 'noise'), options)
    return functools.partial(function, **options) if options else function


def build_aggregator(spec: Any, seams: Seams, model: nn.Module) -> nn.Module:
    """A light stage of the width and grid of ``seams``, where ``model`` is and in its type.

    Raises:
        TypeError: the spec names none, or makes no module, or an option is unknown.
        KeyError: it is not registered.
    """
    kind, options = _entry_and_options(AGGREGATORS, spec)
    if getattr(kind, 'takes_key_positions', False) and not seams.absolute_positions:
        options.setdefault('key_positions', True)
    given = dict(width=seams.width, grid=seams.grid)
    _check_call(f'aggregator {_shown(spec)}', kind, tuple(given), options, given)
    module = kind(**given, **options)
    if not isinstance(module, nn.Module):
        raise TypeError(
            f'aggregator {_shown(spec)} made a {type(module).__name__}: expected a torch.nn.Module'
        )
    reference = next(model.parameters())
    return module.to(device=reference.device, dtype=reference.dtype).train(model.training)


def _entry_and_options(registry: Registry, spec: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    """What a spec names, and the options that it gives.

    Raises:
        TypeError: it names nothing, or a module that has been built already.
        KeyError: it is not registered.
    """
    options = dict(spec) if isinstance(spec, dict) else dict(type=spec)
    kind = options.pop('type', None)
    if isinstance(kind, str):
        found = None if kind in registry else qualified(kind)
        return (registry.get(kind) if found is None else found), options
    if not callable(kind) or isinstance(kind, nn.Module):
        raise TypeError(
            f'{registry.kind}={spec!r}: give a name, a function or class, or dict(type=name, '
            '**options)'
        )
    return kind, options


def _check_call(
    what: str,
    entry: Callable[..., Any],
    takes: tuple[str, ...],
    options: dict[str, Any],
    named: dict[str, Any] | None = None,
) -> None:
    """Whether ``entry`` can be called as it will be: by position, unless arguments are ``named``.

    Raises:
        TypeError: an option that it does not have, or other arguments; says which it takes.
    """
    try:
        signature = inspect.signature(entry)
    except ValueError:  # of a function in C
        return
    known = list(signature.parameters.values())[0 if named else len(takes) :]
    names = [p.name for p in known if p.kind in _BY_NAME and p.name not in takes]
    unknown = [] if any(p.kind is p.VAR_KEYWORD for p in known) else sorted({*options} - {*names})
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, n=1)
        hint = f'. Did you mean {near[0]!r}?' if near else '.'
        has = f'Its options are {", ".join(names)}' if names else 'It has none'
        raise TypeError(f'{what} has no option {unknown[0]!r}{hint} {has}')
    try:
        signature.bind(*(() if named else takes), **(named or {}), **options)
    except TypeError as error:
        raise TypeError(f'{what} must take {", ".join(takes)}: {error}') from None


def _shown(spec: Any) -> str:
    kind = spec['type'] if isinstance(spec, dict) else spec
    return repr(kind if isinstance(kind, str) else getattr(kind, '__name__', kind))

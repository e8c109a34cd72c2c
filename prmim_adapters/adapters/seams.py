# SPDX-License-Identifier: Apache-2.0
"""What an adapter says of a model: a value that ``attach`` checks completely before it changes it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..core.partition import Grid


@dataclass(frozen=True, kw_only=True)
class Seams:
    """The places of one model that partial reconstruction goes into.

    Attributes:
        host: path of the module that owns the light stage, whose parameters are therefore
            ``<host>.partial.*`` in the state dict; '' is the model itself.
        classes: framework class to the subclass that a module of it becomes. The signature of every
            method that the subclass overrides is the one it was written for, so the framework's
            must have the same. A user's subclass gets the seam between it and its base.
        grid: (H, W) of the patch grid in tokens.
        width: channels C of the features from which thrown tokens are reconstructed.
        guests: paths of further modules that change and share the light stage.
        num_masked: masked tokens per image where the model makes its own masks, else None.
        num_prefix: tokens (cls, registers) before the patch tokens in the heavy network.
        ragged: True where images of a batch may differ in their number of masked tokens.
        absolute_positions: False where features know no absolute position, so that aggregators
            must be told.
        num_features: sets of features in which thrown tokens are reconstructed, each by light
            stages of its own.
        owns_loss: False where the loss is not part of the model, so that thrown tokens cannot be
            given another weight than kept ones.
        num_blocks: blocks of the heavy network, where thrown tokens can come back before its last
            ones; 0 where they cannot.
    """

    host: str
    classes: Mapping[type, type] = field(repr=False)
    grid: Grid
    width: int
    guests: tuple[str, ...] = ()
    num_masked: int | None = None
    num_prefix: int = 0
    ragged: bool = False
    absolute_positions: bool = True
    num_features: int = 1
    owns_loss: bool = True
    num_blocks: int = 0

    @property
    def paths(self) -> tuple[str, ...]:
        """Modules that change, host first."""
        return (self.host, *self.guests)

    @property
    def length(self) -> int:
        """L, positions of the patch grid."""
        return self.grid[0] * self.grid[1]


def patch_grid(image_size: Grid, patch_size: Grid, where: str) -> Grid:
    """(H, W) in tokens of an image of ``image_size`` pixels.

    Raises:
        ValueError: a side is not divisible by the patch size; ``where`` says where it came from.
    """
    if any(size % patch for size, patch in zip(image_size, patch_size, strict=True)):
        raise ValueError(
            f'{where}={tuple(image_size)} is not divisible by the patch size {tuple(patch_size)}: '
            'choose a multiple of it'
        )
    return image_size[0] // patch_size[0], image_size[1] // patch_size[1]


def check_seams(name: str, seams: Any, model: nn.Module) -> dict[str, type]:
    """Check everything that an adapter said of ``model``.

    Args:
        name: of the adapter, for messages.
        seams: what it returned.
        model: not changed.

    Returns:
        Path to the class that the module there becomes.

    Raises:
        TypeError, ValueError: what is wrong, what was found and what is expected.
    """
    if not isinstance(seams, Seams):
        raise TypeError(f'adapter {name} returned {seams!r}: an adapter returns Seams(...)')
    _check_sizes(name, seams)
    if len(set(seams.paths)) != len(seams.paths):
        raise ValueError(
            f'adapter {name}: host {seams.host!r} and guests {seams.guests} must be different '
            'modules'
        )
    return {path: _changed_class(name, seams, model, path) for path in seams.paths}


def _check_sizes(name: str, seams: Seams) -> None:
    counts = {
        'grid[0]': (seams.grid[0], 1),
        'grid[1]': (seams.grid[1], 1),
        'width': (seams.width, 1),
        'num_prefix': (seams.num_prefix, 0),
        'num_features': (seams.num_features, 1),
        'num_blocks': (seams.num_blocks, 0),
    }
    if seams.num_masked is not None:
        counts['num_masked'] = (seams.num_masked, 0)
    for option, (value, least) in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(
                f'adapter {name}: {option}={value!r}: must be an integer of at least {least}'
            )
    if seams.num_masked is not None and seams.num_masked > seams.length:
        raise ValueError(
            f'adapter {name}: num_masked={seams.num_masked}, but the grid {seams.grid} has '
            f'{seams.length} tokens: choose a mask ratio of at most 1'
        )


def _changed_class(name: str, seams: Seams, model: nn.Module, path: str) -> type:
    """The class that the module at ``path`` becomes."""
    try:
        module = model.get_submodule(path)
    except AttributeError as error:
        raise TypeError(
            f'adapter {name}: {type(model).__name__} has no module {path!r} ({error})'
        ) from None
    found, place = type(module), f'{type(model).__name__}.{path}' if path else 'the model'
    if hasattr(module, 'partial'):
        raise ValueError(
            f"{place} has an attribute 'partial', which is the name of the light stage there: "
            'rename yours, or detach where it was attached'
        )
    base = next((cls for cls in found.__mro__ if cls in seams.classes), None)
    if base is None:
        raise TypeError(
            f'{place} is a {_full_name(found)}: the adapter {name} attaches to '
            f'{", ".join(map(_full_name, seams.classes))} and their subclasses. Register an '
            'adapter for your class.'
        )
    seam = seams.classes[base]
    if not issubclass(seam, base):
        raise TypeError(
            f'adapter {name}: {_full_name(seam)} must be a subclass of {_full_name(base)}, which '
            f'it replaces'
        )
    for method, override in overrides(seam, base):
        _check_signature(name, base, method, override)
    if found is base:
        return seam
    from .between import between

    return between(found, base, seam)


def overrides(seam: type, base: type) -> Iterator[tuple[str, Any]]:
    """Methods of ``base`` that ``seam`` overrides, by name."""
    for cls in seam.__mro__:
        if cls in base.__mro__:
            continue
        for method, value in vars(cls).items():
            if inspect.isfunction(value) and hasattr(base, method):
                yield method, value


def _check_signature(name: str, base: type, method: str, override: Any) -> None:
    """The framework's method must take what the adapter was written for."""
    found, expected = inspect.signature(getattr(base, method)), inspect.signature(override)
    if not _fits(found, expected):
        raise TypeError(
            f'{_full_name(base)}.{method} is {method}({_shown(found)}), but the adapter {name} was '
            f'written for {method}({_shown(expected)}): this is another version or a descendant of '
            'the framework. Use the version that the documentation names, or register an adapter '
            'for your class.'
        )


def _fits(found: inspect.Signature, expected: inspect.Signature) -> bool:
    """Equal names and kinds; where an override hands all keywords on, there may be optional more."""
    theirs, ours = list(found.parameters.values()), list(expected.parameters.values())
    keywords = inspect.Parameter.VAR_KEYWORD
    if ours[-1].kind == keywords:
        ours = ours[:-1]
        further = [p for p in theirs[len(ours) :] if p.kind != keywords]
        if any(parameter.default is inspect.Parameter.empty for parameter in further):
            return False
        theirs = theirs[: len(ours)]
    return [(p.name, p.kind) for p in theirs] == [(p.name, p.kind) for p in ours]


def _shown(signature: inspect.Signature) -> str:
    return ', '.join(signature.parameters)


def _full_name(cls: type) -> str:
    return f'{cls.__module__}.{cls.__qualname__}'

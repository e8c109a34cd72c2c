# SPDX-License-Identifier: Apache-2.0
"""An adapter by a declaration, for decoders that are a list of blocks on one sequence of tokens.

Modifications: before the first block the rows of present tokens are gathered; after the last one
thrown tokens are aggregated and the sequence is put back to its full length. Embedding, positions,
norm, head and loss stay the framework's own, so thrown tokens pass its final norm too. Queries are
the sequence's own rows at thrown positions: mask token + position, whatever they are made of.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from torch import nn

from ..core.options import check_choice
from ..core.partition import Grid
from .between import forget, named_class
from .blocks import Pass, PRModuleList, PRSequential, check_loss
from .masks import Result
from .registry import ADAPTERS
from .seams import Seams

ORDERS = ('grid', 'visible_first')
_LOSS, _MASK = '#loss', '#mask'
"""End the names from which :func:`loss_class` and :func:`mask_class` are made."""


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """Where the heavy blocks of a framework are.

    Attributes:
        framework: qualified name of the model class that is attached to.
        blocks: path of the block list from the host; a ModuleList that the method iterates over,
            or a Sequential.
        arguments: names of the method's arguments, without self; ``'**kwargs'`` last if it takes
            any. Another signature is refused at attach.
        mask: where the mask comes from, see :mod:`prmim_adapters.adapters.masks`.
        grid: model -> (H, W) in tokens; video folds time into rows: (T * H, W).
        host: path of the module whose method builds the sequence; '' is the model.
        method: that method.
        prefix: rows (cls, registers) before the patch tokens; model -> their number where options
            of the model decide.
        order: of the other rows: 'grid' (row-major), or 'visible_first' (visible tokens, then
            masked ones, both row-major).
        width: model -> channels of the rows; the first layer norm in the blocks says it by default.
        num_masked: model -> masked tokens per image where the model draws its masks.
        loss: (method of the model, its mask argument) that averages over a mask of (B, L) or as
            many entries, if there is one. Without it plain partial reconstruction and
            ``thrown_weight`` are refused.
        per_token: names or places of further arguments of the blocks with a row for every token,
            (rows, ...) or (B, rows, ...), such as rotary positions; the blocks get
            (B, present rows, ...).
        per_image: the rows of masked tokens carry something of their image, such as its date. By
            default they are checked to be the same in all images, once: a wrong mask or order shows.
        meant: class -> whether this declaration is for it, where several frameworks have a class
            of one name; ``framework`` then ends in something to tell them apart: 'name (whose)'.
    """

    framework: str
    blocks: str
    arguments: tuple[str, ...]
    mask: Callable[..., Any]
    grid: Callable[[Any], Grid]
    host: str = ''
    method: str = 'forward'
    prefix: int | Callable[[Any], int] = 0
    order: str = 'grid'
    width: Callable[[Any], int] | None = field(default=None)
    num_masked: Callable[[Any], int] | None = None
    loss: tuple[str, str] | None = None
    per_token: tuple[str | int, ...] = ()
    per_image: bool = False
    meant: Callable[[type], bool] | None = None

    def __post_init__(self) -> None:
        check_choice('order', self.order, ORDERS)
        unknown = set(getattr(self.mask, 'reads', ())) - set(self.arguments)
        if unknown:
            raise ValueError(
                f'mask={self.mask} reads {", ".join(map(repr, sorted(unknown)))}, which is not among '
                f'the arguments of {self.method!r}: {", ".join(self.arguments)}'
            )
        if self.result and (self.result.module, self.result.method) == ('', self.method):
            raise ValueError(
                f'mask={self.mask}: {self.method!r} is the declared method itself, not one it calls'
            )
        number = isinstance(self.prefix, int) and not isinstance(self.prefix, bool)
        if not callable(self.prefix) and not (number and self.prefix >= 0):
            raise ValueError(
                f'prefix={self.prefix!r}: must be a number of rows, at least 0, or a function of '
                'the model'
            )

    @property
    def blocks_path(self) -> str:
        """Path of the block list from the model."""
        return self._from_model(self.blocks)

    @property
    def result(self) -> Result | None:
        """The mask, where a method makes it."""
        return self.mask if isinstance(self.mask, Result) else None

    @property
    def signature(self) -> inspect.Signature:
        """Of the method, self included."""
        kinds = inspect.Parameter
        parameters = [kinds('self', kinds.POSITIONAL_OR_KEYWORD)]
        for name in self.arguments:
            kind = kinds.VAR_KEYWORD if name.startswith('**') else kinds.POSITIONAL_OR_KEYWORD
            default = kinds.empty if kind == kinds.VAR_KEYWORD else None
            parameters.append(kinds(name.lstrip('*'), kind, default=default))
        return inspect.Signature(parameters)

    def __call__(self, model: Any) -> Seams:
        """The seams of a model: the host, whose method is followed, and the block list."""
        host, blocks = _module(model, self.host), _module(model, self.blocks_path)
        self._check_methods(model, host)
        owner = _owner(host, self.method)
        classes = {
            owner: host_class(self.framework, owner),
            nn.ModuleList: PRModuleList,
            nn.Sequential: PRSequential,
        }
        guests = [self.blocks_path]
        if self.result and self.result.module:
            guests.append(self._from_model(self.result.module))
            owner = _owner(_module(model, guests[-1]), self.result.method)
            classes[owner] = mask_class(self.framework, owner)
        if self.loss is not None and self.host:
            owner = _owner(model, self.loss[0])
            classes[owner] = loss_class(self.framework, owner)
            guests.append('')
        return Seams(
            host=self.host,
            guests=tuple(guests),
            classes=classes,
            grid=self._sides(model),
            width=_integer(self._asked('width', model)) if self.width else _row_width(blocks),
            num_masked=_integer(self._asked('num_masked', model)) if self.num_masked else None,
            num_prefix=_integer(self._asked('prefix', model)),
            owns_loss=self.loss is not None,
        )

    def _from_model(self, path: str) -> str:
        """Of a path from the host."""
        return f'{self.host}.{path}' if self.host else path

    def _asked(self, name: str, model: nn.Module) -> Any:
        """A value that the declaration has, or that its function says of the model."""
        value = getattr(self, name)
        try:
            return value(model) if callable(value) else value
        except (AttributeError, IndexError) as error:
            raise TypeError(
                f'{self.framework}: the declared {name} asks {type(model).__name__} for what it '
                f'does not have: {error}'
            ) from error

    def _sides(self, model: nn.Module) -> tuple[Any, Any]:
        grid = self._asked('grid', model)
        if not isinstance(grid, Sequence) or len(grid) != 2:
            raise TypeError(
                f'{self.framework}: the declared grid is {grid!r}: it must be rows and columns in '
                'tokens, (H, W); further axes are folded into the rows, (T * H, W)'
            )
        return _integer(grid[0]), _integer(grid[1])

    def _check_methods(self, model: nn.Module, host: nn.Module) -> None:
        """Before classes are made that rely on them."""
        if self.result and not self.result.module:
            _owner(host, self.result.method)
        if self.loss is None:
            return
        name, argument = self.loss
        owner = _owner(model, name)
        found = list(inspect.signature(getattr(owner, name)).parameters)
        if argument not in found:
            raise TypeError(
                f'{owner.__qualname__}.{name}({", ".join(found)}) has no argument {argument!r}, as '
                f'declared by loss={self.loss}'
            )


def register(framework: str, *, force: bool = False, **declaration: Any) -> Declaration:
    """Register a declaration, for the modules of this package: see :func:`declare`."""
    made = Declaration(framework=framework, **declaration)
    ADAPTERS.register_module(framework=framework, module=made, force=force)
    for end in ('', _LOSS, _MASK):
        forget(__name__, framework + end)
    return made


def declare(framework: str, *, force: bool = False, **declaration: Any) -> Declaration:
    """Register an adapter that needs no code; the arguments are those of :class:`Declaration`.

    Args:
        framework: qualified name of the model class.
        force: replace the adapter that there is for that name.
        **declaration: the rest of it.

    Example:
        >>> prmim.declare(
        ...     'my_mae.MyMAE',
        ...     method='forward_decoder', arguments=('x', 'ids_restore'),
        ...     blocks='decoder_blocks', prefix=1, mask=prmim.masks.Restore(),
        ...     grid=lambda model: model.patch_embed.grid_size,
        ...     loss=('forward_loss', 'mask'),
        ... )

    Raises:
        KeyError: there is an adapter for that framework already.
        TypeError, ValueError: an argument is missing, unknown or out of range.
    """
    if framework in ADAPTERS and not force:
        raise KeyError(
            f'{ADAPTERS.kind} {framework!r} is registered already; pass force=True to replace it'
        )
    return register(framework, force=force, **declaration)


def host_class(framework: str, base: type) -> type:
    """The subclass of ``base`` whose declared method runs its blocks on present tokens."""
    declaration: Declaration = ADAPTERS.get(framework)

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = declaration.signature.bind(self, *args, **kwargs).arguments
        arguments = {**bound, **bound.get('kwargs', {})}
        blocks = self.get_submodule(declaration.blocks)
        original = getattr(super(made, self), declaration.method)
        mask, maker = declaration.mask(self, arguments), None
        if declaration.result:
            maker = self.get_submodule(declaration.result.module)
        elif mask is None:
            return original(*args, **kwargs)
        with blocks.following(Pass(self.partial, declaration, mask), maker):
            return original(*args, **kwargs)

    run.__signature__ = declaration.signature  # type: ignore[attr-defined]
    methods: dict[str, Any] = {declaration.method: run}
    if declaration.result and not declaration.result.module:
        methods |= _mask_method(framework, base)
    if declaration.loss is not None and not declaration.host:
        methods |= _loss_method(framework, base)
    made = _made(framework, base, methods)
    return made


def loss_class(framework: str, base: type) -> type:
    """The subclass of a model's ``base`` whose declared loss weighs thrown tokens."""
    return _made(framework + _LOSS, base, _loss_method(framework, base))


def mask_class(framework: str, base: type) -> type:
    """The subclass of a part's ``base`` whose declared method makes the mask of the pass."""
    return _made(framework + _MASK, base, _mask_method(framework, base))


def _made(first: str, base: type, methods: dict[str, Any]) -> type:
    made = named_class(__name__, (first, base), base, methods)
    made.__name__ = base.__name__  # which Hugging Face saves
    return made


def _mask_method(framework: str, base: type) -> dict[str, Any]:
    """By its name."""
    mask = ADAPTERS.get(framework).mask
    original = getattr(base, mask.method)

    def masking(self: Any, *args: Any, **kwargs: Any) -> Any:
        returned = original(self, *args, **kwargs)
        followed = vars(self).get('followed')
        if followed is not None:
            followed.begin(mask.of(returned))
        return returned

    masking.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    return {mask.method: masking}


def _loss_method(framework: str, base: type) -> dict[str, Any]:
    """By its name; ``super`` is of the class in the MRO that has it from here."""
    name, argument = ADAPTERS.get(framework).loss
    original = getattr(base, name)
    signature = inspect.signature(original)
    place = list(signature.parameters).index(argument) - 1  # without self

    def weighed(self: Any, mask: Any) -> Any:
        check_loss(self.partial, framework, mask)
        if not self.partial.changes_loss:
            return mask
        partition = self.partial.take(len(mask))
        return self.partial.loss_mask(mask.flatten(1), partition).view_as(mask)

    def loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        if argument in kwargs:
            kwargs = {**kwargs, argument: weighed(self, kwargs[argument])}
        elif place < len(args):
            args = (*args[:place], weighed(self, args[place]), *args[place + 1 :])
        return original(self, *args, **kwargs)

    loss.__signature__ = signature  # type: ignore[attr-defined]
    return {name: loss}


def __getattr__(name: str) -> type:
    """The class that :func:`host_class` made in another process."""
    from .between import decoded

    framework, base = decoded(__name__, name)
    for end, make in ((_LOSS, loss_class), (_MASK, mask_class)):
        if framework.endswith(end):
            return make(framework.removesuffix(end), base)
    return host_class(framework, base)


def _owner(module: nn.Module, method: str) -> type:
    """The class of the MRO that has the method, which the seam goes before."""
    for cls in type(module).__mro__:
        if method in vars(cls):
            return cls
    raise TypeError(f'{type(module).__name__} has no method {method!r}, as declared')


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise TypeError(
            f'{type(model).__name__} has no module {path!r}, as declared ({error})'
        ) from None


def _integer(value: Any) -> Any:
    """Of numpy too; what is no integer is refused with the seams."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


def _row_width(blocks: nn.Module) -> int:
    """Channels of the rows: of the first norm in the blocks."""
    for module in blocks.modules():
        if isinstance(module, nn.LayerNorm):
            return module.normalized_shape[-1]
    raise TypeError('the blocks have no LayerNorm that says their width: declare width=')

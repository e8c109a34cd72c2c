# SPDX-License-Identifier: Apache-2.0
"""An adapter by a declaration, for decoders that are a list of blocks on one sequence of tokens.

Modifications: before the first block the rows of present tokens are gathered; after the last one
thrown tokens are aggregated and the sequence is put back to its full length. Embedding, positions,
norm, head and loss stay the framework's own, so thrown tokens pass its final norm too. Queries are
the sequence's own rows at thrown positions: mask token + position, whatever they are made of.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..core.partition import Grid
from .between import forget, named_class
from .blocks import Pass, PRModuleList, PRSequential
from .masks import Result
from .registry import ADAPTERS
from .seams import Seams

ORDERS = ('grid', 'visible_first')


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
        prefix: rows (cls, registers) before the patch tokens.
        order: of the other rows: 'grid' (row-major), or 'visible_first' (visible tokens, then
            masked ones, both row-major).
        width: model -> channels of the rows; the first parameter of two dimensions in the blocks
            says it by default.
        num_masked: model -> masked tokens per image where the model draws its masks.
        loss: (method of the host, its mask argument) that averages over a mask (B, L), if there is
            one. Without it plain partial reconstruction and ``thrown_weight`` are refused.
        per_token: names or places of further arguments of the blocks with a row for every token,
            (rows, ...) or (B, rows, ...), such as rotary positions.
    """

    framework: str
    blocks: str
    arguments: tuple[str, ...]
    mask: Callable[..., Any]
    grid: Callable[[Any], Grid]
    host: str = ''
    method: str = 'forward'
    prefix: int = 0
    order: str = 'grid'
    width: Callable[[Any], int] | None = field(default=None)
    num_masked: Callable[[Any], int] | None = None
    loss: tuple[str, str] | None = None
    per_token: tuple[str | int, ...] = ()

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f'order={self.order!r}: allowed are {", ".join(map(repr, ORDERS))}')
        if isinstance(self.prefix, bool) or not isinstance(self.prefix, int) or self.prefix < 0:
            raise ValueError(f'prefix={self.prefix!r}: must be a number of rows, at least 0')

    @property
    def blocks_path(self) -> str:
        """Path of the block list from the model."""
        return f'{self.host}.{self.blocks}' if self.host else self.blocks

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
        if not hasattr(type(host), self.method):
            raise TypeError(f'{type(host).__name__} has no method {self.method!r}, as declared')
        height, width = self.grid(model)
        return Seams(
            host=self.host,
            guests=(self.blocks_path,),
            classes={
                _owner(host, self.method): host_class(self.framework, _owner(host, self.method)),
                nn.ModuleList: PRModuleList,
                nn.Sequential: PRSequential,
            },
            grid=(height, width),
            width=self.width(model) if self.width else _row_width(blocks),
            num_masked=self.num_masked(model) if self.num_masked else None,
            num_prefix=self.prefix,
            owns_loss=self.loss is not None,
        )


def declare(framework: str, **declaration: Any) -> Declaration:
    """Register an adapter that needs no code; the arguments are those of :class:`Declaration`.

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
    made = Declaration(framework=framework, **declaration)
    ADAPTERS.register_module(framework=framework, module=made)
    forget(__name__, framework)
    return made


def host_class(framework: str, base: type) -> type:
    """The subclass of ``base`` whose declared method runs its blocks on present tokens."""
    declaration = ADAPTERS.get(framework)

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = declaration.signature.bind(self, *args, **kwargs).arguments
        arguments = {**bound, **bound.get('kwargs', {})}
        blocks = self.get_submodule(declaration.blocks)
        original = getattr(super(made, self), declaration.method)
        mask = declaration.mask(self, arguments)
        if mask is None and not isinstance(declaration.mask, Result):
            return original(*args, **kwargs)
        with blocks.following(Pass(self.partial, declaration, mask)):
            return original(*args, **kwargs)

    run.__signature__ = declaration.signature  # type: ignore[attr-defined]
    methods: dict[str, Any] = {declaration.method: run}
    if isinstance(declaration.mask, Result):

        def masking(self: Any, *args: Any, **kwargs: Any) -> Any:
            returned = getattr(super(made, self), declaration.mask.method)(*args, **kwargs)
            blocks = self.get_submodule(declaration.blocks)
            if blocks.followed is not None:
                blocks.followed.begin(declaration.mask.of(returned))
            return returned

        masking.__signature__ = inspect.signature(  # type: ignore[attr-defined]
            getattr(base, declaration.mask.method)
        )
        methods[declaration.mask.method] = masking
    if declaration.loss is not None:
        name, argument = declaration.loss
        signature = inspect.signature(getattr(base, name))

        def loss(self: Any, *args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(self, *args, **kwargs)
            if self.partial.changes_loss:
                mask = bound.arguments[argument]
                partition = self.partial.take(len(mask))
                bound.arguments[argument] = self.partial.loss_mask(mask, partition)
            return getattr(super(made, self), name)(*bound.args[1:], **bound.kwargs)

        loss.__signature__ = signature  # type: ignore[attr-defined]
        methods[name] = loss
    made = named_class(__name__, (framework, base), base, methods)
    return made


def __getattr__(name: str) -> type:
    """The class that :func:`host_class` made in another process."""
    from .between import decoded

    framework, base = decoded(__name__, name)
    return host_class(framework, base)


def _owner(module: nn.Module, method: str) -> type:
    """The class of the MRO that has the method, which the seam goes before."""
    return next(cls for cls in type(module).__mro__ if method in vars(cls))


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise TypeError(
            f'{type(model).__name__} has no module {path!r}, as declared ({error})'
        ) from None


def _row_width(blocks: nn.Module) -> int:
    """Channels of the rows: of the first norm in the blocks."""
    for module in blocks.modules():
        if isinstance(module, nn.LayerNorm):
            return module.normalized_shape[-1]
    raise TypeError('the blocks have no LayerNorm that says their width: declare width=')

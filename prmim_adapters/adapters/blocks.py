# SPDX-License-Identifier: Apache-2.0
"""Block lists of declared frameworks on present tokens only; see :mod:`.declared`.

What belongs to one pass is held by closures around the first and the last block, not by a module:
activation checkpointing calls the same closures again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..core import PartialReconstruction, TokenPartition, gather_tokens, scatter_tokens
from .masks import Restore

Block = Callable[..., Any]
_CHECKED = 'rows_checked'
"""Set on the shared part once the rows have been looked at."""
_MASKS = 'masks_seen'
"""On the shared part: masks that no loss was compared with; None once one was."""
_PASSES = 4
"""Passes, the latest ones, of which one must be that of the first loss."""
_SAME = 1e-3
"""Difference of equal rows as a share of the largest number in them, in any precision."""


def _unknown(tensor: Tensor) -> bool:
    """Whether its values cannot be looked at."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or tensor.is_meta


def _remember(partial: PartialReconstruction, mask: Tensor) -> None:
    seen = getattr(partial, _MASKS, ())
    if seen is not None and not _unknown(mask):
        setattr(partial, _MASKS, (*seen, mask)[-_PASSES:])


def check_loss(partial: PartialReconstruction, framework: str, weights: Tensor) -> None:
    """Once: the loss weighs the tokens that the mask of the declaration says are masked.

    Args:
        partial: the shared part.
        framework: its name.
        weights: what the framework's loss is given, (B, L) or as many entries.

    Raises:
        ValueError: it weighs others.
    """
    seen = getattr(partial, _MASKS, None)
    if not seen or _unknown(weights):
        return
    setattr(partial, _MASKS, None)
    weighed = weights.flatten(1) > 0
    if not any(torch.equal(mask, weighed) for mask in seen):
        mask = seen[-1]
        raise ValueError(
            f'{framework}: the loss weighs {int(weighed.sum())} tokens of the batch, of which '
            f'{int((weighed & mask).sum()) if mask.shape == weighed.shape else "none"} are among the '
            f'{int(mask.sum())} that are masked by the declaration: check mask (which value says '
            'masked, rows before the visible tokens) and loss'
        )


class Pass:
    """One forward pass of the blocks.

    Args:
        partial: the shared part.
        declaration: :class:`~prmim_adapters.adapters.declared.Declaration`.
        mask: (B, L) bool, or None where it is made later; see :meth:`begin`.
    """

    def __init__(self, partial: PartialReconstruction, declaration: Any, mask: Any) -> None:
        self.partial, self.declaration, self.prefix = partial, declaration, partial.num_prefix
        self.partition: TokenPartition | None = None
        self.entered = self.left = False
        self.queries: Tensor | None = None
        if mask is not None:
            self.begin(mask)

    def begin(self, mask: Tensor) -> None:
        """Partition the batch by its mask (B, L) bool."""
        self.mask = mask
        has_loss = self.declaration.loss is not None
        if has_loss:
            _remember(self.partial, mask)
        reads = has_loss and self.partial.changes_loss
        self.partition = self.partial(mask, loss_reads=reads)
        self.row_of = None
        if self.declaration.order == 'visible_first':
            self.row_of = mask.byte().argsort(dim=1, stable=True).argsort(dim=1)

    def around(self, blocks: list[Block]) -> list[Block]:
        """The blocks, the first and last ones in closures of this pass.

        Raises:
            RuntimeError: nothing has been partitioned yet.
        """
        if self.partition is None:
            raise RuntimeError(
                f'{self.declaration.framework}: the blocks ran before there was a mask; the '
                f'declaration says {self.declaration.mask}'
            )
        last = len(blocks) - 1
        return [functools.partial(self._run, b, i == 0, i == last) for i, b in enumerate(blocks)]

    def _run(self, block: Block, first: bool, last: bool, x: Tensor, *args: Any, **kw: Any) -> Any:
        if first:
            x = self._enter(x)
        args, kw = self._per_token(args, kw)
        out = block(x, *args, **kw)
        if not last:
            return out
        self.left = True
        if isinstance(out, tuple):
            return (self._leave(out[0]), *out[1:])
        return self._leave(out)

    def _rows(self, positions: Tensor) -> Tensor:
        """Rows (B, n) of the sequence for positions (B, n) of the grid."""
        rows = positions if self.row_of is None else self.row_of.gather(1, positions)
        return rows + self.prefix

    def _with_prefix(self, rows: Tensor) -> Tensor:
        prefix = torch.arange(self.prefix, device=rows.device)
        return torch.cat((prefix.expand(len(rows), -1), rows), dim=1)

    @property
    def _present(self) -> Tensor:
        assert self.partition is not None
        return self._with_prefix(self._rows(self.partition.present))

    def _enter(self, x: Tensor) -> Tensor:
        """(B, prefix + L, C) -> (B, prefix + V + K, C)."""
        assert self.partition is not None
        expected = self.prefix + self.partition.length
        if x.dim() != 3 or x.shape[1] != expected:
            raise ValueError(
                f'{self.declaration.framework}: the first block got {tuple(x.shape)}, but the '
                f'declaration says (B, {self.prefix} + {self.partition.length}, C): '
                'check prefix, grid and the path of the blocks'
            )
        if x.requires_grad and not torch.is_grad_enabled():
            raise RuntimeError(
                f'{self.declaration.framework}: activation checkpointing of the blocks is reentrant, '
                'and the gradient of mask tokens would be lost: pass use_reentrant=False to '
                'torch.utils.checkpoint.checkpoint'
            )
        self.entered = True
        self._check_rows(x)
        self.queries = gather_tokens(x, self._rows(self.partition.thrown))
        return gather_tokens(x, self._present)

    def _check_rows(self, x: Tensor) -> None:
        """Once, in the first pass with images that share masked positions.

        Rows at masked positions are made of mask token and position, so that all images have the
        same ones, unless the mask means the visible tokens or the order is another.
        """
        declaration = self.declaration
        if _unknown(x) or declaration.per_image or hasattr(self.partial, _CHECKED):
            return
        common = self.mask[1:] & self.mask[:-1]
        if not common.any():
            return
        everywhere = torch.arange(self.mask.shape[1], device=x.device).expand(len(x), -1)
        rows = gather_tokens(x.detach(), self._rows(everywhere))
        differs = (rows[1:] - rows[:-1]).abs().amax(dim=-1) > _SAME * rows.abs().max()
        if differs[common].any():
            raise ValueError(
                f'{declaration.framework}: what enters the blocks at masked tokens differs between '
                f'images, so it is not mask token + position. Check mask={declaration.mask} (which '
                f'value says masked), order={declaration.order!r} and blocks; declare '
                'per_image=True where masked tokens carry something of their image, or dropout '
                'comes before the blocks'
            )
        # After an encoder only: a patch of zeros may be embedded to what a mask token is.
        one = self.mask[1:] ^ self.mask[:-1]
        if isinstance(declaration.mask, Restore) and not differs[one].all():
            raise ValueError(
                f'{declaration.framework}: a token that is visible by {declaration.mask} enters the '
                'blocks as a mask token: check its prefix, the rows before the visible tokens'
            )
        setattr(self.partial, _CHECKED, True)

    def _leave(self, x: Tensor) -> Tensor:
        """(B, prefix + V + K, C) -> (B, prefix + L, C), zeros where nothing is reconstructed."""
        partition, prefix = self.partition, self.prefix
        assert partition is not None and self.queries is not None
        rows = self.partial.reconstruct(partition, x[:, prefix:], self.queries)
        known = prefix + partition.visible.shape[1]
        values = torch.cat((x[:, :known], rows), dim=1)
        positions = torch.cat((partition.visible, self.partial.supervised(partition)), dim=1)
        index = self._with_prefix(self._rows(positions))
        return scatter_tokens(values, index, prefix + partition.length)

    def _per_token(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Arguments with a row for every token, at present tokens."""
        if not self.declaration.per_token:
            return args, kwargs
        given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        for key in self.declaration.per_token:
            if key not in given:
                raise ValueError(
                    f'{self.declaration.framework}: the blocks are called without {key!r}, declared '
                    f'by per_token; beside the rows they get {list(given)} (numbers are places)'
                )
            given[key] = self._gathered(given[key])
        return tuple(given[i] for i in range(len(args))), {key: given[key] for key in kwargs}

    def _gathered(self, value: Any) -> Any:
        """(rows, ...) or (B, rows, ...) -> (B, prefix + V + K, ...)."""
        if isinstance(value, (tuple, list)):
            return type(value)(map(self._gathered, value))
        if not isinstance(value, Tensor):
            return value
        present, rows = self._present, self.prefix + self.mask.shape[1]
        shared = value.shape[:1] == (rows,)
        own = value.shape[:2] in ((1, rows), (len(present), rows))
        both = shared and own and value.dim() == 2
        if both or not (shared or own):
            remedy = 'it may be both: take another batch size' if both else 'check prefix and grid'
            raise ValueError(
                f'{self.declaration.framework}: per_token declares an argument of shape '
                f'{tuple(value.shape)}: expected ({rows}, ...), the same for all images, or '
                f'({len(present)}, {rows}, ...); {remedy}'
            )
        if own:
            return value[torch.arange(len(value), device=value.device)[:, None], present]
        return value[present]


class _Followed:
    """A block list that a pass may run through."""

    partial: PartialReconstruction
    followed: Pass | None = None

    @contextmanager
    def following(self, one: Pass, maker: nn.Module | None = None) -> Iterator[None]:
        """Run the blocks in ``one`` pass, and the module that makes its mask.

        Raises:
            RuntimeError: the framework does not iterate over the blocks.
        """
        modules = (self, maker or self)
        for module in modules:
            vars(module)['followed'] = one
        try:
            yield
        finally:
            for module in modules:
                vars(module).pop('followed', None)
        if not (one.entered and one.left):
            raise RuntimeError(
                f'{one.declaration.framework}.{one.declaration.method} did not iterate over '
                f'{one.declaration.blocks!r}, so that all tokens went through: declare the list '
                'that it loops over'
            )

    def __iter__(self) -> Iterator[Any]:
        blocks = list(super().__iter__())  # type: ignore[misc]
        return iter(blocks if self.followed is None else self.followed.around(blocks))


class PRModuleList(_Followed, nn.ModuleList):
    """A ModuleList on present tokens while a pass is followed."""


class PRSequential(_Followed, nn.Sequential):
    """A Sequential on present tokens while a pass is followed."""

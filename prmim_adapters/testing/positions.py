# SPDX-License-Identifier: Apache-2.0
"""Where every token goes: exact references for a whole adapter, at any ratio.

With token-wise networks (:mod:`.token_wise`) a thrown token changes no other one, and an
aggregator that returns what the heavy network would have given for ``queries[thrown]`` makes
partial reconstruction exact. The loss must then be the framework's own: a token, query, feature,
target or weight in another place shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ..adapters import attachment_of
from ..core import TokenPartition, sincos_positions, table_rows
from .access import nothing_thrown, recorded_partitions
from .case import AdapterCase, seeded
from .checks import same_step
from .token_wise import shake


class Exact(nn.Module):
    """The aggregator that runs the heavy network on the queries of thrown tokens.

    Where the heavy network's own tokens have no absolute position, queries have the fixed ones of
    :func:`~prmim_adapters.core.sincos_positions`, which are taken off again.

    Args:
        features_of: tokens (L, C) -> features (L, C); several where the adapter reconstructs more
            than one set of features.
        last_blocks: blocks that the features are still to go through.
    """

    def __init__(
        self, features_of: Callable[[Tensor], tuple[Tensor, ...]], last_blocks: int = 0
    ) -> None:
        super().__init__()
        self.features_of, self.last_blocks = features_of, last_blocks

    def forward(self, features: Tensor, partition: TokenPartition, queries: Tensor) -> Tensor:
        """See :mod:`prmim_adapters.core.aggregation`."""
        if queries.dim() == 3:  # at thrown tokens only
            return torch.stack([self.features_of(image)[0] for image in queries])
        kept = features[:, partition.visible.shape[1] :]
        assert len(queries.unique(dim=0)) == len(queries), 'queries must have different positions'
        added = sincos_positions(partition.grid, queries.shape[1]).to(queries)
        for tokens in (queries, queries - added):
            for table in self.features_of(tokens):
                if torch.allclose(table_rows(table, partition.kept), kept, rtol=1e-3, atol=1e-4):
                    return table_rows(table, partition.thrown)
        raise AssertionError(
            'features at kept tokens are not what the heavy network gives for their queries: '
            'features must follow partition.present (visible, then kept), and queries must be '
            'mask token + position, as the framework puts them in at masked tokens'
        )


def check_loss_is_exact_at_any_ratio(case: AdapterCase) -> None:
    """Token-wise, and with an exact light stage, the loss is the framework's own."""
    expected = case.loss(_framework(case))
    for ratio, stages in ((case.ratio, 1), (case.ratio, 2), (case.ratio / 2, 1)):
        assert_close(case.loss(_exact(case, ratio, stages)), expected, rtol=1e-5, atol=1e-6)


def check_thrown_tokens_come_back_before_the_last_block(case: AdapterCase) -> None:
    """Token-wise, and with what would have entered that block, the loss is the framework's own.

    Thrown tokens have their weight, as with a light stage after the network.
    """
    can = attachment_of(case.target(case.attached())).seams.num_blocks > 1
    assert can == (case.entering_last is not None), 'give entering_last, or no num_blocks'
    if case.entering_last is None:
        return  # nothing is said that could be wrong
    expected = case.loss(_framework(case))
    back = partial(_exact, case, case.ratio, entering=case.entering_last)
    assert_close(case.loss(back()), expected, rtol=1e-5, atol=1e-6)
    if case.weighted:
        expected = case.loss(_exact(case, case.ratio, thrown_weight=0.25))
        assert_close(case.loss(back(thrown_weight=0.25)), expected, rtol=1e-5, atol=1e-6)


def check_own_path_is_the_framework(case: AdapterCase) -> None:
    """Gathering, packing and scattering by themselves change neither loss nor gradients.

    An absolute error as loss makes single gradients jump by rounding.
    """
    framework = _shaken(case.reference or case.build)
    model = case.attached(_shaken(case.build))
    with nothing_thrown(case.target(model)):
        same_step(case, model, framework, rtol=1e-5, share=2e-3)


def check_masked_tokens_have_their_weights(case: AdapterCase) -> None:
    """The loss is the mean over masked tokens, thrown ones at their weight.

    Plain reconstruction keeps the first masked tokens, and in another run the others: both
    together are the framework's loss, and every other weight follows from them.
    """
    case.skip_if(not case.weighted, 'the loss weighs every masked token')
    whole = case.loss(_framework(case))
    model = case.attached(_token_wise(case, case.build), aggregator=None)
    case.partial(model).sampler = _first
    with recorded_partitions(case.target(model)) as seen:
        first = case.loss(model)
    case.skip_if(len(seen) > 1, 'images of the batch have masks of different sizes')
    partition = seen[0][1]
    visible = partition.visible.shape[1] * case.visible_weight
    kept, thrown = partition.kept.shape[1], partition.thrown.shape[1]
    model = case.attached(
        _token_wise(case, case.build), throw_ratio=kept / partition.length, aggregator=None
    )
    case.partial(model).sampler = _last
    first, last = first * (visible + kept), case.loss(model) * (visible + thrown)
    of_visible = first + last - whole * (visible + kept + thrown)
    if not visible:
        assert_close(of_visible, torch.zeros_like(whole), rtol=0, atol=1e-5 * float(first + last))
    for weight in (0.0, 0.5, 2.0):
        expected = (first + weight * (last - of_visible)) / (visible + kept + weight * thrown)
        model = _exact(case, case.ratio, thrown_weight=weight)
        case.partial(model).sampler = _first
        assert_close(case.loss(model), expected, rtol=1e-4, atol=1e-5)


def check_features_follow_their_positions(case: AdapterCase) -> None:
    """The light stage gets the features of visible tokens in the order of their positions."""
    model = case.attached(_token_wise(case, case.build), aggregator='nearest')
    batch = case.fixed_batch()
    images = [image.requires_grad_() for image in case.images(batch)]
    calls = _calls_of_light_stage(case, model, batch)
    assert calls, 'the light stage was not called'
    for features, partition, _ in calls:
        rows = features[:, : partition.visible.shape[1]].sum(-1)
        weight = torch.rand_like(rows) + 0.5
        by_row = rows.new_zeros(len(rows), partition.length).scatter(1, partition.visible, weight)
        once = _by_token(rows.sum(), images, partition)
        weighted = _by_token((rows * weight).sum(), images, partition)
        assert once.any(), 'features do not depend on the images'
        limit = 1e-5 * float(once.abs().max())
        assert_close(weighted, once * by_row[..., None], rtol=1e-3, atol=limit)


def check_light_stage_knows_positions(case: AdapterCase) -> None:
    """Cross-attention is told where its keys are, unless features say so themselves."""
    model = case.attached(_token_wise(case, case.build))
    aggregator: Any = case.partial(model).aggregators[0]
    aggregator.neighbours = 10**6  # all, and not padded: ragged masks come one size at a time
    features, partition, queries = _calls_of_light_stage(case, model, case.fixed_batch())[0]
    kept = features[:, partition.visible.shape[1] :].flatten(0, 1)
    if not torch.allclose(kept, kept[:1], rtol=1e-3, atol=1e-4):
        return  # mask tokens differ by their position
    moved = replace(partition, visible=partition.visible.flip(1))
    with torch.no_grad():
        here, there = (aggregator(features, p, queries) for p in (partition, moved))
    assert not torch.equal(here, there), 'keys at other positions make no difference'


def _exact(
    case: AdapterCase, ratio: float, stages: int = 1, entering: Any = None, **options: Any
) -> Any:
    """The case's model, token-wise, with :class:`Exact` stages; ``entering`` the last block."""
    model = case.attached(
        _token_wise(case, case.build),
        throw_ratio=ratio,
        aggregator=['distance'] * stages,
        **options,
    )
    exact = Exact(partial(case.heavy_features, model))
    if entering is not None:
        exact = Exact(lambda tokens: (entering(model, tokens),), last_blocks=1)
    case.partial(model).aggregators = nn.ModuleList([exact] * len(case.partial(model).aggregators))
    return model


def _framework(case: AdapterCase) -> Any:
    return _token_wise(case, case.reference or case.build)


def _token_wise(case: AdapterCase, build: Callable[[], Any]) -> Any:
    model = _shaken(build)
    case.token_wise(model)
    return model


def _shaken(build: Callable[[], Any]) -> Any:
    """Always the same model, with noise on every parameter."""
    model = seeded(build)
    shake(model)
    return model


def _first(mask: Tensor, num_kept: int | Tensor, *_: Any) -> Tensor:
    """Sampler that keeps the first masked tokens."""
    return mask & (mask.cumsum(dim=1) <= torch.as_tensor(num_kept).reshape(-1, 1))


def _last(mask: Tensor, num_kept: int | Tensor, *_: Any) -> Tensor:
    """Sampler that keeps the last masked tokens."""
    return _first(mask.flip(1), num_kept).flip(1)


def _calls_of_light_stage(case: AdapterCase, model: Any, batch: Any) -> list[Any]:
    calls: list[Any] = []
    handle = (
        case.partial(model)
        .aggregators[0]
        .register_forward_pre_hook(lambda module, args: calls.append(args))
    )
    case.loss(model, batch=batch)
    handle.remove()
    return calls


def _by_token(value: Tensor, images: list[Tensor], partition: TokenPartition) -> Tensor:
    """(B, L, -1) gradient of ``value`` with respect to every token's patch of the images."""
    gradient = torch.cat(torch.autograd.grad(value, images, retain_graph=True))
    gradient = gradient[gradient.flatten(1).any(dim=1)]
    height, width = partition.grid
    parts = gradient.unflatten(2, (height, -1)).unflatten(4, (width, -1))
    return parts.permute(0, 2, 4, 1, 3, 5).flatten(1, 2).flatten(2)

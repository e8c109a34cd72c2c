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
from typing import Any

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ..adapters.base import attach, partial_of
from ..core import TokenPartition, table_rows
from .access import added_positions, nothing_thrown
from .token_wise import make_token_wise, shake


class Exact(nn.Module):
    """The aggregator that runs the heavy network on the queries of thrown tokens.

    Args:
        features_of: queries (L, C) -> features (L, C); several where the adapter reconstructs
            more than one set of features.
    """

    def __init__(self, features_of: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.features_of = features_of

    def forward(self, features: Tensor, partition: TokenPartition, queries: Tensor) -> Tensor:
        """See :mod:`prmim_adapters.core.aggregation`."""
        kept = features[:, partition.visible.shape[1] :]
        for table in self.features_of(queries):
            if torch.allclose(table_rows(table, partition.kept), kept, rtol=1e-3, atol=1e-4):
                return table_rows(table, partition.thrown)
        raise AssertionError(
            'features at kept tokens are not what the heavy network gives for their queries: '
            'features must follow partition.present (visible, then kept), and queries must be '
            'mask token + position, as the framework puts them in at masked tokens'
        )


def exact(case: Any, throw_ratio: float, stages: int = 1) -> nn.Module:
    """The case's model, shaken and token-wise, attached with :class:`Exact` stages."""
    model = token_wise(case, case.build)
    attach(model, throw_ratio=throw_ratio, aggregator=['distance'] * stages)

    def features_of(queries: Tensor) -> tuple[Tensor, ...]:
        positions = added_positions(model, queries)
        tokens = queries if positions is None else queries - positions
        features = case.features(model, tokens)
        return features if isinstance(features, tuple) else (features,)

    partial_of(model).aggregators = nn.ModuleList([Exact(features_of) for _ in range(stages)])
    return model


def shaken(build: Callable[[], nn.Module]) -> nn.Module:
    """Always the same model, with noise on every parameter."""
    torch.manual_seed(0)
    model = build()
    shake(model)
    return model


def token_wise(case: Any, build: Callable[[], nn.Module]) -> nn.Module:
    """The same, token-wise."""
    model = shaken(build)
    make_token_wise(model)
    return model


def check_loss_is_exact_at_any_ratio(case: Any) -> None:
    """Token-wise, and with an exact aggregator, the loss is the framework's own."""
    expected = case.loss(token_wise(case, case.reference or case.build))
    for throw_ratio, stages in ((case.ratio, 1), (case.ratio, 2), (case.ratio / 2, 1)):
        actual = case.loss(exact(case, throw_ratio, stages))
        assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def check_own_path_is_the_framework(case: Any) -> None:
    """Gathering, packing and scattering by themselves change nothing."""
    expected = case.loss(shaken(case.reference or case.build))
    model = attach(shaken(case.build), throw_ratio=case.ratio)
    with nothing_thrown(model):
        assert_close(case.loss(model), expected, rtol=1e-5, atol=1e-6)


def check_features_follow_their_positions(case: Any) -> None:
    """The light stage gets the features of visible tokens in the order of their positions."""
    model = attach(token_wise(case, case.build), throw_ratio=case.ratio, aggregator='nearest')
    partial, calls = partial_of(model), []
    handle = partial.aggregators[0].register_forward_pre_hook(
        lambda module, args: calls.append(args[:2])
    )
    batch = case.batch()
    images = [image.requires_grad_() for image in case.images(batch)]
    case.loss(model, batch=batch)
    handle.remove()
    assert calls, 'the aggregator was not called'
    for features, partition in calls:
        rows = features[:, : partition.visible.shape[1]].sum(-1)
        weight = torch.rand_like(rows) + 0.5
        by_row = rows.new_zeros(len(rows), partition.length).scatter(1, partition.visible, weight)
        once = _by_token(rows.sum(), images, partition)
        weighted = _by_token((rows * weight).sum(), images, partition)
        assert once.any(), 'features do not depend on the images'
        limit = 1e-5 * float(once.abs().max())
        assert_close(weighted, once * by_row[..., None], rtol=1e-3, atol=limit)


def check_light_stage_knows_positions(case: Any) -> None:
    """Cross-attention is told where its keys are, unless features say so themselves."""
    model = attach(token_wise(case, case.build), throw_ratio=case.ratio)
    aggregator, calls = partial_of(model).aggregators[0], []
    handle = aggregator.register_forward_pre_hook(lambda module, args: calls.append(args))
    with torch.no_grad():
        case.loss(model)
        handle.remove()
        features, partition, queries = calls[0]
        if added_positions(model, queries) is None:
            return
        moved = replace(partition, visible=partition.visible.flip(1))
        assert not torch.equal(
            aggregator(features, partition, queries), aggregator(features, moved, queries)
        )


def _by_token(value: Tensor, images: list[Tensor], partition: TokenPartition) -> Tensor:
    """(B, L, -1) gradient of ``value`` with respect to every token's patch of the images."""
    gradients = torch.autograd.grad(value, images, retain_graph=True)
    gradient = torch.cat(gradients)
    gradient = gradient[gradient.flatten(1).any(dim=1)]
    height, width = partition.grid
    parts = gradient.unflatten(2, (height, -1)).unflatten(4, (width, -1))
    return parts.permute(0, 2, 4, 1, 3, 5).flatten(1, 2).flatten(2)

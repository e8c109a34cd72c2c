# SPDX-License-Identifier: Apache-2.0
"""The contract: the same bodies for every framework (items of the design's test matrix)."""

import copy
import pickle

import pytest
import torch
from contract_case import Case, seeded, total
from torch.testing import assert_close

import prmim_adapters as prmim
from prmim_adapters.accounting import count_macs
from prmim_adapters.adapters import partial_of
from prmim_adapters.openmmlab.compat import make_compilable
from prmim_adapters.testing import recorded_partitions


def attached(case: Case, **options):
    options.setdefault('throw_ratio', case.ratio)
    return seeded(lambda: prmim.attach(case.model(), **options), seed=2)


def gradients(model) -> dict[str, torch.Tensor | None]:
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


# 1. ratio 0 is the framework
@pytest.mark.parametrize('aggregator', ['cross_attention', None])
def test_ratio_zero_equals_the_framework(case, aggregator):
    framework, ours = case.model(), attached(case, throw_ratio=0, aggregator=aggregator)
    expected, actual = case.loss(framework), case.loss(ours)
    assert_close(actual, expected, rtol=1e-6, atol=0)
    expected.backward()
    actual.backward()
    scale = max(g.abs().max() for g in gradients(framework).values() if g is not None)
    for name, gradient in gradients(framework).items():
        assert_close(gradients(ours)[name], gradient, rtol=1e-5, atol=1e-6 * float(scale), msg=name)


# 2. the partition
def test_partition_covers_the_grid(case):
    model = attached(case)
    with recorded_partitions(model) as seen:
        case.loss(model)
    partial = partial_of(model)
    length = partial.grid[0] * partial.grid[1]
    assert seen
    for mask, partition in seen:
        everything = torch.cat((partition.present, partition.thrown), dim=1).sort(dim=1).values
        assert torch.equal(everything, torch.arange(length).expand_as(everything))
        assert mask.gather(1, partition.masked).all()
        assert not mask.gather(1, partition.visible).any()
    if case.invalid_ratio is not None:
        assert seen[0][1].thrown.shape[1] == round(case.ratio * length)


# 3. the heavy network
def test_heavy_network_receives_the_present_tokens(case):
    model, seen = attached(case), []
    handle = case.heavy(model).register_forward_pre_hook(
        lambda module, args: seen.append(case.tokens_seen(args))
    )
    case.loss(model)
    handle.remove()
    assert seen[0] == case.expected_tokens


# 4. supervision
@pytest.mark.parametrize('aggregator', ['cross_attention', None])
def test_loss_depends_on_the_supervised_targets_only(case, aggregator):
    model = attached(case, aggregator=aggregator)
    with recorded_partitions(model) as seen:
        saliency = seeded(lambda: case.saliency(model, case.batch()))
    depends = saliency > 0
    for row, (mask, partition) in zip(depends.split([len(m) for m, _ in seen]), seen, strict=True):
        expected = mask.clone()
        if aggregator is None:
            expected.scatter_(1, partition.thrown, False)
        assert torch.equal(row, expected)


# 5. checkpoints and detach
def test_state_dict_and_detach(case):
    framework, ours = case.model(), attached(case)
    theirs, mine = framework.state_dict(), ours.state_dict()
    added = set(mine) - set(theirs)
    assert set(theirs) <= set(mine)
    assert added and all('.partial.' in name for name in added)
    missing, unexpected = ours.load_state_dict(theirs, strict=False)
    assert set(missing) == added and not unexpected
    missing, unexpected = framework.load_state_dict(mine, strict=False)
    assert not missing and set(unexpected) == added
    prmim.detach(ours)
    assert set(ours.state_dict()) == set(theirs)
    assert [type(m) for m in ours.modules()] == [type(m) for m in framework.modules()]
    assert torch.equal(case.loss(ours), case.loss(framework))


# 6. gradients
@pytest.mark.parametrize(
    'aggregator', ['cross_attention', 'nearest', 'convolution', 'distance', None]
)
def test_every_parameter_is_used(case, aggregator):
    unused_upstream = case.model()
    case.loss(unused_upstream).backward()
    model = attached(case, aggregator=aggregator)
    case.loss(model).backward()
    unused = {name for name, g in gradients(model).items() if g is None}
    assert unused <= {name for name, g in gradients(unused_upstream).items() if g is None}
    heavy = [p.grad for p in case.heavy(model).parameters() if p.requires_grad]
    assert all(g is not None and g.abs().sum() > 0 for g in heavy)
    if aggregator not in (None, 'distance'):
        learned = [p.grad for p in partial_of(model).parameters()]
        assert learned and any(g.abs().sum() > 0 for g in learned)


# 7. determinism
@pytest.mark.parametrize('sampler', ['farthest', 'random', 'grid'])
def test_deterministic_under_a_seed(case, sampler):
    model = attached(case, sampler=sampler)
    with recorded_partitions(model) as seen:
        first, second, other = case.loss(model), case.loss(model), case.loss(model, seed=9)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    half = len(seen) // 3
    for (_, a), (_, b) in zip(seen[:half], seen[half : 2 * half], strict=True):
        assert torch.equal(a.thrown, b.thrown)


# 8. cost
def test_macs_fall_as_the_closed_form_predicts(case):
    framework = count_macs(case.model(), case.batch()).total
    plain = count_macs(attached(case, aggregator=None, sampler='random'), case.batch())
    # plain reconstruction also skips the prediction of thrown tokens
    ours = count_macs(attached(case, aggregator='distance'), case.batch())
    aggregation = sum(
        macs for name, macs in ours.by_module.items() if name.endswith('.partial.aggregators')
    )
    saved = framework - (ours.total - aggregation)
    assert saved == pytest.approx(case.saving, rel=0.01)
    assert plain.total <= ours.total


# 9. what people do with models
def test_bf16_autocast(case):
    model = attached(case)
    exact = case.loss(model)
    with torch.autocast('cpu', torch.bfloat16):
        loss = case.loss(model)
    loss.backward()
    assert_close(loss.float(), exact, rtol=0.05, atol=0.05)
    assert all(g is None or g.isfinite().all() for g in gradients(model).values())


def test_deepcopy_and_pickle(case):
    model = attached(case)
    expected = case.loss(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(case.loss(twin), expected)
        changed = next(partial_of(twin).parameters())
        with torch.no_grad():
            changed.add_(1.0)
        assert torch.equal(case.loss(model), expected)


@pytest.mark.slow
def test_compile_without_graph_breaks(case):
    model = attached(case)
    make_compilable(model)
    expected = case.loss(model)  # eager: the number of masked tokens becomes known
    torch._dynamo.reset()
    compiled = torch.compile(case.losses, backend='aot_eager', fullgraph=case.compiles_whole)
    actual = seeded(lambda: total(compiled(model, case.batch())), seed=1)
    assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    actual.backward()
    assert all(g.isfinite().all() for g in gradients(model).values() if g is not None)


def test_activation_checkpointing(case):
    if not case.checkpointing:
        pytest.skip('the framework has no activation checkpointing')
    plain, saving = attached(case), attached(case)
    for path, value in case.checkpointing:
        holder, _, name = path.rpartition('.')
        setattr(saving.get_submodule(holder), name, value)
    expected, actual = case.loss(plain), case.loss(saving)
    assert_close(actual, expected, rtol=1e-6, atol=0)
    expected.backward()
    actual.backward()
    for name, gradient in gradients(plain).items():
        assert_close(gradients(saving)[name], gradient, rtol=1e-4, atol=1e-6)


# 10. bad input
def test_invalid_ratio_is_refused(case):
    for ratio, error in ((-0.1, ValueError), (float('nan'), ValueError), ('half', TypeError)):
        with pytest.raises(error, match='throw_ratio'):
            prmim.attach(case.model(), throw_ratio=ratio)
    if case.invalid_ratio is not None:
        with pytest.raises(ValueError, match=r'throw.*mask'):
            case.loss(prmim.attach(case.model(), throw_ratio=case.invalid_ratio))


def test_attaching_twice_is_refused(case):
    model = attached(case)
    with pytest.raises(ValueError, match='attached already'):
        prmim.attach(model)

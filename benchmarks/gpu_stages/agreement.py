# SPDX-License-Identifier: Apache-2.0
"""Every mmpretrain adapter on the device against the CPU, and whole steps in one graph."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from prmim_adapters.accounting.bench import config_batch
from prmim_adapters.accounting.loss_path import Batch, LossPath
from prmim_adapters.accounting.variants import FRAMEWORK, OURS, build_variant
from prmim_adapters.adapters import partial_of
from prmim_adapters.core.cuda_graph import CapturedPass
from prmim_adapters.openmmlab.compat import make_compilable

from .context import ROOT, Context
from .randomness import SameRandomness
from .waiting import HostWaits, cuda_waits

FP32 = {'loss': 1e-5, 'gradient': 1e-3}
BF16 = {'loss': 2e-2, 'gradient': 1.5e-1}
"""Largest relative errors: of the loss, and of all gradients as one vector."""

MORE_THAN_FRAMEWORK = 1.5
"""Errors in bf16 beyond these may be so many times the framework's own."""


def compare(context: Context, configs: tuple[str, ...]) -> dict[str, Any]:
    """Loss and gradients of small models, fp32 and bf16, and where a step waits for the device.

    Raises:
        AssertionError: one disagrees, or fails; the message names it. The others are compared.
    """
    return _each(context, configs, lambda name: _compare(context, name))


def compile_steps(
    context: Context, configs: tuple[str, ...], inductor: tuple[str, ...]
) -> dict[str, Any]:
    """Steps of small models under torch.compile: one graph, no second compilation, equal losses.

    Args:
        context: of the run.
        configs: traced, forward and backward; in a dry run the first of them only.
        inductor: those that are compiled to kernels too.
    """
    chosen = configs[:1] if context.dry else configs

    def run(name: str) -> dict[str, Any]:
        backends = ['eager'] if context.dry else ['aot_eager']
        backends += ['inductor'] * (name in inductor and not context.dry)
        return {backend: _compile(context, name, backend) for backend in backends}

    return _each(context, chosen, run)


def capture_steps(context: Context, configs: tuple[str, ...]) -> dict[str, Any]:
    """Loss and gradients of a replayed CUDA graph against those of the ordinary step, in fp32.

    A dry run, which has no graph, compares the ordinary step with itself.
    """
    return _each(context, configs, lambda name: _capture(context, name))


def _each(context: Context, names: tuple[str, ...], run: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    failures = []
    for name in names:
        try:
            found[name] = run(name)
        except Exception as error:
            message = str(error).strip().splitlines() or ['']
            failures.append(f'{name}: {type(error).__name__}: {message[0]}')
            found[name] = {'error': traceback.format_exc()[-4000:].replace(f'{ROOT}/', '')}
        context.keep(found)
    assert not failures, '; '.join(failures)
    return found


def _compare(context: Context, name: str) -> dict[str, Any]:
    errors, waits = _errors_of(context, name, OURS)
    result = {**errors, 'waits': waits}
    assert _within(errors['fp32'], FP32), f'fp32: {errors["fp32"]}'
    if not _within(errors['bf16'], BF16):  # a small network with batch norm may be as rough itself
        result['framework'], _ = _errors_of(context, name, FRAMEWORK)
        rough = {key: MORE_THAN_FRAMEWORK * v for key, v in result['framework']['bf16'].items()}
        assert _within(errors['bf16'], rough), f'bf16: {errors["bf16"]}, allowed {rough}'
    return result


def _within(errors: dict[str, float], limits: dict[str, float]) -> bool:
    return all(errors[key] <= limits[key] for key in limits)


def _errors_of(context: Context, name: str, variant: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Errors of the device in fp32 and bf16 against the CPU, and where a step waits."""
    config = context.tiny(name)
    torch.manual_seed(0)
    model = build_variant(config, variant)
    as_it_is = copy.deepcopy(model)
    _exact_targets(model)
    batch = config_batch(config, 2 if context.dry else 8, model)
    there, moved = copy.deepcopy(model).to(context.device), _moved(batch, context.device)
    in_bf16 = copy.deepcopy(there)
    here = _loss_and_gradient(model, batch, None)
    errors = {
        'fp32': _errors(here, _loss_and_gradient(there, moved, None)),
        'bf16': _errors(here, _loss_and_gradient(in_bf16, moved, torch.bfloat16)),
    }
    return errors, waits_of(as_it_is.to(context.device), moved)


TOKENIZERS = ('DALLEEncoder', 'VQKD')
"""Target generators whose choice of a token may differ by the last bit, and so the loss."""


def _exact_targets(model: nn.Module) -> None:
    """Targets without autocast; those of a tokenizer are the CPU's on every device."""
    generator = getattr(model, 'target_generator', None)
    if generator is not None:
        wrap = _Tokens if type(generator).__name__ in TOKENIZERS else _WithoutAutocast
        model.target_generator = wrap(generator)


class _WithoutAutocast(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.inner(x)


class _Tokens(nn.Module):
    """What a tokenizer on the CPU makes of the first batch; one for all copies of a model."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self._inner = (inner,)  # no submodule: it stays on the CPU
        self._tokens: Tensor | None = None

    def __deepcopy__(self, _: Any) -> _Tokens:
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self._tokens is None:
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
                self._tokens = self._inner[0](x.cpu())
        return self._tokens.to(x.device)


def waits_of(model: nn.Module, batch: Batch) -> dict[str, int]:
    """Place to how often a step waits there for the device. Not of the first step, which learns."""
    _loss_and_gradient(model, batch, None, read=False)
    device = _views(batch)[0].device.type
    with HostWaits(device) as waits, cuda_waits(device == 'cuda') as seen:
        _loss_and_gradient(model, batch, None, read=False)
    return dict(waits.places) | seen


def _loss_and_gradient(
    model: nn.Module, batch: Batch, dtype: torch.dtype | None, read: bool = True
) -> tuple[Tensor, Tensor] | None:
    """Loss and all gradients as one vector, float64 on the CPU.

    Without ``read`` nothing is returned, and random numbers are drawn where they are used: those of
    the CPU would have to be waited for.
    """
    views = _views(batch)
    device = views[0].device
    model.train()
    model.zero_grad(set_to_none=True)
    with ExitStack() as stack:
        # mmpretrain's CLIP head moves masks to the machine's GPU, also where the model is not
        stack.enter_context(patch('mmengine.device.utils.DEVICE', device.type))
        stack.enter_context(_exact())
        if read:
            stack.enter_context(SameRandomness())
        if dtype:
            stack.enter_context(torch.autocast(device.type, dtype))
        loss = LossPath(model, batch)(*views)
        loss.backward()
    if not read:
        return None
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients, 'no gradient'
    joined = torch.cat([g.detach().double().cpu().flatten() for g in gradients])
    return loss.detach().double().cpu(), joined


@contextmanager
def _exact() -> Iterator[None]:
    """No tf32, which has three decimal digits."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _errors(expected: Any, actual: Any) -> dict[str, float]:
    loss, gradient = (
        float((a - e).norm() / e.norm()) for e, a in zip(expected, actual, strict=True)
    )
    return {'loss': loss, 'gradient': gradient}


def _compile(context: Context, name: str, backend: str) -> dict[str, Any]:
    config = context.tiny(name)
    torch.manual_seed(0)
    model = build_variant(config, OURS).to(context.device).train()
    batch = config_batch(config, 2 if context.dry else 8, model)
    make_compilable(model)
    path, views = LossPath(model, batch), _views(batch)
    torch._dynamo.reset()
    compiled = torch.compile(path, backend=backend, fullgraph=True)
    losses = []
    with torch._inductor.config.patch(fallback_random=True):
        for function in (path, compiled):
            torch.manual_seed(1)
            partial_of(model).randomness.seed(1)
            loss = function(*views)
            loss.backward()
            losses.append(loss.detach())
        with torch._dynamo.config.patch(error_on_recompile=True):
            compiled(*views).backward()
    error = float((losses[1] - losses[0]).abs() / losses[0].abs())
    assert error < (1e-3 if backend == 'inductor' else 1e-5), f'{backend}: loss differs by {error}'
    return {'graphs': 1, 'loss_error': error}


REPLAYED = 1e-5
"""Relative errors of a replayed pass: kernels that add in another order each time."""


def _capture(context: Context, name: str) -> dict[str, float]:
    config = context.tiny(name)
    torch.manual_seed(0)
    model = build_variant(config, OURS).to(context.device).train()
    batch = config_batch(config, 2 if context.dry else 8, model)
    path, views = LossPath(model, batch), _views(batch)

    def ordinary(views: Any) -> Tensor:
        loss = path(*views)
        loss.backward()
        return loss.detach()

    captured = None if context.dry else CapturedPass(model)
    found = []
    for run in (ordinary, *[partial(captured, run=ordinary) if captured else ordinary] * 3):
        torch.manual_seed(1)
        partial_of(model).randomness.seed(1)
        model.zero_grad(set_to_none=True)
        loss = run(views).double().cpu()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append((loss, torch.cat([g.detach().double().cpu().flatten() for g in gradients])))
    errors = _errors(found[0], found[-1])
    assert max(errors.values()) <= REPLAYED, f'{errors}'
    return errors


def _views(batch: Batch) -> tuple[Tensor, ...]:
    inputs = batch['inputs']
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)


def _moved(batch: Batch, device: str) -> Batch:
    views = [view.to(device) for view in _views(batch)]
    samples = batch['data_samples']
    return {
        'inputs': views[0] if isinstance(batch['inputs'], Tensor) else views,
        'data_samples': samples and [sample.to(device) for sample in samples],
    }

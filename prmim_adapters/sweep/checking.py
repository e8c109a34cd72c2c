# SPDX-License-Identifier: Apache-2.0
"""Tries everything that a spec names before the first point begins, and writes nothing that stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmpretrain.registry import HOOKS
from torch import nn

from ..adapters import attach, detach, partial_of
from ..core.seeding import seeded
from ..errors import described
from ..openmmlab.knn import try_features
from ..openmmlab.models import build_model, is_prmim, load_config, scope_of
from ..openmmlab.prmim import OPTIONS
from ..openmmlab.throw_ratio import ratio_hook
from ..openmmlab.types import is_a
from .checking_evaluation import check_metric
from .configs import checkpoint_hook, read_config, write_base, write_point, write_transfer
from .spec import FRAMEWORK_ARM, Point, Spec, SpecError

# A schedule's average is off by less than this share of a step in so many.
_STEPS, _TOLERANCE = 1000, 2e-3


def check_configs(spec: Spec) -> None:
    """Write and read the configs of all frameworks, arms and transfers, in a folder thrown away.

    Raises:
        SpecError: one cannot be read, or lacks the checkpoint that the transfers start from.
    """
    whole = next(name for name, entry in spec.frameworks.items() if entry.peer_of is None)
    first = Point(whole, FRAMEWORK_ARM, 0.0, spec.seeds[0])
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, framework in spec.frameworks.items():
            base = folder / name / 'base.py'
            with _mistakes_named(f'frameworks.{name}: {framework.config!r}', spec):
                write_base(base, framework, spec)
                config = load_config(base)
            if is_prmim(config):
                raise SpecError(
                    f'frameworks.{name}: {framework.config!r} is of type PRMIM; name the config of '
                    'the framework itself, to which the arms attach'
                )
            if spec.transfers:
                _check_checkpoint(name, config)
        for arm in spec.arms:
            with _mistakes_named(f'arms.{arm}: {spec.arms[arm]!r}', spec):
                point = Point(first.framework, arm, spec.ratios_of(arm)[0], first.seed)
                write_point(folder / 'point.py', folder / first.framework / 'base.py', point, spec)
                read_config(folder / 'point.py')
        for name, transfer in spec.transfers.items():
            with _mistakes_named(f'transfers.{name}: {transfer.config!r}', spec):
                write_transfer(folder / 'transfer.py', transfer, folder / 'a.pth', first, spec)
                config = load_config(folder / 'transfer.py')
            with scope_of(config):
                check_metric(name, transfer.metric, config)


def check_arms(spec: Spec, images: Sequence[dict[str, Any]] = ()) -> None:
    """Build every framework, and attach every arm to it at every ratio.

    Args:
        spec: the sweep.
        images: batches for the evaluation (:func:`.checking_evaluation.check_evaluation`), which
            every framework is tried on.

    Raises:
        SpecError: one does not go: an unknown name or option, a ratio that the masks refuse, or no
            network to evaluate under that name.
    """
    for arm in spec.arms:
        for option in spec.attach_options(arm).keys() - set(OPTIONS):
            raise SpecError(f'arms.{arm}: unknown option {option!r}; allowed: {", ".join(OPTIONS)}')
    for name, framework in spec.frameworks.items():
        with TemporaryDirectory() as scratch, _mistakes_named(f'frameworks.{name}', spec):
            base = Path(scratch) / 'base.py'
            write_base(base, framework, spec)
            model = build_model(load_config(base))
            with seeded(0):
                try_features(model, images, framework.backbone)
        if framework.peer_of is not None:
            continue
        for arm, ratio in [(a, r) for a in spec.arms for r in spec.ratios_of(a)]:
            try:
                attach(model, throw_ratio=ratio, **spec.attach_options(arm))
                _check_schedule(model, ratio, spec.arms[arm].get('hooks', []))
                height, width = partial_of(model).grid
                detach(model)
                if round(ratio * height * width) == 0:
                    raise ValueError(
                        f'throws none of the {height * width} tokens: that is the framework itself'
                    )
            except Exception as error:
                raise SpecError(
                    f'arms.{arm} at ratio {ratio:g} with frameworks.{name}: {described(error)}'
                ) from error


def _check_schedule(model: nn.Module, ratio: float, hooks: list[dict[str, Any]]) -> None:
    """A point is named by the ratio that its hooks keep on average.

    Raises:
        ValueError: they keep another.
    """
    hook = ratio_hook(HOOKS.build(hook) for hook in hooks)
    average = ratio if hook is None else hook.schedule_of(model).average(_STEPS)
    if abs(average - ratio) > _TOLERANCE:
        raise ValueError(
            f'ThrowRatioHook throws {average:.3f} on average over the run, and the axis `ratios` '
            f'says {ratio:g}; without `end` it is what makes the average right'
        )


@contextmanager
def _mistakes_named(what: str, spec: Spec) -> Iterator[None]:
    """Turn whatever reading a config raises into a SpecError that begins with ``what``."""
    try:
        yield
    except SpecError:
        raise
    except Exception as error:
        raise SpecError(
            f'{what} with its options gives no config: {described(error)}. Configs '
            f'are paths relative to {spec.folder.resolve()}, or package::name of an installed '
            'package, as mmpretrain::mae/NAME.py'
        ) from error


def _check_checkpoint(name: str, config: Config) -> None:
    """Transfers start from the checkpoint of the last epoch.

    Raises:
        SpecError: none is saved.
    """
    hook = checkpoint_hook(config)
    others = config.get('custom_hooks') or []
    with scope_of(config):
        savers = [entry for entry in others if is_a(entry, HOOKS, CheckpointHook)]
    if not any(entry and _saves_last(entry, config) for entry in [hook, *savers]):
        raise SpecError(
            f'frameworks.{name}: transfers start from the checkpoint of the last epoch, and '
            f'default_hooks.checkpoint = {hook!r} saves none; add to `options`: '
            'default_hooks: {checkpoint: {_delete_: true, type: CheckpointHook, interval: 1, '
            'max_keep_ckpts: 1}}'
        )


def _saves_last(hook: dict[str, Any], config: Config) -> bool:
    if hook.get('save_last', True):
        return True
    loop, interval = config.get('train_cfg') or {}, hook.get('interval', -1)
    length = loop.get('max_epochs') or loop.get('max_iters') or 0
    return interval > 0 and (length - hook.get('save_begin', 0)) % interval == 0

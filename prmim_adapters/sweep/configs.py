# SPDX-License-Identifier: Apache-2.0
"""The configs that a sweep generates: one base per framework, and one per point.

Each holds only its differences to the file that it inherits, so a point's folder shows at a glance
what sets the point apart, and ``mim train mmpretrain <point>/config.py`` repeats it by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from mmpretrain.registry import HOOKS, LOOPS

from ..openmmlab.end_with_launcher import EndWithLauncherHook
from ..openmmlab.finite_loss import FiniteLossHook
from ..openmmlab.types import is_a, resolved
from .inheritance import merge
from .literals import assignments, literal
from .spec import FRAMEWORK_ARM, Framework, Point, Spec, SpecError, Transfer

_TRANSFER_IMPORTS = ['prmim_adapters.openmmlab']
_SWEEP_IMPORTS = ['equal_cost', 'evaluation', 'pairing']
_BASE_IMPORTS = [*_TRANSFER_IMPORTS, *(f'prmim_adapters.sweep.{n}' for n in _SWEEP_IMPORTS)]

_WATCHING = (FiniteLossHook, EndWithLauncherHook)

#: Loops of mmengine, and those that train for equal cost in their place.
_LOOPS = {EpochBasedTrainLoop: 'EqualCostEpochLoop', IterBasedTrainLoop: 'EqualCostIterLoop'}


def write_base(path: Path, framework: Framework, spec: Spec) -> None:
    """Write the config that all points of a framework share: its own, plus the spec's options."""
    source = _source(path, framework.config, spec.folder)
    write(path, source, {})
    own = read_config(path)
    options = merge(spec.options, framework.options)
    whole = merge(own, options)
    shared = dict(
        custom_imports=_with_imports(whole, _BASE_IMPORTS),
        custom_hooks=[
            dict(type='mmpretrain.PairedDrawsHook'),
            *_watched(whole),
            _evaluation_hook(framework, spec),
        ],
        **_seeds_by_rank(whole),
        **_resumable(whole),
    )
    _write_over(path, source, own, merge(options, shared))


def write_point(path: Path, base: Path, point: Point, spec: Spec) -> None:
    """Write the config of one training run."""
    differences: dict[str, Any] = dict(randomness=dict(seed=point.seed))
    if spec.budget(point.framework, point.arm) == 'cost':
        differences['train_cfg'] = _equal_cost_loop(base, point, spec)
    hooks = [] if point.arm == FRAMEWORK_ARM else spec.arms[point.arm].get('hooks', [])
    if hooks:
        differences['custom_hooks'] = [*read_config(base)['custom_hooks'], *hooks]
    text = render(str(base.resolve()), differences)
    if point.arm != FRAMEWORK_ARM:
        attached = dict(spec.attach_options(point.arm), throw_ratio=point.ratio)
        arguments = assignments(attached, f'arms.{point.arm}', '=')
        options = ''.join(f'    {argument},\n' for argument in arguments)
        text += (
            'model = dict(\n'
            '    _delete_=True,\n'
            "    type='mmpretrain.PRMIM',\n"
            '    framework={{_base_.model}},\n'
            f'{options}'
            ')\n'
        )
    _put(path, text)


def _equal_cost_loop(base: Path, point: Point, spec: Spec) -> dict[str, Any]:
    """``train_cfg`` of a point that trains for the cost of its framework, or of the peer's.

    Raises:
        SpecError: the framework's config has a loop of its own.
    """
    loop = dict(read_config(base)['train_cfg'])
    by_epoch = loop.pop('by_epoch', True)
    kind = resolved(loop, LOOPS) if 'type' in loop else list(_LOOPS)[not by_epoch]
    if kind not in _LOOPS:
        raise SpecError(
            f'frameworks.{point.framework}: budget: cost is for epoch- and iteration-based '
            f'training, and its train_cfg has type={loop["type"]!r}'
        )
    other = spec.frameworks[point.framework].peer_of or point.framework
    framework = read_config(base.parents[1] / other / 'base.py')['model']
    return {**loop, '_delete_': True, 'type': f'mmpretrain.{_LOOPS[kind]}', 'framework': framework}


def write_transfer(
    path: Path, transfer: Transfer, checkpoint: Path, point: Point, spec: Spec
) -> None:
    """Write the config of a fine-tuning or linear run that starts from ``checkpoint``."""
    source = _source(path, transfer.config, spec.folder)
    write(path, source, {})
    own = read_config(path)
    init = dict(
        _delete_=True,  # another init_cfg, a list of them too, is replaced, not merged
        type='Pretrained',
        checkpoint=str(checkpoint.resolve()),
        prefix='backbone.',
    )
    whole = merge(own, transfer.options)
    start = dict(
        # The import lets torch >= 2.6 load a checkpoint of mmengine.
        custom_imports=_with_imports(whole, _TRANSFER_IMPORTS),
        model=dict(backbone=dict(init_cfg=init)),
        custom_hooks=_watched(whole),
        randomness=dict(_seeds_by_rank(whole).get('randomness', {}), seed=point.seed),
        **_resumable(whole),
    )
    _write_over(path, source, own, merge(transfer.options, start))


def resolve(config: str, folder: Path) -> str:
    """Absolute path of a config given relative to the spec; ``package::name`` stays as it is."""
    return config if '::' in config else str((folder / config).resolve())


def _source(path: Path, config: str, folder: Path) -> str:
    """What the file at ``path`` can inherit: the config, or its text if it is in pure Python.

    A config of the one style cannot inherit one of the other.
    """
    source = resolve(config, folder)
    if '::' in source or not Config._is_lazy_import(source):
        return source
    text = path.with_name(f'{path.stem}_source.py').resolve()
    _put(text, '')
    Config.fromfile(source, import_custom_modules=False).dump(text)
    return str(text)


def write(path: Path, source: str, differences: dict[str, Any]) -> None:
    """Write a config that inherits ``source``."""
    _put(path, render(source, differences))


def render(source: str, differences: dict[str, Any]) -> str:
    """Text of a config with ``_base_ = source`` and these top-level keys.

    Raises:
        NoLiteralError: a key is no identifier, or a value is not plain.
    """
    lines = [f'_base_ = {literal(source, "_base_")}', *assignments(differences, 'options')]
    return '\n'.join(lines) + '\n'


def read_config(path: Path) -> dict[str, Any]:
    """A config as plain data, whose repr is Python."""
    return _plain(Config.fromfile(path, import_custom_modules=False).to_dict())


def _plain(value: Any) -> Any:
    """Classes and functions by their qualified names, which the registries take as well."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    return f'{value.__module__}.{value.__qualname__}' if callable(value) else value


def _write_over(path: Path, source: str, own: dict[str, Any], differences: dict[str, Any]) -> None:
    """Write a config that inherits ``source``, whose content is ``own``."""
    differences = merge(_without_scope(own), differences)
    write(path, source, _without_idle_deletes(differences, own))


def _without_idle_deletes(differences: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """``differences`` with ``_delete_`` only where it replaces something in ``own``.

    Elsewhere mmengine leaves it in the config, as an argument of whatever is built from it.
    """
    result = {}
    for key, value in differences.items():
        if isinstance(value, dict):
            replaces = key in own and value.get('_delete_')
            old = {} if replaces or not isinstance(own.get(key), dict) else own[key]
            entries = {name: entry for name, entry in value.items() if name != '_delete_'}
            value = _without_idle_deletes(entries, old)
            if replaces:
                value['_delete_'] = True
        result[key] = value
    return result


def checkpoint_hook(config: Any) -> dict[str, Any] | None:
    """mmengine's default, unless the config sets it; None takes it away."""
    default = dict(checkpoint=dict(type='CheckpointHook', interval=1))
    return (default | (config.get('default_hooks') or {}))['checkpoint']


def _with_imports(config: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """``custom_imports`` of a config, and these."""
    own = _as_list((config.get('custom_imports') or {}).get('imports'))
    return dict(imports=list(dict.fromkeys([*own, *names])), allow_failed_imports=False)


def _without_scope(own: dict[str, Any]) -> dict[str, Any]:
    """Collate functions without the scope that a base from another package leaves in them.

    ``default_collate`` refuses that argument.
    """
    return {
        name: dict(collate_fn=dict(_delete_=True, type=loader['collate_fn']['type']))
        for name, loader in own.items()
        if name.endswith('_dataloader') and '_scope_' in ((loader or {}).get('collate_fn') or {})
    }


def _seeds_by_rank(config: dict[str, Any]) -> dict[str, Any]:
    """``randomness`` by which every process draws masks of its own, unless the config decides."""
    decided = 'diff_rank_seed' in (config.get('randomness') or {})
    return {} if decided else dict(randomness=dict(diff_rank_seed=True))


def _watched(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The hooks of a config, and those that end a run that is poisoned or orphaned."""
    own = list(config.get('custom_hooks') or [])
    missing = [k for k in _WATCHING if not any(is_a(hook, HOOKS, k) for hook in own)]
    return [*own, *(dict(type=f'mmpretrain.{kind.__name__}') for kind in missing)]


def _resumable(config: dict[str, Any]) -> dict[str, Any]:
    """``default_hooks`` by which a point that was killed goes on as if it had not been."""
    hook = checkpoint_hook(config)
    if hook is None or resolved(hook, HOOKS) is not CheckpointHook:  # none, or the user's own
        return {}
    kind = dict(type='mmpretrain.ResumableCheckpointHook', interval=hook.get('interval', -1))
    return dict(default_hooks=dict(checkpoint=kind))


def _evaluation_hook(framework: Framework, spec: Spec) -> dict[str, Any]:
    evaluation = spec.evaluation
    return dict(
        type='mmpretrain.FrozenFeatureHook',
        train_dataloader=evaluation.train,
        test_dataloader=evaluation.test,
        num_classes=evaluation.num_classes,
        k=evaluation.k,
        temperature=evaluation.temperature,
        linear_probe=evaluation.linear_probe,
        regularization=evaluation.regularization,
        backbone=framework.backbone,
    )


def _as_list(value: Any) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)

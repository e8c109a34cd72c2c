# SPDX-License-Identifier: Apache-2.0
"""The configs that a sweep generates: one base per framework, and one per point.

Each holds only its differences to the file that it inherits, so a point's folder shows at a glance
what sets the point apart, and ``mim train mmpretrain <point>/config.py`` repeats it by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config

from .spec import FRAMEWORK_ARM, Framework, Point, Spec, Transfer

_OWN_IMPORTS = ['prmim_adapters.openmmlab', 'prmim_adapters.sweep.evaluation']


def write_base(path: Path, framework: Framework, spec: Spec) -> None:
    """Write the config that all points of a framework share: its own, plus the spec's options."""
    source = resolve(framework.config, spec.folder)
    write(path, source, {})
    own = Config.fromfile(path, import_custom_modules=False)
    imports = own.get('custom_imports') or {}
    shared = dict(
        custom_imports=dict(
            imports=list(dict.fromkeys([*_as_list(imports.get('imports')), *_OWN_IMPORTS])),
            allow_failed_imports=False,
        ),
        custom_hooks=[*_plain(own.get('custom_hooks') or []), _evaluation_hook(framework, spec)],
    )
    differences = merge(merge(shared, spec.options), framework.options)
    differences = merge(_without_scope(own), differences)
    write(path, source, differences)


def write_point(path: Path, base: Path, point: Point, spec: Spec) -> None:
    """Write the config of one training run."""
    text = render(str(base.resolve()), dict(randomness=dict(seed=point.seed)))
    if point.arm != FRAMEWORK_ARM:
        options = ''.join(f'    {key}={value!r},\n' for key, value in spec.arms[point.arm].items())
        text += (
            'model = dict(\n'
            '    _delete_=True,\n'
            "    type='PRMIM',\n"
            '    framework={{_base_.model}},\n'
            f'{options}'
            f'    throw_ratio={point.ratio!r},\n'
            ')\n'
        )
    _put(path, text)


def write_transfer(
    path: Path, transfer: Transfer, checkpoint: Path, point: Point, spec: Spec
) -> None:
    """Write the config of a fine-tuning or linear run that starts from ``checkpoint``."""
    init = dict(type='Pretrained', checkpoint=str(checkpoint.resolve()), prefix='backbone.')
    start = dict(model=dict(backbone=dict(init_cfg=init)), randomness=dict(seed=point.seed))
    source = resolve(transfer.config, spec.folder)
    write(path, source, {})
    own = Config.fromfile(path, import_custom_modules=False)
    write(path, source, merge(merge(_without_scope(own), transfer.options), start))


def resolve(config: str, folder: Path) -> str:
    """Absolute path of a config given relative to the spec; ``package::name`` stays as it is."""
    return config if '::' in config else str((folder / config).resolve())


def write(path: Path, source: str, differences: dict[str, Any]) -> None:
    """Write a config that inherits ``source``."""
    _put(path, render(source, differences))


def render(source: str, differences: dict[str, Any]) -> str:
    """Text of a config with ``_base_ = source`` and these top-level keys."""
    lines = [f'{key} = {value!r}\n' for key, value in differences.items()]
    return f'_base_ = {source!r}\n' + ''.join(lines)


def merge(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """``second`` over ``first``, mapping by mapping, as mmengine merges a child config.

    A mapping with ``_delete_`` in ``second`` replaces the one in ``first``.
    """
    result = dict(first)
    for key, value in second.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and not value.get('_delete_'):
            value = merge(old, value)
        result[key] = value
    return result


def _without_scope(own: Config) -> dict[str, Any]:
    """Collate functions without the scope that a base from another package leaves in them.

    ``default_collate`` refuses that argument.
    """
    return {
        name: dict(collate_fn=dict(_delete_=True, type=loader['collate_fn']['type']))
        for name, loader in own.items()
        if name.endswith('_dataloader') and '_scope_' in ((loader or {}).get('collate_fn') or {})
    }


def _evaluation_hook(framework: Framework, spec: Spec) -> dict[str, Any]:
    evaluation = spec.evaluation
    return dict(
        type='FrozenFeatureHook',
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


def _plain(value: Any) -> Any:
    """Config objects as dicts and lists, whose repr is Python."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)

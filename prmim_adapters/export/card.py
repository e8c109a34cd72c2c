# SPDX-License-Identifier: Apache-2.0
"""The model card beside exported weights: what is known of their training, and what is not."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pprint import pformat
from typing import Any

from torch import nn

from .. import __version__, attach
from .settings import read_literal

NOT_RECORDED = 'not recorded'
_OPTIONS = ('throw_ratio', 'sampler', 'aggregator')
_LONGEST = 2**14


@dataclass(frozen=True)
class Card:
    """What a checkpoint and the log beside it say. Nothing of it is run, or taken for a type.

    Attributes:
        checkpoint: the file.
        meta: what mmengine wrote beside the weights.
        encoder: dotted name of what is exported.
        backbone: the encoder itself.
    """

    checkpoint: str | Path
    meta: Mapping[Any, Any]
    encoder: str
    backbone: nn.Module

    def text(self, made: str, untrained: tuple[str, ...] = (), library: str = 'timm') -> str:
        """Markdown, with the header that the hub reads.

        Args:
            made: what the weights are now.
            untrained: prefixes of weights that pre-training does not have.
            library: for the header.
        """
        model, cost = self._literal('model'), self._cost()
        lines = [f'| {name} | {value} |' for name, value in self._rows(model, cost).items()]
        note = ''
        if untrained:
            names = ', '.join(f'`{name}*`' for name in untrained)
            note = f'Not trained, at initial values: {names}.\n\n'
        return (
            f'---\nlibrary_name: {library}\ntags: [masked-image-modeling, prmim-adapters]\n---\n\n'
            f'# {_plain(type(self.backbone).__name__)} as {made}\n\n'
            f'An encoder, pre-trained without labels. Written by prmim_adapters {__version__}, after '
            f'its features were compared with those of the original.\n\n{note}'
            f'| | |\n|---|---|\n{chr(10).join(lines)}\n\n'
            f'Accuracy: {NOT_RECORDED}. Licence of the weights: {NOT_RECORDED}; that of the data '
            'may bind them.\n\n## Model settings\n\n'
            f'{_block(model)}\n'
        )

    def _rows(self, model: Any, cost: dict[str, Any]) -> dict[str, str]:
        framework = model['framework'] if _is_attached(model) else model
        environment = _part(cost, 'environment')
        return {
            'framework': _cell(_part(framework, 'type')),
            'encoder': f'{_cell(self.encoder)} of {_cell(Path(self.checkpoint).name)}',
            'config': _cell(self.meta.get('experiment_name')),
            **{name.replace('_', ' '): _option(model, name) for name in _OPTIONS},
            'data': self._data(),
            'normalisation of images': self._normalisation(framework),
            'trained': self._length(),
            'seed': _cell(self.meta.get('seed')),
            'commit of prmim_adapters': _cell(_part(environment, 'commit')),
            'versions': _versions(self.meta, environment),
            'cost of a training step': _saved(cost),
        }

    def _data(self) -> str:
        loader = self._literal('train_dataloader')
        dataset = _part(loader, 'dataset')
        kind, root = _part(dataset, 'type'), _part(dataset, 'data_root')
        return NOT_RECORDED if kind is None else f'{_cell(kind)} in {_cell(root)}'

    def _normalisation(self, framework: Any) -> str:
        found = _part(framework, 'data_preprocessor') or self._literal('data_preprocessor')
        mean, std = _part(found, 'mean'), _part(found, 'std')
        return (
            NOT_RECORDED if mean is None else f'mean {_cell(mean)}, std {_cell(std)}, of 0 to 255'
        )

    def _length(self) -> str:
        epoch, iteration = self.meta.get('epoch'), self.meta.get('iter')
        size = _part(self._literal('train_dataloader'), 'batch_size')
        if iteration is None:
            return NOT_RECORDED
        return f'{_cell(epoch)} epochs, {_cell(iteration)} steps, {_cell(size)} images per process'

    def _literal(self, name: str) -> Any:
        text = self.meta.get('cfg')
        try:
            return read_literal(text, name) if isinstance(text, str) else None
        except ValueError:
            return None

    def _cost(self) -> dict[str, Any]:
        """The newest ``cost.json`` that a CostHook left beside the checkpoint."""
        found = sorted(Path(self.checkpoint).parent.glob('*/cost.json'))
        try:
            content = json.loads(found[-1].read_text()) if found else {}
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}


def _is_attached(model: Any) -> bool:
    """Whether settings of a model are those of ``PRMIM``."""
    return isinstance(_part(model, 'framework'), dict)


def _option(model: Any, name: str) -> str:
    """An option of ``attach``."""
    if not _is_attached(model):
        return NOT_RECORDED if model is None else 'none: the original method'
    if name in model:
        return _cell(model[name]) if model[name] is not None else '`None`'
    default = inspect.signature(attach).parameters[name].default
    return f'the default, {_cell(default)} in prmim_adapters {__version__}'


def _saved(cost: dict[str, Any]) -> str:
    """Forward GMACs per image, as CostHook counted them."""
    try:
        first, last = cost['costs'][0], cost['costs'][-1]
        before, after = first['forward'] / 1e9, last['forward'] / 1e9
    except (KeyError, IndexError, TypeError):
        return NOT_RECORDED
    saved = f', {after / before - 1:+.1%} against the framework' if before else ''
    return f'{after:.3f} GMACs forward per image{saved}'


def _versions(meta: Mapping[Any, Any], environment: Any) -> str:
    packages = _part(environment, 'packages')
    found = dict(packages) if isinstance(packages, dict) else {}
    if 'mmengine' not in found and meta.get('mmengine_version') is not None:
        # mmengine appends the commit of the working folder, whatever that is of.
        found['mmengine'] = re.sub(r'[0-9a-f]{40}$', '', str(meta['mmengine_version']))
    return ', '.join(f'{_plain(k)} {_plain(v)}' for k, v in found.items()) or NOT_RECORDED


def _part(settings: Any, name: str, default: Any = None) -> Any:
    return settings.get(name, default) if isinstance(settings, dict) else default


def _cell(value: Any) -> str:
    """A value in a table; a stranger's text stays text."""
    return NOT_RECORDED if value is None else f'`{_plain(value)}`'


def _plain(value: Any) -> str:
    return re.sub(r'[`|<>\n\r]+', ' ', str(value))[:300]


def _block(model: Any) -> str:
    if model is None:
        return f'{NOT_RECORDED[:1].upper()}{NOT_RECORDED[1:]}.'
    text = pformat(model, sort_dicts=False, width=96)[:_LONGEST].replace('~~~~', '~~~')
    return f'~~~~python\n{text}\n~~~~'

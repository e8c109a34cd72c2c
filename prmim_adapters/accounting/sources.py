# SPDX-License-Identifier: Apache-2.0
"""What a command counts or measures: a training config, or a function of the user's.

``module:function`` returns the framework's model and a batch for it, so that models of Hugging Face
or an original repository need no config.
"""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..adapters import attach, attachment_of, detach, is_attached
from ..core.seeding import seeded
from ..openmmlab.models import load_config
from .batch import make_batch
from .bench import Subject, config_batch, config_subjects
from .loss_path import Batch, Call, num_images
from .variants import FRAMEWORK, OURS, PLAIN, Variant, build_variants

_DEFAULT_RATIO = 0.5
_RETURNS = (
    'it must return (model, batch), or (model, batch, loss) where the model does not return its '
    'loss; batch: the arguments of the model, a tensor, a tuple or a dict; loss: a function of '
    'what the model returned'
)

_ELSE = '; for a model without a config: MODULE:FUNCTION, see --help'


@dataclass(frozen=True)
class ConfigSource:
    """A training config, by path or by name."""

    config: str
    takes_batch_size: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """For titles."""
        return Path(self.config).stem

    @property
    def optimizer(self) -> dict | None:
        """mmengine config of the optimizer."""
        optimizer = self._loaded().get('optim_wrapper', {}).get('optimizer')
        return optimizer and optimizer.to_dict()

    def images(self, batch_size: int) -> int:
        """Images of a batch where ``batch_size`` is asked for."""
        return batch_size

    def variants(self, ratios: Sequence[float] = ()) -> list[Variant]:
        """See :func:`.variants.build_variants`."""
        return build_variants(self._loaded(), ratios)

    def subjects(self, ratios: Sequence[float] = ()) -> list[Subject]:
        """The same models, to be built later."""
        return config_subjects(self.config, ratios)

    def batch(self, batch_size: int, model: nn.Module) -> Batch:
        """For the model, all of its images different."""
        return make_batch(self._loaded(), model, batch_size=batch_size)

    def large_batch(self, batch_size: int, model: nn.Module) -> Batch:
        """For the model; images may repeat."""
        return config_batch(self.config, batch_size, model)

    def _loaded(self) -> Config:
        try:
            return load_config(self.config)
        except FileNotFoundError as error:
            text = str(error)
            raise FileNotFoundError(text if text.endswith('?') else text + _ELSE) from None


@dataclass(frozen=True)
class FunctionSource:
    """A function ``module:function``, imported from the working folder or where Python finds it.

    It may have a parameter ``batch_size``; without one its batch is taken as it is.
    """

    function: str

    @property
    def name(self) -> str:
        """For titles."""
        return self.function

    @property
    def optimizer(self) -> dict | None:
        """AdamW, as measurements without a config take it."""
        return {'type': 'AdamW', 'lr': 1e-4}

    @property
    def takes_batch_size(self) -> bool:
        """Whether the function has that parameter."""
        return 'batch_size' in inspect.signature(self._found()).parameters

    def images(self, batch_size: int) -> int:
        """As of :class:`ConfigSource`."""
        return batch_size if self.takes_batch_size else num_images(self._made(batch_size)[1])

    def variants(self, ratios: Sequence[float] = ()) -> list[Variant]:
        """As of :class:`ConfigSource`; no plain partial where the loss lies outside of the model."""
        return [Variant(*pair, self.build(*pair)) for pair in self._pairs(ratios)]

    def subjects(self, ratios: Sequence[float] = ()) -> list[Subject]:
        """As of :class:`ConfigSource`."""
        return [
            Subject(Variant(*pair, nn.Identity()).label, partial(self.build, *pair))
            for pair in self._pairs(ratios)
        ]

    def build(self, name: str, ratio: float) -> nn.Module:
        """One of the variants, by its name: always the same weights."""
        model = self._made()[0]
        model = detach(model) if is_attached(model) else model
        if name == FRAMEWORK:
            return model
        plain: dict[str, Any] = {'sampler': 'random', 'aggregator': None}
        return attach(model, ratio, **(plain if name == PLAIN else {}))

    def batch(self, batch_size: int, model: nn.Module) -> Batch:
        """As of :class:`ConfigSource`."""
        batch, device = self._made(batch_size)[1], next(model.parameters()).device
        inputs = batch['inputs']
        moved = inputs.to(device) if isinstance(inputs, Tensor) else [x.to(device) for x in inputs]
        return {**batch, 'inputs': moved}

    large_batch = batch

    def _pairs(self, ratios: Sequence[float]) -> list[tuple[str, float]]:
        """Name and ratio of each variant."""
        ratios = ratios or [_DEFAULT_RATIO]
        owns_loss = attachment_of(self.build(OURS, ratios[0])).seams.owns_loss
        names = (PLAIN, OURS) if owns_loss else (OURS,)
        return [(FRAMEWORK, 0.0), *((name, ratio) for ratio in ratios for name in names)]

    def _found(self) -> Callable[..., Any]:
        name, _, attribute = self.function.partition(':')
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            module = import_module(name)
        except ModuleNotFoundError as error:
            if error.name and (name == error.name or name.startswith(f'{error.name}.')):
                file = f'; write {name[:-3]}:{attribute}' if name.endswith('.py') else ''
                raise ValueError(
                    f'{self.function}: there is no module {error.name!r} in {Path.cwd()} nor '
                    f'among the installed ones{file}'
                ) from None
            raise
        found = getattr(module, attribute, None)
        if not callable(found):
            close = difflib.get_close_matches(attribute, list(vars(module)), n=1)
            hint = f'; did you mean {close[0]!r}?' if close else ''
            raise ValueError(f'{self.function}: {name} has no function {attribute!r}{hint}')
        needed = [
            parameter.name
            for parameter in inspect.signature(found).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            and parameter.name != 'batch_size'
        ]
        if needed:
            raise TypeError(
                f'{self.function} needs {", ".join(needed)}: it may take batch_size; give '
                'everything else a default'
            )
        return found

    def _made(self, batch_size: int = 2) -> tuple[nn.Module, Batch]:
        options = {'batch_size': batch_size} if self.takes_batch_size else {}
        with seeded(0):
            made = self._found()(**options)
        if not isinstance(made, (tuple, list)) or len(made) not in (2, 3):
            raise TypeError(f'{self.function} returned {_kind(made)}: {_RETURNS}')
        model, batch, loss = (*made, None)[:3]
        if not isinstance(model, nn.Module):
            raise TypeError(f'{self.function} returned {_kind(model)} as the model: {_RETURNS}')
        if loss is not None and not callable(loss):
            raise TypeError(f'{self.function} returned {_kind(loss)} as the loss: {_RETURNS}')
        if isinstance(batch, Mapping) and {'inputs', 'data_samples'} == set(batch):
            return model, dict(batch)  # mmpretrain's
        return model, self._called(batch, loss)

    def _called(self, batch: Any, loss: Callable[[Any], Tensor] | None) -> Batch:
        given = {0: batch} if isinstance(batch, Tensor) else batch
        if isinstance(given, (tuple, list)):
            given = dict(enumerate(given))
        if not isinstance(given, Mapping) or not any(torch.is_tensor(v) for v in given.values()):
            raise TypeError(f'{self.function} returned {_kind(batch)} as the batch: {_RETURNS}')
        tensors = {key: value for key, value in given.items() if isinstance(value, Tensor)}
        others = {key: value for key, value in given.items() if key not in tensors}
        call = Call(tuple(tensors), others, loss)
        return {'inputs': list(tensors.values()), 'data_samples': None, 'call': call}


def source_of(text: str) -> ConfigSource | FunctionSource:
    """``module:function``, or a config's path or name."""
    if re.fullmatch(r'[A-Za-z_][\w.]*:[A-Za-z_]\w*', text):
        return FunctionSource(text)
    return ConfigSource(text)


def _kind(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f'a {type(value).__name__} of {len(value)}'
    return f'a {type(value).__name__}'

# SPDX-License-Identifier: Apache-2.0
"""What patched scripts call: options on the command line and in the environment."""

import argparse

import pytest
from torch import nn

import prmim_adapters.upstream as prmim
from prmim_adapters.adapters import ADAPTERS, Seams, partial_of
from prmim_adapters.core import sampling


class Model(nn.Module):
    """The smallest model that can be attached to."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)


class PRModel(Model):
    """Attached."""


def adapter(model):
    """4 x 4 tokens of 8 channels."""
    return Seams(host='', classes={Model: PRModel}, grid=(4, 4), width=8, num_masked=12)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    key = f'{Model.__module__}.{Model.__qualname__}'
    monkeypatch.setitem(ADAPTERS._entries, key, adapter)
    for variable, _, _ in prmim.patched.OPTIONS.values():
        monkeypatch.setenv(variable, 'to be removed')
        monkeypatch.delenv(variable)


def parsed(*arguments):
    """As in iBOT: the options come in through a parent parser."""
    parent = argparse.ArgumentParser(add_help=False)
    prmim.add_arguments(parent)
    parent.add_argument('--epochs', type=int, default=3)
    return argparse.ArgumentParser(parents=[parent]).parse_args(arguments)


def test_defaults():
    assert vars(parsed()) == {'epochs': 3}
    partial = partial_of(prmim.attach(Model()))
    assert partial.throw_ratio == 0.5
    assert partial.sampler is sampling.farthest
    assert len(partial.aggregators) == 1


def test_environment(monkeypatch):
    monkeypatch.setenv('PRMIM_THROW_RATIO', '0.25')
    monkeypatch.setenv('PRMIM_SAMPLER', 'random')
    monkeypatch.setenv('PRMIM_AGGREGATOR', 'none')
    parsed('--epochs', '1')
    partial = partial_of(prmim.attach(Model()))
    assert (partial.throw_ratio, partial.sampler) == (0.25, sampling.random)
    assert len(partial.aggregators) == 0


def test_command_line_wins_and_is_hidden_from_the_script(monkeypatch):
    monkeypatch.setenv('PRMIM_THROW_RATIO', '0.25')
    assert vars(parsed('--throw_ratio', '0', '--aggregator=nearest')) == {'epochs': 3}
    assert partial_of(prmim.attach(Model())).throw_ratio == 0
    parsed('--throw_ratio=0.3')
    assert type(partial_of(prmim.attach(Model())).aggregators[0]).__name__ == 'Nearest'


def test_errors(monkeypatch):
    for value, message in (('half', "throw_ratio='half'"), ('0.75', 'throws 12 of 16 tokens')):
        monkeypatch.setenv('PRMIM_THROW_RATIO', value)
        with pytest.raises(ValueError, match=message):
            prmim.attach(Model())


def test_import_needs_torch_only():
    """A patched repository imports this in an environment without mmpretrain and the like."""
    import subprocess
    import sys

    code = (
        'import sys, prmim_adapters.upstream\n'
        "print([m for m in ('mmengine', 'mmpretrain', 'timm', 'fvcore', 'click') "
        'if m in sys.modules])'
    )
    found = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == '[]'

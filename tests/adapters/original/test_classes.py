# SPDX-License-Identifier: Apache-2.0
"""Subclasses of classes that cannot be imported here."""

import pickle
import subprocess
import sys
import types

import pytest

import prmim_adapters as prmim
from prmim_adapters.adapters.original import mae as original_mae
from prmim_adapters.adapters.original.classes import UpstreamClasses
from prmim_adapters.adapters.original.simmim import CLASSES as SIMMIM


class Seam:
    """Overrides."""

    def name(self):
        return f'ours over {super().name()}'


@pytest.fixture
def repository(monkeypatch):
    """A module that only exists while a script of its repository runs, and an adapter's module."""
    upstream, adapter = types.ModuleType('their_models'), types.ModuleType('our_adapter')
    exec('class Theirs:\n    def name(self): return "theirs"', upstream.__dict__)
    exec('class Other: pass', upstream.__dict__)
    classes = UpstreamClasses('our_adapter', {'their_models.Theirs': Seam})
    adapter.__getattr__ = classes.find
    monkeypatch.setitem(sys.modules, 'their_models', upstream)
    monkeypatch.setitem(sys.modules, 'our_adapter', adapter)
    return upstream, classes


def test_the_mixin_goes_before_the_class_found(repository):
    upstream, classes = repository
    made = classes[upstream.Theirs]
    assert made is classes[upstream.Theirs]
    assert (made.__name__, made.__module__) == ('PRTheirs', 'our_adapter')
    assert made.__mro__[1:3] == (Seam, upstream.Theirs)
    assert made().name() == 'ours over theirs'
    assert upstream.Theirs in classes
    assert upstream.Other not in classes


def test_pickle_finds_it_again(repository):
    upstream, classes = repository
    instance = upstream.Theirs()
    instance.__class__ = classes[upstream.Theirs]
    stored = pickle.dumps(instance)
    assert type(pickle.loads(stored)) is classes[upstream.Theirs]
    del sys.modules['our_adapter'].PRTheirs  # a new process has not made it yet
    assert pickle.loads(stored).name() == 'ours over theirs'


def test_a_reloaded_repository_gets_a_new_subclass(repository):
    upstream, classes = repository
    old = classes[upstream.Theirs]
    exec('class Theirs:\n    def name(self): return "newer"', upstream.__dict__)
    assert classes[upstream.Theirs] is not old
    assert classes[upstream.Theirs]().name() == 'ours over newer'


def test_messages(repository, monkeypatch):
    _, classes = repository
    assert [f'{c.__module__}.{c.__qualname__}' for c in classes] == ['their_models.Theirs']
    assert len(SIMMIM) == 3
    with pytest.raises(AttributeError, match="'our_adapter' has no attribute 'PROther'"):
        classes.find('PROther')
    monkeypatch.delitem(sys.modules, 'their_models')
    with pytest.raises(AttributeError, match=r'their_models\.Theirs, which cannot be imported'):
        classes.find('PRTheirs')
    monkeypatch.delitem(vars(original_mae), 'PRMaskedAutoencoderViT', raising=False)
    with pytest.raises(AttributeError, match='models_mae'):
        _ = original_mae.PRMaskedAutoencoderViT


def test_adapters_of_repositories_need_neither_them_nor_mmpretrain():
    code = (
        'import sys, prmim_adapters as prmim\n'
        "for key in ('models_mae.MaskedAutoencoderViT', 'models.simmim.SimMIM', "
        "'models.fcmae.FCMAE', 'utils.MultiCropWrapper'): prmim.ADAPTERS.get(key)\n"
        "print([m for m in ('mmengine', 'mmpretrain', 'timm', 'fvcore') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == '[]', done.stderr
    assert 'models_mae.MaskedAutoencoderViT' in prmim.ADAPTERS

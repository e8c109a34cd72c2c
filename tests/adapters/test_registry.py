# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import pytest

import prmim_adapters as prmim
from prmim_adapters.adapters.registry import AdapterRegistry, Registry


def test_register_get_and_iterate():
    registry = Registry('thing')

    @registry.register_module()
    def first(): ...

    @registry.register_module('other')
    def second(): ...

    assert list(registry) == ['first', 'other']
    assert registry.get('other') is second
    assert 'first' in registry and 'second' not in registry


def test_taken_key():
    registry = Registry('thing')
    registry.register_module('a', module=int)
    with pytest.raises(KeyError, match="thing 'a' is registered already; pass force=True"):
        registry.register_module('a', module=float)
    registry.register_module('a', module=float, force=True)
    assert registry.get('a') is float


def test_decorator_without_parentheses():
    with pytest.raises(TypeError, match=r'write @\.\.\.register_module\(\) with parentheses'):
        prmim.SAMPLERS.register_module(lambda mask, num_kept, grid, noise: mask)


def test_summaries_have_no_marks_of_references():
    assert '[' not in ''.join(map(prmim.SAMPLERS.summary, prmim.SAMPLERS))


def test_unknown_key_lists_and_suggests():
    with pytest.raises(KeyError, match=r"unknown sampler 'fartest'.*'farthest'.*random, grid"):
        prmim.SAMPLERS.get('fartest')


def test_location_is_imported_when_asked_for():
    registry = Registry('thing')
    registry.register_location('gone', 'no_such_module_anywhere')
    assert list(registry) == ['gone']
    with pytest.raises(ModuleNotFoundError):
        registry.get('gone')


def test_adapter_of_the_nearest_class():
    registry = AdapterRegistry('adapter')

    class Base: ...

    class Child(Base): ...

    name = f'{Base.__module__}.{Base.__qualname__}'
    registry.register_module(framework=name, module='for base')
    assert registry.find(Child) == name
    own = f'{Child.__module__}.{Child.__qualname__}'
    registry.register_module(framework=own, module='for child')
    assert registry.find(Child) == own
    assert registry.find(int) is None


def test_adapter_by_the_name_that_users_import():
    registry = AdapterRegistry('adapter')
    registry.register_module(framework='collections.abc.Sized', module='x')
    import collections.abc

    assert registry.find(collections.abc.Sized) == 'collections.abc.Sized'


def test_package_needs_torch_only():
    code = (
        'import sys, prmim_adapters;'
        "heavy = {'mmengine', 'mmpretrain', 'mmcv', 'timm', 'fvcore', 'triton'} & set(sys.modules);"
        'assert not heavy, heavy'
    )
    subprocess.run([sys.executable, '-c', code], check=True)

# SPDX-License-Identifier: Apache-2.0
import datetime
from pathlib import Path

import pytest
import yaml

from prmim_adapters.sweep import SpecError, load_spec
from prmim_adapters.sweep.results import (
    ChangedSettingsError,
    fingerprint,
    result_of,
    write_json,
)
from prmim_adapters.sweep.spec import Point, local_bases

SPECS = sorted((Path(__file__).parents[2] / 'sweeps').glob('*.yaml'))


def minimal(**changes):
    spec = dict(
        frameworks=dict(mae=dict(config='mae.py')),
        arms=dict(plain=dict(sampler='random', aggregator=None)),
        ratios=[0.5, 0.7],
        seeds=[0, 1],
        evaluation=dict(train={}, test={}, num_classes=10),
    )
    return {**spec, **changes}


@pytest.fixture
def load(tmp_path):
    def load(data):
        (tmp_path / 'spec.yaml').write_text(yaml.dump(data))
        return load_spec(tmp_path / 'spec.yaml')

    return load


def peers(**settings):
    return dict(frameworks=dict(mae=dict(config='a.py'), b=dict(config='b.py', **settings)))


def test_a_peer_is_a_point_by_itself(load):
    points = load(minimal(seeds=[4], **peers(peer_of='mae', budget='cost'))).points()
    assert [point.name for point in points if point.framework == 'b'] == ['b/framework/seed4']


def test_an_arm_may_have_some_of_the_ratios(load):
    spec = load(minimal(ratios=[0.5, 0.7], seeds=[4], arms=dict(a=dict(ratios=[0.7]), plain={})))
    arms = ['framework', 'a-0.70', 'plain-0.50', 'plain-0.70']
    assert [point.name for point in spec.points()] == [f'mae/{arm}/seed4' for arm in arms]
    assert spec.attach_options('a') == {}


def test_points_are_the_product_seed_by_seed(load):
    names = [point.name for point in load(minimal()).points()]
    assert names == [
        'mae/framework/seed0',
        'mae/plain-0.50/seed0',
        'mae/plain-0.70/seed0',
        'mae/framework/seed1',
        'mae/plain-0.50/seed1',
        'mae/plain-0.70/seed1',
    ]


def test_settings_decide_identity(load):
    first, second = load(minimal()), load(minimal(seeds=[0, 1, 2], verdict=dict(margin=1.0)))
    point = Point('mae', 'plain', 0.5, 1)
    assert first.settings(point) == second.settings(point)
    other = load(minimal(options=dict(train_cfg=dict(max_epochs=3))))
    assert first.settings(point) != other.settings(point)


def test_defaults_are_no_part_of_the_identity(load):
    evaluation = dict(train={}, test={}, num_classes=10)
    point = Point('mae', 'plain', 0.5, 1)
    first = load(minimal()).settings(point)
    assert first['evaluation'] == evaluation
    assert load(minimal(evaluation=dict(evaluation, k=20))).settings(point) == first
    assert load(minimal(evaluation=dict(evaluation, k=10))).settings(point) != first


def test_specs_inherit_as_configs_do(load, tmp_path):
    load(minimal(options=dict(train_cfg=dict(max_epochs=3), hook=dict(interval=1, last=False))))
    child = """
        _base_: spec.yaml
        seeds: [5]
        arms: {_delete_: true, near: {aggregator: nearest}}
        options: {train_cfg: {val_begin: 2}, hook: {_delete_: true, interval: 4}}
    """
    (tmp_path / 'child.yaml').write_text(child)
    spec = load_spec(tmp_path / 'child.yaml')
    assert spec.arms == {'near': {'aggregator': 'nearest'}}
    assert spec.options == {
        'train_cfg': {'max_epochs': 3, 'val_begin': 2},
        'hook': {'_delete_': True, 'interval': 4},  # the framework's hook is replaced as well
    }
    assert (spec.seeds, spec.ratios) == ((5,), (0.5, 0.7))


def test_local_base_files_of_a_config_are_part_of_the_identity(load, tmp_path):
    point = Point('mae', 'plain', 0.5, 1)
    (tmp_path / 'mae.py').write_text("_base_ = 'mmpretrain::mae/a.py'\nx = 1\n")
    spec = load(minimal())
    assert 'bases' not in spec.settings(point)
    (tmp_path / 'mae.py').write_text("_base_ = ['common/a.py', 'mmpretrain::mae/a.py']\nx = 1\n")
    (tmp_path / 'common').mkdir()
    (tmp_path / 'common' / 'a.py').write_text("_base_ = './b.yaml'\ny = 1\n")
    (tmp_path / 'common' / 'b.yaml').write_text('z: 1\n')
    assert spec.settings(point)['bases'] == ["_base_ = './b.yaml'\ny = 1\n", 'z: 1\n']
    before = fingerprint(spec.settings(point))
    (tmp_path / 'common' / 'b.yaml').write_text('z: 2\n')
    assert fingerprint(spec.settings(point)) != before


def test_bases_of_pure_python_configs_are_part_of_the_identity(tmp_path):
    (tmp_path / 'configs').mkdir()
    base, beside = tmp_path / 'common' / 'a.py', tmp_path / 'configs' / 'b.py'
    base.parent.mkdir()
    base.write_text('x = 1\n')
    beside.write_text('y = 1\n')
    config = tmp_path / 'configs' / 'mae.py'
    config.write_text(
        'from mmengine.config import read_base\n'
        'with read_base():\n    from .b import *\n    from ..common.a import *\n'
        '    from mmpretrain.configs._base_.default_runtime import *\n'
    )
    assert local_bases(config) == ['y = 1\n', 'x = 1\n']


def test_files_of_the_transfers_are_part_of_the_identity(load, tmp_path):
    (tmp_path / 'tune.py').write_text("_base_ = 'base.py'\nx = 1\n")
    (tmp_path / 'base.py').write_text('y = 1\n')
    spec, point = (
        load(minimal(transfers=dict(tune=dict(config='tune.py')))),
        Point('mae', 'plain', 0.5, 1),
    )
    result = dict(accuracy={}, cost={}, environment=dict(gpu='', processor=''))
    before = {k: v for k, v in spec.settings(point).items() if k != 'transfer_files'}
    for name, settings in (('new', spec.settings(point)), ('before', before)):
        write_json(tmp_path / name / 'result.json', dict(result, settings=fingerprint(settings)))
        assert result_of(point, spec.settings(point), tmp_path / name) is not None
    (tmp_path / 'base.py').write_text('y = 2\n')
    with pytest.raises(ChangedSettingsError):
        result_of(point, spec.settings(point), tmp_path / 'new')


@pytest.mark.parametrize('name', ['cifar10_simmim', 'cifar10_mff'])
def test_bases_of_the_shipped_configs_are_found(name):
    base = SPECS[0].parent / 'base'
    assert local_bases(base / f'{name}.py') == [(base / 'cifar10_mae.py').read_text()]


def test_a_missing_base_is_named(tmp_path):
    (tmp_path / 'child.yaml').write_text('_base_: missing.yaml\n')
    with pytest.raises(SpecError, match=r'child\.yaml: _base_: .*missing\.yaml.* relative to'):
        load_spec(tmp_path / 'child.yaml')


@pytest.mark.parametrize('text', ['- a list', 'seeds: [1', ''])
def test_what_is_no_mapping_is_named(tmp_path, text):
    (tmp_path / 'spec.yaml').write_text(text)
    with pytest.raises(SpecError, match=r'spec\.yaml: expected YAML with a mapping of keys'):
        load_spec(tmp_path / 'spec.yaml')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(ratio=[0.5]), "spec: unknown key 'ratio'; allowed: arms, "),
        (dict(ratios=[]), 'ratios: expected a non-empty list'),
        (dict(ratios=[1.5]), 'ratios: 1.5 is not between 0 and 1'),
        (dict(seeds=[-1]), 'seeds: -1 is not a whole number'),
        (dict(frameworks={}), 'frameworks: name at least one'),
        (dict(frameworks=dict(mae=dict(cfg='a.py'))), "frameworks.mae: unknown key 'cfg'"),
        (dict(frameworks=dict(mae={})), "frameworks.mae: .* 'config'"),
        (dict(arms=dict(framework={})), "arms: 'framework' is the framework itself"),
        (dict(arms={'a/b': {}}), "arms: 'a/b' is no name: names become folders"),
        (dict(arms=dict(a=dict(other=1))), "arms.a: unknown key 'other'; allowed: sampler, "),
        (dict(arms=dict(A={}, a={})), 'arms: a occurs twice if case does not count'),
        (dict(seeds=[True]), 'seeds: True is not a whole number from 0 to 4294967295'),
        (dict(seeds=[2**32]), 'seeds: 4294967296 is not a whole number'),
        (dict(seeds=['0']), "seeds: '0' is not a whole number"),
        (dict(ratios=[float('nan')]), 'ratios: nan is not between 0 and 1'),
        (dict(folder='x'), "spec: unknown key 'folder'"),
        (dict(resume='yes'), r"resume='yes' \(str\): expected True or False"),
        (
            dict(frameworks=dict(mae=dict(config=3))),
            'frameworks.mae.config: expected text, found 3',
        ),
        (dict(frameworks=dict(mae=dict(config='a', backbone=None))), 'mae.backbone: expected text'),
        (dict(frameworks=dict(mae=dict(config='a', options=[]))), 'mae.options: expected names'),
        (dict(evaluation=dict(train={}, test={}, num_classes=True)), 'num_classes=True'),
        (dict(evaluation=dict(train={}, test={}, num_classes=10, k=0)), 'evaluation.k=0 must be'),
        (dict(evaluation=dict(train={}, test={}, num_classes=10, temperature=0)), 'temperature=0'),
        (dict(verdict=dict(margin=float('inf'))), 'verdict.margin=inf is not finite'),
        (dict(verdict=dict(confidence=1)), 'verdict.confidence=1: must be between'),
        (dict(arms=dict(a=3)), 'arms.a: expected names with their settings, found 3'),
        (dict(ratios=[0.5, 0.501]), 'ratios: 0.50 occurs twice to two decimals'),
        (dict(seeds=[0, 1, 0]), 'seeds: 0 occurs twice, and names one folder'),
        (dict(transfers=dict(linear=dict(config='a.py'))), "transfers: 'linear' is a name of the"),
        (dict(transfers=dict(train=dict(config='a.py'))), "transfers: 'train' is a name of the"),
        (dict(transfers={'a/b': dict(config='a.py')}), "transfers: 'a/b' is no name"),
        (dict(arms=dict(a=dict(throw_ratio=0.5))), 'arms.a.throw_ratio: the axis `ratios` sets it'),
        (dict(arms=dict(a=dict(budget='time'))), "arms.a.budget: 'time'; allowed: epochs, cost"),
        (
            dict(arms=dict(a=dict(hooks={}))),
            r'arms.a.hooks: expected a list of hooks, .*found \{\}',
        ),
        (
            dict(arms=dict(a=dict(ratios=[0.6]))),
            r'arms.a.ratios: 0.6 is not on the axis `ratios`: 0.5',
        ),
        (peers(peer_of='b'), "frameworks.b.peer_of: 'b' is no framework .* there are: mae"),
        (peers(budget='cost'), 'frameworks.b.budget: the cost is that of another framework'),
        (peers(peer_of='mae', budget='time'), "frameworks.b.budget: 'time'; allowed: epochs"),
        (dict(verdict=dict(baseline='x')), "verdict.baseline: 'x' is no arm; arms are plain"),
        (dict(evaluation=dict(train={}, test={})), 'evaluation: .*num_classes'),
    ],
)
def test_mistakes_are_named(load, changes, message):
    with pytest.raises(SpecError, match=message):
        load(minimal(**changes))


@pytest.mark.parametrize('kind', ['frameworks', 'arms', 'transfers'])
@pytest.mark.parametrize(
    'name',
    [
        *['', '.', '..', '../..', '/x', '.lock', 'report.md', 'x.png', 'a b', '-a', 'é', 'a\n'],
        *['a' * 65, 1, 0.5, True, None, ('a', 'b')],
    ],
)
def test_names_that_could_leave_the_folder_are_refused(load, kind, name):
    entry = {} if kind == 'arms' else dict(config='a.py')
    with pytest.raises(SpecError, match=r'is no name: names become folders|expected YAML'):
        load(minimal(**{kind: {name: entry}}))


@pytest.mark.parametrize('name', ['mae', 'weight_0.25', 'a-b', '0', 'framework-2'])
def test_names_that_are_names(load, name):
    assert list(load(minimal(arms={name: {}})).arms) == [name]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'x = 1; import os': 1}, "options: 'x = 1; import os' is no name of a setting"),
        ({'class': 1}, "options: 'class' is no name of a setting"),
        ({'_base_': 'foreign.py'}, "options: '_base_' is not a setting of a config"),
        ({3: 1}, 'options: 3 is no name of a setting'),
        ({'a': float('inf')}, r'options.a: inf \(float\) cannot be written into a config'),
        ({'a': {'b': [0, float('nan')]}}, r'options.a.b\[1\]: nan'),
        (
            {'a': datetime.date(2026, 1, 1)},
            r'options.a: datetime.date\(2026, 1, 1\) \(date\) cannot be',
        ),
        ({'a': {datetime.date(2026, 1, 1): 1}}, 'options.a: the key datetime.date'),
        ({'a': {'x', 'y'}}, 'options.a: {'),
        ({'a': b'x'}, "options.a: b'x'"),
    ],
)
def test_options_that_are_no_plain_values_are_refused(load, options, message):
    with pytest.raises(SpecError, match=message):
        load(minimal(options=options))
    framework = dict(mae=dict(config='a.py', options=options))
    with pytest.raises(SpecError, match=f'frameworks.mae.{message}'):
        load(minimal(frameworks=framework))


def bomb(levels, merge=False):
    """Names that stand for names: ten more of them at every level."""
    lines = ['a0: &a0 {k: v}']
    for level in range(1, levels + 1):
        items = ', '.join([f'*a{level - 1}'] * 10)
        value = f'{{<<: [{items}]}}' if merge else f'[{items}]'
        lines.append(f'a{level}: &a{level} {value}')
    return '\n'.join(lines)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (bomb(12), 'it unfolds to more than 50000 values'),
        (bomb(12, merge=True), 'it unfolds to more than 50000 values'),
        ('a: &a [*a]', 'it is nested deeper than 40 levels, or contains itself'),
        ('a: &a {b: *a}', 'it is nested deeper than 40 levels, or contains itself'),
        ('a: ' + '[' * 60 + ']' * 60, 'it is nested deeper than 40 levels'),
        ('a: ' + '[' * 50_000, 'is nested too deeply'),
        ('a: 1\nb: 2\na: 3', "key 'a' is given twice"),
        ('a: !!python/object/apply:os.system [ls]', 'could not determine a constructor'),
        ('a: 2026-99-99', 'month must be in'),
        ('a: ' + 'x' * 2**21, 'has 2097155 bytes; at most'),
        ('_base_: spec.yaml', 'inherits itself'),
        ('_base_: [[spec.yaml]]', 'expected names of files'),
        ('_base_: {a: b}', 'expected names of files'),
    ],
    ids=lambda text: text[:24],
)
def test_files_that_would_not_end_are_refused(tmp_path, text, message):
    (tmp_path / 'spec.yaml').write_text(text)
    with pytest.raises(SpecError, match=rf'spec\.yaml: .*{message}'):
        load_spec(tmp_path / 'spec.yaml')


def test_bases_that_inherit_each_other_end(tmp_path, load):
    """Each of 12 files inherits the next one ten times: 10^12 readings, or a message."""
    for number in range(12):
        names = ', '.join([f'{number + 1}.yaml'] * 10)
        (tmp_path / f'{number}.yaml').write_text(f'_base_: [{names}]\n')
        (tmp_path / f'{number}.py').write_text(f'_base_ = {[f"{number + 1}.py"] * 10!r}\n')
    (tmp_path / '12.yaml').write_text('{}')
    (tmp_path / '12.py').write_text("_base_ = ['12.py', '11.py']\n")
    with pytest.raises(SpecError, match=r'0\.yaml: _base_: inherits more than 50 files'):
        load_spec(tmp_path / '0.yaml')
    assert len(local_bases(tmp_path / '0.py')) == 50


def test_no_text_is_named(tmp_path):
    (tmp_path / 'spec.yaml').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(SpecError, match=r'spec\.yaml: is no text in UTF-8'):
        load_spec(tmp_path / 'spec.yaml')


@pytest.mark.parametrize('path', SPECS, ids=lambda path: path.stem)
def test_shipped_specs_load_and_their_configs_exist(path):
    spec = load_spec(path)
    assert spec.verdict.baseline in spec.arms
    for framework in spec.frameworks.values():
        assert '::' in framework.config or (path.parent / framework.config).is_file()

# SPDX-License-Identifier: Apache-2.0
import copy
import json

import pytest
import yaml

from prmim_adapters.sweep import load_spec
from prmim_adapters.sweep.results import ChangedSettingsError
from prmim_adapters.sweep.runner import run_sweep


@pytest.fixture(scope='module')
def swept(own_spec, prmim_sweep):
    """One seed, one ratio: the framework, an arm that works, an arm that cannot."""
    spec = copy.deepcopy(own_spec)
    spec['seeds'] = [3]
    spec['arms'] = {'broken': {'sampler': 'fathest'}, 'near': {'aggregator': 'nearest'}}
    spec['verdict'] = {}
    process, out = prmim_sweep(spec, 'swept', '--json')
    stdout, stderr = process.communicate(timeout=300)
    return spec, out, process.returncode, stdout, stderr


def test_own_framework_passes_and_a_failure_does_not_stop_the_others(swept):
    _, out, code, stdout, stderr = swept
    assert code == 1, stderr
    state = json.loads(stdout)
    assert state['finished'] == ['mine/framework/seed3', 'mine/near-0.25/seed3']
    assert list(state['failed']) == ['mine/broken-0.25/seed3']
    assert "unknown sampler 'fathest'" in state['failed']['mine/broken-0.25/seed3']
    report = (out / 'report.md').read_text()
    assert "failed: mine/broken-0.25/seed3: KeyError: \"unknown sampler 'fathest'" in report
    assert (out / 'mine_ratio.png').stat().st_size > 10_000
    assert (out / 'mine_cost.png').stat().st_size > 10_000


def test_result_holds_accuracy_cost_and_environment(swept):
    _, out, *_ = swept
    own, near = (
        json.loads((out / 'mine' / arm / 'seed3' / 'result.json').read_text())
        for arm in ('framework', 'near-0.25')
    )
    assert near['point'] == dict(framework='mine', arm='near', ratio=0.25, seed=3)
    # Two classes that differ in brightness: far above chance, even after two epochs.
    assert own['accuracy']['knn'] > 80
    assert near['accuracy']['linear'] > 80
    # 10 of 16 tokens are masked, 4 thrown: the blocks see 12 of 16.
    ratio = near['cost']['forward_gmacs'] / own['cost']['forward_gmacs']
    assert 12 / 16 - 0.05 < ratio < 0.90
    assert own['cost']['training_gmacs'] > 2 * own['cost']['forward_gmacs']
    assert 0 < own['cost']['data_seconds'] < own['cost']['step_seconds']
    assert own['environment']['packages']['torch']
    assert not list(out.rglob('running.json'))


def test_a_point_holds_only_its_differences(swept):
    _, out, *_ = swept
    framework = (out / 'mine' / 'framework' / 'seed3' / 'config.py').read_text().splitlines()
    assert framework[1:] == ["randomness = {'seed': 3}"]
    near = (out / 'mine' / 'near-0.25' / 'seed3' / 'config.py').read_text()
    assert near.splitlines()[1:] == [
        "randomness = {'seed': 3}",
        'model = dict(',
        '    _delete_=True,',
        "    type='PRMIM',",
        '    framework={{_base_.model}},',
        "    aggregator='nearest',",
        '    throw_ratio=0.25,',
        ')',
    ]


def test_changed_settings_are_refused_before_anything_runs(swept, image_folder):
    spec, out, *_ = swept
    before = (out / 'mine' / 'near-0.25' / 'seed3' / 'result.json').read_bytes()
    changed = copy.deepcopy(spec)
    changed['arms']['near']['thrown_weight'] = 0.5
    (image_folder / 'changed.yaml').write_text(yaml.safe_dump(changed))
    with pytest.raises(ChangedSettingsError, match='holds the result of other settings'):
        run_sweep(load_spec(image_folder / 'changed.yaml'), out)
    assert (out / 'mine' / 'near-0.25' / 'seed3' / 'result.json').read_bytes() == before

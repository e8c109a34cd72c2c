# SPDX-License-Identifier: Apache-2.0
import copy
import json
import shutil

import pytest
import yaml
from click.testing import CliRunner

from prmim_adapters.commands.sweep import sweep
from prmim_adapters.sweep import load_spec
from prmim_adapters.sweep.files import FileError, check_links, inside
from prmim_adapters.sweep.processes import processes_of
from prmim_adapters.sweep.results import (
    ChangedSettingsError,
    fingerprint,
    read_json,
    write_json,
)
from prmim_adapters.sweep.runner import run_sweep


@pytest.fixture(autouse=True)
def example_on_the_path(example, monkeypatch):
    """The sweep imports the framework to check the arms, as the training does."""
    monkeypatch.syspath_prepend(str(example))


@pytest.fixture(scope='module')
def swept(own_spec, prmim_sweep):
    """One seed, one ratio: the framework, an arm that works, an arm that cannot."""
    spec = copy.deepcopy(own_spec)
    spec['seeds'] = [3]
    broken = {'hooks': [{'type': 'EMAHook', 'ema_type': 'Nothing'}]}  # attaches; cannot train
    spec['arms'] = {'broken': broken, 'near': {'aggregator': 'nearest'}}
    spec['verdict'] = {}
    process, out = prmim_sweep(spec, 'swept', '--json')
    stdout, stderr = process.communicate(timeout=900)
    return spec, out, process.returncode, stdout, stderr


def test_own_framework_passes_and_a_failure_does_not_stop_the_others(swept):
    _, out, code, stdout, stderr = swept
    assert code == 1, stderr
    state = json.loads(stdout)
    assert state['finished'] == ['mine/framework/seed3', 'mine/near-0.25/seed3']
    assert list(state['failed']) == ['mine/broken-0.25/seed3']
    assert 'Nothing is not in the' in state['failed']['mine/broken-0.25/seed3']
    report = (out / 'report.md').read_text()
    assert "failed: mine/broken-0.25/seed3: KeyError: 'Nothing is not in the" in report
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
    assert own['cost']['wall_seconds'] > own['cost']['step_seconds']
    assert not processes_of(out / 'mine' / 'near-0.25' / 'seed3')


def test_a_point_holds_only_its_differences(swept):
    _, out, *_ = swept
    framework = (out / 'mine' / 'framework' / 'seed3' / 'config.py').read_text().splitlines()
    assert framework[1:] == ["randomness = {'seed': 3}"]
    near = (out / 'mine' / 'near-0.25' / 'seed3' / 'config.py').read_text()
    assert near.splitlines()[1:] == [
        "randomness = {'seed': 3}",
        'model = dict(',
        '    _delete_=True,',
        "    type='mmpretrain.PRMIM',",
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


@pytest.fixture
def begun(own_spec, tmp_path):
    """A spec with resume, its only point, and the folder of that point, whose training is over."""
    data = dict(own_spec, arms={}, verdict={}, seeds=[0], resume=True)
    (tmp_path / 'spec.yaml').write_text(yaml.safe_dump(data))
    spec = load_spec(tmp_path / 'spec.yaml')
    (point,) = spec.points()
    folder = tmp_path / 'out' / point.name
    write_json(folder / 'settings.json', dict(settings=fingerprint(spec.settings(point))))
    measurements = dict(
        accuracy=dict(knn=90.0, linear=91.0),
        cost=dict(forward_gmacs=1.5, training_gmacs=4.5),
        environment=dict(gpu=None, processor='a processor'),
    )
    write_json(folder / 'train' / 'measurements.json', measurements)
    return spec, point, folder


def test_resume_keeps_the_measurements_of_a_finished_training(begun):
    spec, _, folder = begun
    assert run_sweep(spec, folder.parents[2]) == {}
    result = read_json(folder / 'result.json')
    assert (result['cost']['forward_gmacs'], result['accuracy']['knn']) == (1.5, 90.0)
    assert not (folder / 'config.log').exists()
    assert 'wall_seconds' not in result['cost']  # most of it was spent before


@pytest.mark.parametrize('recorded', [dict(settings='0123456789abcdef'), None])
def test_resume_refuses_a_run_begun_with_other_or_unknown_settings(begun, recorded):
    spec, _, folder = begun
    (folder / 'settings.json').unlink()
    if recorded:
        write_json(folder / 'settings.json', recorded)
    with pytest.raises(ChangedSettingsError, match='holds an unfinished run of other settings'):
        run_sweep(spec, folder.parents[2])


def test_any_exception_of_a_point_is_a_recorded_failure(begun):
    _, point, folder = begun
    (folder / 'train' / 'measurements.json').write_text('{')
    spec, out = folder.parents[3] / 'spec.yaml', folder.parents[2]
    run = CliRunner().invoke(sweep, [str(spec), '--out', str(out)])
    assert run.exit_code == 1, run.output
    reason = read_json(folder / 'failure.json')['reason'].splitlines()
    assert reason[0] == 'Traceback (most recent call last):'
    assert reason[-1].startswith(
        f'FileError: {folder}/train/measurements.json: is damaged, no JSON'
    )
    assert f'* failed: {point.name}: FileError: ' in (out / 'report.md').read_text()


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('', 'is damaged, no JSON'),
        ('[' * 10**5, 'is damaged, no JSON'),
        ('[1]', 'is damaged, a list of JSON'),
        ('{}', 'is damaged, accuracy holds no numbers'),
        ('{"accuracy": {"knn": "90"}}', "is damaged, accuracy.knn='90' (str)"),
        ('{"accuracy": {"knn": NaN}}', 'is damaged, accuracy.knn=nan is not finite'),
        ('{"accuracy": {"knn": 1e999}}', 'is damaged, accuracy.knn=inf is not finite'),
        ('{"accuracy": {"knn": true}}', 'is damaged, accuracy.knn=True (bool)'),
        ('{"accuracy": {"knn": 1' + '0' * 400 + '}}', 'is damaged, accuracy.knn=1000'),
        ('{"accuracy": {"knn": 1' + '0' * 5000 + '}}', 'is damaged, no JSON'),
        ('{"accuracy": {}, "cost": {}, "environment": 3}', 'is damaged, environment names'),
        ('\xff', 'is no text in UTF-8'),
    ],
)
def test_a_damaged_result_is_named(begun, content, message):
    """Also by the report alone, of a folder that somebody hands over."""
    folder = begun[2]
    (folder / 'result.json').write_bytes(content.encode('latin1'))
    file = folder.parents[3] / 'spec.yaml'
    for flags in ([], ['--report-only']):
        run = CliRunner().invoke(sweep, [str(file), '--out', str(folder.parents[2]), *flags])
        assert run.exit_code == 2
        assert f'{folder}/result.json: {message}' in run.output


@pytest.mark.parametrize('where', ['config.py', 'config.log', 'train/epoch_1.pth', 'train'])
def test_links_in_a_run_to_be_resumed_are_not_followed(begun, where):
    """Its config, its log and its checkpoints are written over."""
    spec, _, folder = begun
    outside = folder.parents[3] / 'outside'
    (folder / 'train').rename(outside)
    (outside / 'mine.txt').write_text('mine')
    if where != 'train':
        shutil.copytree(outside, folder / 'train')
    (folder / where).symlink_to(outside if where == 'train' else outside / 'mine.txt')
    with pytest.raises(FileError, match=f'{where}: leads to .*so that nothing outside is replaced'):
        run_sweep(spec, folder.parents[2])
    assert (outside / 'mine.txt').read_text() == 'mine'
    assert len(list(outside.iterdir())) == 2


def test_links_within_a_run_stay(tmp_path):
    """wandb links its newest run and its log, by their relative and by their whole path."""
    (tmp_path / 'wandb' / 'run-1').mkdir(parents=True)
    (tmp_path / 'wandb' / 'latest-run').symlink_to('run-1')
    (tmp_path / 'wandb' / 'debug.log').symlink_to(tmp_path / 'wandb' / 'run-1')
    check_links(tmp_path)
    (tmp_path / 'wandb' / 'up').symlink_to('../..')
    with pytest.raises(FileError, match=r'up: leads to \.\./\.\.; links out of'):
        check_links(tmp_path)


def test_links_in_a_circle_are_refused(tmp_path):
    (tmp_path / 'round').symlink_to('round')
    (tmp_path / 'spec.yaml').write_text('_base_: round\n')
    refused = (
        lambda: check_links(tmp_path),
        lambda: inside(tmp_path, 'round'),
        lambda: load_spec(tmp_path / 'spec.yaml'),
        lambda: load_spec(tmp_path / 'round'),
    )
    for call in refused:
        with pytest.raises(ValueError, match='round: its links lead in a circle'):
            call()


@pytest.mark.parametrize('where', ['framework', 'point', 'report'])
def test_links_in_the_folder_are_not_followed(begun, where):
    """A folder that somebody hands over may lead anywhere."""
    _, point, folder = begun
    out, outside = folder.parents[2], folder.parents[3] / 'outside'
    outside.mkdir()
    (outside / 'mine.txt').write_text('mine')
    if where == 'report':
        (out / 'report.md').symlink_to(outside / 'mine.txt')
        flags = ['--report-only']
    else:
        link = folder if where == 'point' else out / point.framework
        shutil.rmtree(link)
        link.symlink_to(outside)
        flags = []
    file = folder.parents[3] / 'spec.yaml'
    run = CliRunner().invoke(sweep, [str(file), '--out', str(out), *flags])
    assert run.exit_code == 2
    assert 'so that nothing outside is replaced' in run.output
    assert {path.name: path.read_text() for path in outside.iterdir()} == {'mine.txt': 'mine'}


@pytest.mark.parametrize('base', ['missing.yaml', 'spec_without_config.yaml'])
def test_missing_files_end_the_command_with_a_message(begun, own_spec, base):
    folder = begun[2].parents[3]
    spec = dict(own_spec, frameworks=dict(mine=dict(config='missing.py')))
    (folder / 'spec_without_config.yaml').write_text(yaml.safe_dump(spec))
    (folder / 'child.yaml').write_text(f'_base_: {base}\n')
    run = CliRunner().invoke(sweep, [str(folder / 'child.yaml'), '--out', str(folder / 'new')])
    assert run.exit_code == 2
    assert 'Error: ' in run.output
    assert 'missing.' in run.output
    assert isinstance(run.exception, SystemExit)

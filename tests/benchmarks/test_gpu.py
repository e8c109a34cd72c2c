# SPDX-License-Identifier: Apache-2.0
"""benchmarks/gpu.py: the dry run of all stages, and what becomes of one that is cut off."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gpu_stages import evidence, runner
from gpu_stages.plan import CALIBRATION, STAGES, Stage, estimate, find

BENCHMARKS = Path(runner.__file__).parents[1]

# What an H100 would calibrate to, were a third of its peak reached.
H100 = {'seconds_per_gmac': 7.2e-6, 'build_seconds': 1.5}


def read(folder, name):
    return json.loads((folder / f'{name}.json').read_text())


def test_every_stage_leaves_its_own_record(dry_run):
    printed, out = dry_run
    for stage in (CALIBRATION, *STAGES):
        data = read(out, stage.name)
        assert (data['status'], data['dry'], data['title']) == ('done', True, stage.title)
        assert data['result']
        assert data['environment']['commit'] == 'abc'
        assert data['environment']['packages']['torch']
        assert data['seconds'] > 0
    summary = read(out, 'run')
    assert list(summary['stages']) == [stage.name for stage in (CALIBRATION, *STAGES)]
    lines = printed.splitlines()
    first = f'left  0/{len(STAGES)} calibration: speed of the device, about 3 s'
    assert lines[0].endswith(first)
    assert lines[-1].endswith(f'{1 + len(STAGES)} done; results in {out}')
    assert not list(out.glob('*.tmp'))


def test_steps_of_all_models(stage_result):
    labels = [entry['label'] for entry in stage_result('mae')['measured']]
    assert labels[:5] == [
        'framework', 'plain partial 0.5', 'PR-MIM 0.5', 'plain partial 0.7', 'PR-MIM 0.7',
    ]  # fmt: skip
    assert labels[5].startswith('cross-attention decoder')
    assert [entry['label'] for entry in stage_result('fcmae')['measured']][-1] == (
        'framework, dense encoder'
    )
    assert stage_result('ibot')['measured'][-1]['label'] == 'length by length 0.5'
    labels = [entry['label'] for entry in stage_result('videomae')['measured']]
    assert labels == ['framework', 'PR-MIM 0.5']  # the loss is of every masked token
    for entry in stage_result('simmim_vit')['measured']:
        assert entry['memory']['saved'] > 0
    simmim = {
        entry['label']: entry['memory']['saved'] for entry in stage_result('simmim_vit')['measured']
    }
    assert simmim['PR-MIM 0.5'] < 0.7 * simmim['framework']


def test_more_fits_with_half_thrown(stage_result):
    framework, ours = stage_result('largest_simmim')['found']
    assert ours['batch_size'] > framework['batch_size'] > 0
    assert any(trial['reason'] == 'out of memory' for trial in ours['trials'])


def test_adapters_agree_and_one_graph_is_compiled(stage_result):
    found = stage_result('agreement')
    assert len(found) == 15
    assert all(entry['fp32'] == {'loss': 0.0, 'gradient': 0.0} for entry in found.values())
    for entry in found.values():
        allowed = 1.5 * entry['framework']['bf16']['gradient'] if 'framework' in entry else 0.15
        assert 0 < entry['bf16']['gradient'] <= allowed
    assert stage_result('graph')['mae_prmim_vitb']['eager']['graphs'] == 1
    sampler = stage_result('sampler')
    assert sampler['cases'] >= 12 or 'no kernel' in sampler['note']


def test_profile_is_text_for_people(dry_run, stage_result):
    text = (dry_run[1] / 'profile.txt').read_text()
    assert 'mae_prmim_vitb, 2 images, PR-MIM\n  against the framework: counted 0.724' in text
    framework, ours = stage_result('profile')['mae_prmim_vitb']
    for row in (framework, ours):
        assert len(row['top']) == 10
        assert sum(row['kinds'].values()) == pytest.approx(row['device_ms'])
    assert 'sampling' in ours['kinds']
    assert 'sampling' not in framework['kinds']
    assert 'simmim_prmim_swinb, 2 images' in (dry_run[1] / 'profile_swin.txt').read_text()


def test_kinds_of_kernels():
    from gpu_stages.profile import kind_of

    assert kind_of('_kernel') == 'sampling'
    assert kind_of('nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NTN') == 'matrix products'
    assert kind_of('void at::native::vectorized_elementwise_kernel<4, GeluFunctor>') == (
        'element by element'
    )
    assert kind_of('void at::native::(anonymous namespace)::indexSelectLargeIndex<...>') == (
        'gathers and scatters'
    )
    assert kind_of('pytorch_flash::flash_fwd_kernel<...>') == 'attention'
    assert kind_of('cunn_SoftMaxForward') == 'attention'
    assert kind_of('void multi_tensor_apply_kernel<FusedAdam>') == 'optimizer'


def test_the_plan_fits_into_its_minutes():
    """The most important stages first, all but the last sixteen within nine minutes of an H100."""
    assert [stage.name for stage in STAGES[:5]] == [
        'sampler', 'agreement', 'graph', 'mae', 'mae_explicit',
    ]  # fmt: skip
    assert STAGES[-1].name == 'evidence'
    spent = sum(estimate(stage, H100) for stage in (CALIBRATION, *STAGES[:-16]))
    assert spent < 9 * 60
    assert estimate(find(['mae'])[0], None) > 0  # the calibration failed


def run(tmp_path, stages, minutes=5.0, **options):
    lines = []
    call = runner.Run(stages, tmp_path, minutes, dry=True, say=lines.append, **options)
    return call(), lines, call


@pytest.fixture
def quick_calibration(monkeypatch):
    stage = Stage('calibration', 'none', 'gpu_tasks.quick', seconds=0.0)
    monkeypatch.setattr(runner, 'CALIBRATION', stage)


def tasks(*names):
    return [Stage(name, f'to {name}', f'gpu_tasks.{name}', seconds=1.0) for name in names]


def test_a_stage_that_breaks_does_not_take_the_others_along(tmp_path, quick_calibration):
    fine, lines, _ = run(tmp_path, tasks('crash', 'fail', 'quick'))
    assert not fine
    crash, fail, quick = (read(tmp_path, name) for name in ('crash', 'fail', 'quick'))
    assert [crash['status'], fail['status'], quick['status']] == ['failed', 'failed', 'done']
    assert crash['word'] == 'its process ended with code 3'
    assert fail['word'] == 'RuntimeError: the device said no'
    assert fail['result'] == {'before': 1}
    assert quick['result']['value'] == 1
    assert lines[-1].split('  ')[1].startswith('2 done, 2 failed')


def test_a_stage_that_hangs_is_ended_and_keeps_what_it_had(tmp_path):
    worker = runner.Worker(tmp_path, dry=True)
    hang, quick = tasks('hang', 'quick')
    begin = time.time()
    outcome = worker.run(hang, 8.0)
    assert time.time() - begin < 20
    assert (outcome.status, outcome.result) == ('stopped', {'half': True})
    assert worker.run(quick, 60.0).status == 'done'
    worker.end()


def test_a_missing_package_ends_the_run_at_once(tmp_path, monkeypatch):
    stage = Stage('calibration', 'none', 'gpu_tasks.needs', seconds=0.0)
    monkeypatch.setattr(runner, 'CALIBRATION', stage)
    fine, lines, _ = run(tmp_path, tasks('quick'))
    assert not fine
    word = "ModuleNotFoundError: No module named 'no_such_package'"
    assert lines[1].endswith(f'calibration: failed, {word}')
    assert lines[2].endswith(f'quick: to quick: skipped, {word}')


def test_resume_runs_what_is_not_done(tmp_path, quick_calibration):
    fine, *_ = run(tmp_path, tasks('quick', 'fail'))
    assert not fine
    before = (tmp_path / 'quick.json').stat().st_mtime_ns
    stages = [
        *tasks('quick'),
        Stage('fail', 'mended', 'gpu_tasks.quick', {'value': 7}, seconds=1.0),
    ]
    fine, lines, _ = run(tmp_path, stages, resume=True)
    assert fine
    assert (tmp_path / 'quick.json').stat().st_mtime_ns == before
    assert read(tmp_path, 'fail')['result']['value'] == 7
    assert any(line.endswith('quick: to quick: done before') for line in lines)


def test_what_no_longer_fits_is_skipped_with_a_word(tmp_path, quick_calibration):
    _, lines, _ = run(tmp_path, tasks('quick'), minutes=0.0)
    assert 'takes about 3 s, 0 s are left' in lines[1]
    assert read(tmp_path, 'run')['stages']['quick']['status'] == 'skipped'
    assert not (tmp_path / 'quick.json').exists()


def test_a_stage_without_its_package_is_skipped(tmp_path, quick_calibration):
    stage = Stage('quick', 'to quick', 'gpu_tasks.quick', seconds=1.0, needs='no_such_package')
    fine, lines, _ = run(tmp_path, [stage])
    assert fine
    assert lines[2].endswith('quick: to quick: skipped, no_such_package is not installed')


def test_estimates_follow_the_pace(tmp_path):
    call = runner.Run([], tmp_path, 5.0)
    call.calibration = H100
    mae, sampler = find(['mae'])[0], find(['sampler'])[0]
    before = call._expected(mae), call._expected(sampler)
    call._estimated, call._taken = 10.0, 25.0
    assert call._expected(mae) == pytest.approx(2.5 * before[0])
    assert call._expected(sampler) == before[1]


def test_command(tmp_path):
    def call(*arguments):
        command = [sys.executable, str(BENCHMARKS / 'gpu.py'), *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    listed = call('--list')
    assert [line.split()[0] for line in listed.stdout.splitlines()] == [s.name for s in STAGES]
    wrong = call('--only', 'mea', '--dry-run')
    assert wrong.returncode == 2
    assert "no stage 'mea': there are sampler, agreement" in wrong.stderr
    import torch

    if not torch.cuda.is_available():
        none = call('--out', str(tmp_path / 'none'))
        assert none.returncode == 1
        assert 'no CUDA device' in none.stderr
        assert not (tmp_path / 'none').exists()


def test_a_wrong_choice_of_the_kernel_is_found(tmp_path, monkeypatch):
    from gpu_stages.context import Context
    from gpu_stages.sampler import compare

    from prmim_adapters.core import farthest_triton

    context = Context(tmp_path, True, 'cpu', time.time() + 60, lambda found: None)
    monkeypatch.setattr(farthest_triton, 'farthest', lambda mask, *rest: mask)
    with pytest.raises(
        AssertionError, match=r"the kernel chooses other tokens: \{'grid': \(7, 9\)"
    ):
        compare(context)


def test_sweeps_are_interrupted_at_the_deadline(tmp_path):
    begin = time.time()
    # A shell, since an interpreter may take longer to start than it is given here.
    command = ['sh', '-c', f'trap "touch {tmp_path}/kept; exit" TERM; sleep 60 & wait']
    assert evidence.run_until(command, time.time() + 1.5) is None
    assert time.time() - begin < 20
    assert (tmp_path / 'kept').exists()
    assert evidence.run_until([sys.executable, '-c', 'raise SystemExit(4)'], time.time() + 30) == 4


def test_specs_of_the_sweeps_load(stage_result):
    """The dry run asks the command for the state of the long ones; the short one has pairs at once."""
    from prmim_adapters.sweep import load_spec

    state = stage_result('evidence')
    assert list(state) == ['cifar10_mae', 'tinyimagenet_mae']
    assert all(entry['missing'] and not entry['finished'] for entry in state.values())
    spec = load_spec(evidence.studies(60)[0].spec)
    assert not spec.transfers
    first = [(point.arm, point.ratio, point.seed) for point in spec.points()[:5]]
    assert [seed for *_, seed in first] == [0] * 5
    assert len(set(first)) == 5


def test_a_sweep_without_its_data_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = evidence.studies(3600)[0]
    assert evidence.missing(study) == 'there is no data/cifar10/train'
    study.data.mkdir(parents=True)
    assert evidence.missing(study) is None
    monkeypatch.setattr(evidence.importlib.util, 'find_spec', lambda name: None)
    assert evidence.missing(study) == 'openmim is not installed'

# SPDX-License-Identifier: Apache-2.0
import dataclasses
import re
from functools import partial

import pytest

from prmim_adapters.sweep.collected import collect
from prmim_adapters.sweep.plots import write_plots
from prmim_adapters.sweep.report import markdown
from prmim_adapters.sweep.results import (
    FAILURE,
    RESULT,
    ChangedSettingsError,
    assemble,
    write_json,
)
from prmim_adapters.sweep.spec import Evaluation, Framework, Spec, Verdict

KNN = {
    'framework': {0: 43.0, 1: 43.6, 2: 43.3},
    'plain': {0: 40.9, 1: 41.7, 2: 41.3},
    'light': {0: 43.1, 1: 43.5, 2: 43.4},
    'longer': {0: 43.7, 1: 44.1, 2: 44.0},
    'peer': {0: 43.0, 1: 43.0, 2: 43.0},
    'peer_longer': {0: 44.0, 1: 44.0, 2: 44.0},
}


@pytest.fixture
def spec(tmp_path):
    return Spec(
        frameworks={'mae': Framework('mae.py')},
        arms={'plain': dict(aggregator=None), 'light': {}},
        ratios=(0.5,),
        seeds=(0, 1, 2),
        evaluation=Evaluation(train={}, test={}, num_classes=10),
        verdict=Verdict(baseline='plain', margin=0.3),
        folder=tmp_path,
    )


@pytest.fixture
def finished(spec, tmp_path):
    """Function (*names to leave out) -> folder with results of the others."""
    return partial(write_results, spec, tmp_path)


def write_results(spec, tmp_path, *left_out, **cost):
    for point in spec.points():
        if point.name in left_out:
            continue
        name = point.arm if point.framework == 'mae' else point.framework
        knn = KNN[name][point.seed]
        measurements = dict(
            accuracy=dict(knn=knn, linear=knn + 9),
            cost=dict(
                forward_gmacs=1.0 - point.ratio / 2,
                training_gmacs=3.0,
                step_seconds=0.1,
                data_seconds=0.001,
                images_per_second=640.0,
                last_loss=0.5,
                **cost,
            ),
            environment=dict(gpu=None, processor='a processor'),
        )
        result = assemble(point, spec.settings(point), measurements, 12.0, {})
        write_json(tmp_path / point.name / RESULT, result)
    return tmp_path


def row(report, *cells):
    """The one table row that begins with these cells."""
    start = re.compile(r'\|\s*' + r'\s*\|\s*'.join(map(re.escape, cells)) + r'\s*\|(.*)\|')
    found = [match for line in report.splitlines() if (match := start.match(line))]
    assert found, cells
    return [cell.strip() for cell in found[0].group(1).split('|')]


def test_table_and_verdict_follow_from_the_seeds(spec, finished):
    report = markdown(collect(spec, finished()), 'title')
    assert row(report, 'mae', 'plain', '0.50', '3')[:4] == [
        '41.30 ± 0.40',
        '50.30 ± 0.40',
        '0.7500',
        '3.0000',
    ]
    # Differences -2.1, -1.9, -2.0: mean -2, half width 4.3027 * 0.1 / sqrt(3) = 0.248.
    assert row(report, 'mae', 'plain', '0.50', 'equal epochs', 'kNN') == [
        '-2.00 [-2.25, -1.75]',
        'worse',
        '',
        '',
    ]
    # +0.1, -0.1, +0.1 against MAE; +2.2, +1.8, +2.1 against plain.
    assert row(report, 'mae', 'light', '0.50', 'equal epochs', 'kNN') == [
        '+0.03 [-0.25, +0.32]',
        'lossless',
        '+2.03 [+1.52, +2.55]',
        'better',
    ]
    assert 'None: all points finished.' in report


def test_budgets_and_peers_are_named_and_never_mixed(spec, tmp_path):
    spec = dataclasses.replace(
        spec,
        frameworks={
            **spec.frameworks,
            'peer': Framework('peer.py', peer_of='mae'),
            'peer_longer': Framework('peer.py', peer_of='mae', budget='cost'),
        },
        arms={**spec.arms, 'longer': dict(budget='cost')},
    )
    found = collect(spec, write_results(spec, tmp_path, total_tmacs=7.5))
    report = markdown(found, 'title')
    assert row(report, 'mae', 'longer', '0.50', '3')[-1] == '7.50'
    # Against MAE: +0.7, +0.5, +0.7. Against plain, which trained for less: nothing.
    assert row(report, 'mae', 'longer', '0.50', 'equal cost', 'kNN') == [
        '+0.63 [+0.35, +0.92]',
        'better',
        '',
        '',
    ]
    # 0.0, -0.6, -0.3.
    assert row(report, 'peer', 'framework', '0.00', 'equal epochs', 'kNN')[0] == (
        '-0.30 [-1.05, +0.45]'
    )
    against = report[report.index('## Against peers') : report.index('## Points')]
    assert len(re.findall(r'peer_longer', against)) == 2  # one row for each metric
    assert row(against, 'mae', 'longer', '0.50', 'equal cost', 'kNN', 'peer_longer') == [
        '-0.07 [-0.58, +0.45]',
        'undecided',
    ]
    assert row(against, 'mae', 'light', '0.50', 'equal epochs', 'kNN', 'peer') == [
        '+0.33 [-0.18, +0.85]',
        'undecided',
    ]
    names = [path.name for path in write_plots(found, tmp_path)]
    assert names == ['mae_ratio.png', 'mae_cost.png', 'mae_frontier.png']


def test_unfinished_points_are_listed(spec, finished, tmp_path):
    folder = finished('mae/light-0.50/seed1', 'mae/plain-0.50/seed2')
    failure = dict(reason='a log\nValueError: bad luck')
    write_json(tmp_path / 'mae/plain-0.50/seed2' / FAILURE, failure)
    report = markdown(collect(spec, folder), 'title')
    assert '* failed: mae/plain-0.50/seed2: ValueError: bad luck' in report
    assert '* not run: mae/light-0.50/seed1' in report
    assert row(report, 'mae', 'light', '0.50', '2')[0] == '43.25 ± 0.21'


def test_report_before_any_result(spec, tmp_path):
    found = collect(spec, tmp_path)
    assert markdown(found, 'title').count('* not run: ') == 9
    assert write_plots(found, tmp_path) == []


def test_results_of_other_settings_are_refused(spec, finished):
    folder = finished()
    changed = dataclasses.replace(spec, arms={**spec.arms, 'light': dict(thrown_weight=0.5)})
    with pytest.raises(ChangedSettingsError, match=r'mae/light-0\.50/seed0'):
        collect(changed, folder)


def test_plots_are_drawn_also_with_gaps(spec, finished):
    folder = finished('mae/light-0.50/seed0', 'mae/light-0.50/seed1', 'mae/light-0.50/seed2')
    names = [path.name for path in write_plots(collect(spec, folder), folder)]
    assert names == ['mae_ratio.png', 'mae_cost.png']

# SPDX-License-Identifier: Apache-2.0
"""Tables and picture of what benchmarks/gpu.py measured."""

from __future__ import annotations

import json
import shutil

import gpu_picture
import gpu_tables
import pytest
import result_files


@pytest.fixture
def measured(dry_run, tmp_path, monkeypatch):
    """The dry run's results where those of a GPU would be, with peaks of a device."""
    folder = tmp_path / 'gpu'
    folder.mkdir()
    for path in dry_run[1].glob('*.json'):
        data = json.loads(path.read_text())
        if 'stage' in data:
            data['dry'] = False
            (folder / path.name).write_text(json.dumps(data))
    monkeypatch.setattr(result_files, 'RESULTS', tmp_path)
    return folder


def cells(table, row):
    return [cell.strip() for cell in table.splitlines()[row].strip('|').split('|')]


def test_tables_are_made_from_the_results(measured):
    steps = gpu_tables.gpu_steps()
    assert cells(steps, 2)[:3] == ['MAE ViT-B/16', '512', '0.5']
    assert 'cross-attention decoder' in cells(steps, 2)[-1]
    assert 'not measured' not in ''.join(cells(steps, 2)[:7])
    simmim = json.loads((measured / 'simmim_vit.json').read_text())['result']
    figures = dict(
        (cells(gpu_tables.gpu_figures(), row)[0], cells(gpu_tables.gpu_figures(), row)[2])
        for row in range(2, 10)
    )
    saved = [entry['memory']['saved'] for entry in simmim['measured']]
    assert figures['SimMIM ViT-B/16: peak memory'] == f'{saved[2] / saved[0]:.3f}'
    seconds = [entry['times']['seconds'] for entry in simmim['measured']]
    assert figures['SimMIM ViT-B/16: step'] == f'{seconds[2][0] / seconds[0][0]:.3f}'
    assert cells(gpu_tables.gpu_largest(), 2)[0] == 'MAE ViT-B/16, largest batch'
    assert 'not measured' not in gpu_tables.gpu_largest()


def test_what_did_not_end_or_was_rehearsed_is_not_measured(measured):
    path = measured / 'mae.json'
    data = json.loads(path.read_text())
    for change in ({'dry': True}, {'status': 'stopped'}, {'status': 'failed'}):
        path.write_text(json.dumps(data | change))
        assert cells(gpu_tables.gpu_steps(), 2)[3:] == ['not measured'] * 7
        assert cells(gpu_tables.gpu_figures(), 2)[2] == 'not measured'


def test_picture(dry_run, tmp_path):
    points = gpu_picture.read_points(dry_run[1], dry=True)
    ours = points['MAE ViT-B/16', 'PR-MIM']
    assert [ratio for ratio, *_ in ours] == [0.25, 0.375, 0.5, 0.7]
    memory = [point[2] for point in ours]
    assert memory == sorted(memory, reverse=True)
    assert [ratio for ratio, *_ in points['SimMIM ViT-B/16', 'plain partial']] == [0.25, 0.5]
    gpu_picture.draw(points, tmp_path / 'ratios.png')
    assert (tmp_path / 'ratios.png').read_bytes().startswith(b'\x89PNG')


def test_no_picture_of_a_rehearsal(dry_run, tmp_path):
    points = gpu_picture.read_points(dry_run[1])
    shutil.copy(dry_run[1] / 'run.json', tmp_path)
    with pytest.raises(ValueError, match='no measured steps'):
        gpu_picture.draw(points, tmp_path / 'none.png')

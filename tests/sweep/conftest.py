# SPDX-License-Identifier: Apache-2.0
"""A sweep of the documented example, a framework of the user's own, on generated images."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

EXAMPLE = Path(__file__).parents[2] / 'docs' / 'examples' / 'own_framework'
COMMAND = [sys.executable, '-c', 'from prmim_adapters.commands.sweep import sweep; sweep()']


@pytest.fixture(scope='session')
def example():
    """Folder of the documented example."""
    return EXAMPLE


@pytest.fixture(scope='session')
def own_spec():
    """The example's spec as plain data, its config by absolute path."""
    spec = yaml.safe_load((EXAMPLE / 'my_sweep.yaml').read_text())
    spec['frameworks']['mine']['config'] = str(EXAMPLE / 'my_config.py')
    return spec


@pytest.fixture(scope='session')
def image_folder(tmp_path_factory):
    """Working folder with images/{train,test}/<class>/: two classes that differ in brightness."""
    folder = tmp_path_factory.mktemp('work')
    rng = np.random.default_rng(0)
    for split, count in (('train', 12), ('test', 6)):
        for label in range(2):
            (folder / 'images' / split / str(label)).mkdir(parents=True)
            for number in range(count):
                image = rng.integers(0, 150, (20, 18, 3), dtype=np.uint8) + np.uint8(60 * label)
                cv2.imwrite(str(folder / 'images' / split / str(label) / f'{number}.png'), image)
    return folder


@pytest.fixture(scope='session')
def prmim_sweep(image_folder):
    """Function (spec as data, name, *flags) -> running ``prmim sweep``, and its --out folder."""

    processes = []

    def start(spec, name, *flags):
        path = image_folder / f'{name}.yaml'
        path.write_text(yaml.safe_dump(spec))
        out = image_folder / name
        search = [str(Path(__file__).parents[2]), str(EXAMPLE), os.environ.get('PYTHONPATH', '')]
        process = subprocess.Popen(
            [*COMMAND, str(path), '--out', str(out), *flags],
            cwd=image_folder,
            env={**os.environ, 'PYTHONPATH': os.pathsep.join(search), 'OMP_NUM_THREADS': '1'},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process, out

    yield start
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)  # ends what it started as well
            process.communicate()

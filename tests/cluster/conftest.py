# SPDX-License-Identifier: Apache-2.0
import subprocess

import pytest
from same_masks_runs import ENVIRONMENT, shell, write_config


@pytest.fixture(scope='session')
def alone(tmp_path_factory):
    """Folder of the run of one process."""
    folder = tmp_path_factory.mktemp('alone')
    config = write_config(folder / 'config.py', folder, processes=1)
    command = shell('python $TRAIN $CONFIG', CONFIG=config)
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, timeout=900)
    return folder

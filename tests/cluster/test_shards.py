# SPDX-License-Identifier: Apache-2.0
"""A model in shards on two processes, started by the command of the page."""

import subprocess

import pytest
from same_masks_runs import ENVIRONMENT, assert_same_weights, page, shell, write_config


@pytest.mark.slow
def test_two_processes_with_shards_train_as_one_without(alone, tmp_path):
    config = write_config(tmp_path / 'config.py', tmp_path, processes=2)
    with config.open('a') as stream:
        stream.write(
            "runner_type = 'FlexibleRunner'\n"
            "strategy = dict(type='FullyShardStrategy', layers=['TransformerEncoderLayer'])\n"
        )
    command = shell(page('shards'), CONFIG=config, GPUS=2)
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, timeout=900)
    assert_same_weights(tmp_path, alone)

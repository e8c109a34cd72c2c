# SPDX-License-Identifier: Apache-2.0
"""Every framework of mmpretrain under FlexibleRunner, by DDP and in shards: the same to 1e-5."""

import numpy as np
import pytest
import torch
import torch.multiprocessing
from contract_case import collect
from flexible import STEPS, work
from mmpretrain.models import BaseSelfSupervisor

from prmim_adapters.openmmlab.fully_shard import FullyShardStrategy

CASES = [c for c in collect() if isinstance(c.target(c.model()), BaseSelfSupervisor)]
NAMES = [case.name for case in CASES if case.name != 'cae']


def test_cae_is_refused(tmp_path):
    cae = next(case for case in CASES if case.name == 'cae')
    with pytest.raises(ValueError, match='CAE moves a teacher during the forward pass'):
        FullyShardStrategy(work_dir=str(tmp_path))._wrap_model(cae.attached())


@pytest.mark.slow
def test_sharded_as_ddp(tmp_path, free_port):
    arguments = (free_port, str(tmp_path), NAMES)
    torch.multiprocessing.spawn(work, args=arguments, nprocs=2)
    for name in NAMES:
        (ddp, weights), (sharded, others) = torch.load(tmp_path / f'{name}.pt')
        assert len(ddp) == STEPS
        np.testing.assert_allclose(sharded, ddp, rtol=1e-5, atol=1e-5, err_msg=name)
        for key, value in weights.items():
            assert torch.allclose(others[key], value, rtol=1e-5, atol=1e-5), (name, key)

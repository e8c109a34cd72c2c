# SPDX-License-Identifier: Apache-2.0
"""iBOT on several processes: centres are of all, and a teacher in shards is refused."""

import os

import pytest
import torch
import torch.distributed as dist
from mmengine.model import MMDistributedDataParallel
from processes import on_two_processes
from small_ibot import batch, build, still
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard


def two_steps(rank, port, path):
    """What each of two processes does: its own images, gradients averaged by DDP."""
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group('gloo', rank=rank, world_size=2)
    model = still(build())
    wrapped = MMDistributedDataParallel(model, device_ids=None, broadcast_buffers=False)
    for step in range(2):  # a parameter left out of the first step is reported in the second
        crops, samples = batch(seed=rank, ratios=((0.5, 0.0, 0.8), (0.0, 0.0))[rank])
        losses = wrapped(crops, samples, mode='loss')
        if step == 0:
            torch.save([model.head.center, model.head.patch_center], f'{path}/{rank}.pth')
        model.parse_losses(losses)[0].backward()
    dist.destroy_process_group()


def test_centres_are_means_over_all_images(tmp_path, free_port):
    """Of which one process has three, the other two."""
    on_two_processes(two_steps, free_port, tmp_path)

    centers = [torch.load(tmp_path / f'{rank}.pth') for rank in range(2)]
    own = []
    for rank in range(2):  # what each process would have by itself
        model = still(build())
        model.loss(*batch(seed=rank, ratios=((0.5, 0.0, 0.8), (0.5, 0.0))[rank]))
        own.append([model.head.center, model.head.patch_center])
    for kind in range(2):
        assert torch.equal(centers[0][kind], centers[1][kind])
        expected = (3 * own[0][kind] + 2 * own[1][kind]) / 5
        torch.testing.assert_close(centers[0][kind], expected, rtol=1e-6, atol=1e-6)
        assert (own[0][kind] - own[1][kind]).abs().max() > 1e-3


class Around(nn.Module):
    """Somebody's own module around the framework."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *batch):
        return self.inner.loss(*batch)


@pytest.fixture
def mesh():
    """Of one process, whose shards are whole."""
    dist.init_process_group('gloo', rank=0, world_size=1, store=dist.HashStore())
    yield dist.init_device_mesh('cpu', (1,))
    dist.destroy_process_group()


def test_in_shards_of_a_module_around_it_the_teacher_would_stay(mesh):
    model = Around(build())
    fully_shard(model, mesh=mesh)
    with pytest.raises(RuntimeError, match='call fully_shard on the IBOT itself'):
        model.inner.move_teacher_first()
    with pytest.raises(RuntimeError, match='call fully_shard on the IBOT itself'):
        model.train()(*batch())


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('around', [False, True])
def test_the_first_fsdp_is_refused(around, mesh):
    model = build()
    model = FullyShardedDataParallel(
        Around(model) if around else model, device_id=torch.device('cpu'), use_orig_params=True
    )
    with pytest.raises(RuntimeError, match='not the first FSDP'):
        model.train()(*batch()) if around else model.train()(*batch(), mode='loss')


def test_a_student_alone_in_shards_is_refused(mesh):
    model = build()
    fully_shard(model.backbone, mesh=mesh)
    with pytest.raises(RuntimeError, match='call fully_shard on the IBOT itself'):
        model(*batch(), mode='loss')


def test_in_shards_of_its_own_the_teacher_moves(mesh):
    whole = build()
    whole.loss(*batch())
    model = build()
    fully_shard(model, mesh=mesh)
    with pytest.raises(RuntimeError, match='then its move_teacher_first'):
        model.loss(*batch())
    model.move_teacher_first()
    model(*batch(), mode='loss')
    model.reshard()  # gathered parameters are thrown away
    assert model.teacher.steps == whole.teacher.steps
    found = {name: p.full_tensor() for name, p in model.teacher.named_parameters()}
    torch.testing.assert_close(found, dict(whole.teacher.named_parameters()))

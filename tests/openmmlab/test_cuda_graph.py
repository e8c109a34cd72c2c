# SPDX-License-Identifier: Apache-2.0
"""All of the hook but the graph, in whose place an ordinary pass stands where there is no GPU."""

import copy

import pytest
import survivor
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmpretrain.structures import DataSample

from prmim_adapters import set_throw_ratio
from prmim_adapters.openmmlab import cuda_graph
from prmim_adapters.openmmlab.cuda_graph import CUDAGraphHook, tensors_of
from prmim_adapters.openmmlab.finite_loss import FiniteLossHook, NonFiniteLossError


class Ordinary:
    """A ``CapturedPass`` without a graph: reads from tensors of its own, and keeps its gradients."""

    keys: list = []

    def __init__(self, model):
        self.model = model

    def __call__(self, tensors, run, key=None):
        self.keys.append((key, [tuple(t.shape) for t in tensors]))
        assert all(p.grad is None for p in self.model.parameters()), 'gradients were not cleared'
        return run([tensor.clone() for tensor in tensors])


@pytest.fixture
def without_a_gpu(monkeypatch):
    monkeypatch.setattr(cuda_graph, 'CapturedPass', Ordinary)
    monkeypatch.setattr(cuda_graph, 'refuse', lambda runner: None)
    monkeypatch.setattr(Ordinary, 'keys', [])


def weights_after(folder, hooks, kind='mae-by-epoch'):
    torch.manual_seed(0)
    runner = survivor.build(kind, folder, hooks=hooks)
    runner.train()
    return runner


def test_a_run_with_the_hook_ends_where_one_without_does(tmp_path, without_a_gpu):
    plain = weights_after(tmp_path / 'plain', [])
    ours = weights_after(tmp_path / 'hook', [CUDAGraphHook(), FiniteLossHook()])
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, ours.model.state_dict()[name]), name
    assert len(Ordinary.keys) == ours.max_iters
    assert 'train_step' not in vars(ours.model)
    history = [run.message_hub.get_scalar('train/loss').data[0] for run in (plain, ours)]
    assert history[0].tolist() == history[1].tolist()


def test_a_pass_reads_the_tensors_that_it_is_given(tmp_path, monkeypatch, without_a_gpu):
    """A graph reads from places of its own, into which each batch is copied."""

    class Zeros(Ordinary):
        def __call__(self, tensors, run, key=None):
            return super().__call__([torch.zeros_like(t) for t in tensors], run, key)

    monkeypatch.setattr(cuda_graph, 'CapturedPass', Zeros)
    seen = []
    runner = survivor.build('mae-by-epoch', tmp_path, hooks=[CUDAGraphHook()])
    runner.model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    runner.train()
    assert seen and not any(images.any() for images in seen)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, monkeypatch, without_a_gpu):
    """A replay calls no module, so the step shows the loss to the hook itself."""

    class Break(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 3:
                runner.model.neck.decoder_blocks[0].attn.proj.bias.data[0] = float('nan')

    finite = FiniteLossHook()

    class Silent(Ordinary):
        def __call__(self, tensors, run, key=None):
            for handle in finite.handles:  # as if no module were called
                handle.remove()
            return super().__call__(tensors, run, key)

    monkeypatch.setattr(cuda_graph, 'CapturedPass', Silent)
    with pytest.raises(NonFiniteLossError, match=r'iteration 3: .*neck.decoder_blocks.0.attn.proj'):
        weights_after(tmp_path, [Break(), CUDAGraphHook(), finite])


def test_another_ratio_is_another_graph(tmp_path, without_a_gpu):
    class Change(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            set_throw_ratio(runner.model, 0.5 if runner.iter < 2 else 0.25)

    runner = survivor.build('mae-by-epoch', tmp_path, hooks=[Change(), CUDAGraphHook()])
    runner.train()
    assert [key for key, _ in Ordinary.keys[:4]] == [(0.5,), (0.5,), (0.25,), (0.25,)]


def test_a_copy_of_the_model_takes_ordinary_steps(tmp_path, without_a_gpu):
    """As the hooks make it that count, show or evaluate."""
    runner = survivor.build('mae-by-epoch', tmp_path, hooks=[])
    hook = CUDAGraphHook()
    hook.before_train(runner)
    clone = copy.deepcopy(runner.model)
    assert clone.train_step.args == (clone,)
    assert clone.train_step.func is type(clone).train_step
    hook.after_train(runner)
    assert runner.model.train_step.__func__ is type(runner.model).train_step


def test_tensors_of_a_batch_and_others_in_their_places():
    samples = [DataSample().set_mask(torch.full((2, 2), i)) for i in range(2)]
    data = dict(inputs=[torch.zeros(2, 3), torch.ones(2, 3)], data_samples=samples)
    tensors = tensors_of(data)
    assert [tuple(t.shape) for t in tensors] == [(2, 3), (2, 3), (2, 2), (2, 2)]
    other = cuda_graph._with_tensors(data, [t + 1 for t in tensors])
    assert other['inputs'][1][0, 0] == 2 and other['data_samples'][1].mask[0, 0] == 2
    assert samples[1].mask[0, 0] == 1


def test_other_things_in_a_data_sample_are_refused():
    sample = DataSample()
    sample.weight = 0.5
    with pytest.raises(TypeError, match="'weight' of a data sample is float: only tensors"):
        tensors_of(dict(data_samples=[sample]))
    with pytest.raises(TypeError, match="'something' of a batch is float: only tensors can differ"):
        tensors_of(dict(inputs=torch.zeros(1), data_samples=None, weight=0.5))


def steps_of_its_own(runner):
    class Own(type(runner.model)):
        def train_step(self, data, optim_wrapper):
            return super().train_step(data, optim_wrapper)

    runner.model.__class__ = Own


class OwnWrapper(OptimWrapper):
    def update_params(self, loss, step_kwargs=None, zero_kwargs=None):
        super().update_params(loss, step_kwargs, zero_kwargs)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            steps_of_its_own,
            'Own has a train_step of its own, which would not be called: do without',
        ),
        (
            lambda runner: runner.optim_wrapper.update(type=OwnWrapper),
            'OwnWrapper has an update_params of its own, which would not be called: use OptimWrapper',
        ),
        (lambda runner: None, 'the model is on cpu: train on a GPU, or leave the hook out'),
        (
            lambda runner: runner.optim_wrapper.update(accumulative_counts=2),
            'accumulative_counts=2: do not accumulate gradients',
        ),
    ],
)
def test_runs_that_cannot_be_captured_are_refused_before_training(
    tmp_path, monkeypatch, change, message
):
    runner = survivor.build('mae-by-epoch', tmp_path, hooks=[CUDAGraphHook()])
    change(runner)
    if 'on cpu' not in message:
        monkeypatch.setattr(cuda_graph, '_device', lambda model: torch.device('cuda'))
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert runner.iter == 0


def test_an_algorithm_that_counts_its_steps_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_graph, '_device', lambda model: torch.device('cuda'))
    runner = survivor.build('ibot', tmp_path, hooks=[CUDAGraphHook()])
    with pytest.raises(ValueError, match=r'the model is IBOT, whose steps may wait .*one of MAE, '):
        runner.train()

# SPDX-License-Identifier: Apache-2.0
"""Each shim against the installed libraries, in one process with shims and one without."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prmim_adapters.upstream.launcher import UnknownShimError, run_script
from prmim_adapters.upstream.shims import SHIMS

USES = {
    'torch-six': """
        from torch._six import container_abcs, inf, string_classes
        assert inf == float('inf') and isinstance('a', string_classes)
        assert isinstance([], container_abcs.Sequence)
    """,
    'numpy-float': """
        import numpy as np
        assert np.arange(2, dtype=np.float).dtype == np.float64
    """,
    'timm-version': """
        import timm
        assert timm.__version__ == '0.3.2'
        assert not timm.__version__ != '0.3.2'
        assert int(timm.__version__.split('.')[0]) >= 1 and timm.__version__ != '0.4.9'
    """,
    'timm-block': """
        import pickle, torch
        from timm.models.vision_transformer import Block
        block = Block(8, 2, 4.0, qkv_bias=True, qk_scale=None).eval()
        twin = pickle.loads(pickle.dumps(block))
        x = torch.randn(1, 3, 8)
        assert torch.equal(block(x), twin(x))
        try:
            Block(8, 2, qk_scale=0.5)
        except TypeError as error:
            assert 'qk_scale=0.5' in str(error)
        else:
            raise AssertionError
    """,
    'timm-vit-head': """
        import torch
        from timm.models.vision_transformer import VisionTransformer
        sizes = dict(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3)

        class Pooling(VisionTransformer):
            def forward_features(self, x):
                return super().forward_features(x)[:, 0]

        torch.manual_seed(0)
        plain, pooling = VisionTransformer(**sizes).eval(), Pooling(**sizes).eval()
        pooling.load_state_dict(plain.state_dict())
        x = torch.randn(2, 3, 8, 8)
        assert torch.equal(plain(x), pooling(x))
    """,
    'timm-weight-decay': """
        import torch
        import timm.optim.optim_factory as optim_factory
        groups = optim_factory.add_weight_decay(torch.nn.Linear(2, 2), 0.05)
        assert sorted(g['weight_decay'] for g in groups) == [0.0, 0.05]
    """,
    'timm-optimizers': """
        from timm.optim.nadam import Nadam
        from timm.optim.novograd import NovoGrad
        from timm.optim.radam import RAdam
        for optimizer in (Nadam, NovoGrad, RAdam):
            try:
                optimizer([], lr=0.1)
            except ImportError as error:
                assert '--opt' in str(error)
    """,
    'timm-interpolation': """
        from torchvision.transforms import InterpolationMode
        from timm.data.transforms import _pil_interp
        assert _pil_interp('bicubic') == InterpolationMode.BICUBIC
    """,
    'timm-cosine': """
        import torch
        from timm.scheduler.cosine_lr import CosineLRScheduler
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        scheduler = CosineLRScheduler(optimizer, t_initial=10, t_mul=1.0, lr_min=0.0,
                                      cycle_limit=1, t_in_epochs=False)
        scheduler.step_update(5)
        assert abs(optimizer.param_groups[0]['lr'] - 0.5) < 1e-6
    """,
    'minkowski': """
        from MinkowskiEngine import MinkowskiDepthwiseConvolution, SparseTensor
        from MinkowskiOps import to_sparse
        import torch
        assert isinstance(to_sparse(torch.ones(1, 2, 8, 8)), SparseTensor)
    """,
    'resume': """
        import argparse, io, os, torch
        forced = os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)
        file = io.BytesIO()
        import numpy as np
        torch.save({'args': argparse.Namespace(epochs=3), 'lr': np.float64(0.5)}, file)
        file.seek(0)
        loaded = torch.load(file)
        assert loaded['args'].epochs == 3 and loaded['lr'] == 0.5
        from fractions import Fraction
        file = io.BytesIO()
        torch.save(Fraction(1, 2), file)
        file.seek(0)
        try:
            torch.load(file)
        except Exception as error:
            assert 'weights_only' in str(error).lower() or 'Weights only' in str(error)
        else:
            raise AssertionError('anything is loaded')
        finally:
            os.environ.update({} if forced is None else {'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD': forced})
    """,
    'trusted-resume': """
        # from config import get_config
        import io, torch
        from fractions import Fraction
        file = io.BytesIO()
        torch.save(Fraction(1, 2), file)
        file.seek(0)
        assert torch.load(file) == Fraction(1, 2)
    """,
    'local-rank': """
        import argparse
        parser = argparse.ArgumentParser()
        parser.add_argument('--local_rank', type=int, required=True)
        assert parser.parse_args().local_rank == 0
    """,
    'process-group': """
        import torch
        torch.distributed.init_process_group('gloo', init_method='env://')
        assert torch.distributed.get_world_size() == 1
    """,
}
CPU = """
    import torch
    torch.cuda.synchronize()
    torch.cuda.set_device(0)
    model = torch.nn.Linear(2, 2).cuda()
    torch.distributed.init_process_group(backend='nccl', init_method='env://', rank=-1,
                                         world_size=-1)
    model = torch.nn.parallel.DistributedDataParallel(model, device_ids=[0],
                                                      broadcast_buffers=False)
    model(torch.tensor([[1.0, 2.0]], device='cuda').cuda(non_blocking=True)).sum().backward()
    assert model.module.weight.grad.tolist() == [[1.0, 2.0], [1.0, 2.0]]
"""


def launch(script: Path, *arguments: str, without: tuple[str, ...] = (), feed: str = ''):
    code = (
        'import sys\nfrom prmim_adapters.upstream.launcher import run_script\n'
        f'run_script({str(script)!r}, sys.argv[1:], {without!r})'
    )
    return subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code, *arguments],
        capture_output=True,
        text=True,
        input=feed,
    )


def written(folder: Path, code: str, name: str = 'main.py') -> Path:
    lines = code.strip('\n').splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    (folder / name).write_text('\n'.join(line[indent:] for line in lines) + '\n')
    return folder / name


DRIVER = """
    import json, sys, textwrap, traceback
    # what shims look for in a script: from config import get_config
    # parser.add_argument('--local_rank', required=True); init_process_group()
    outcomes = {}
    for name, code in json.loads(sys.stdin.read()).items():
        try:
            exec(textwrap.dedent(code), {'__name__': '__main__'})
            outcomes[name] = 'works'
        except BaseException:
            outcomes[name] = traceback.format_exc()
    print(json.dumps(outcomes))
"""


@pytest.fixture(scope='module')
def outcomes(tmp_path_factory):
    """What becomes of every use with all shims, and without any: name to 'works' or an error."""
    script = written(tmp_path_factory.mktemp('driver'), DRIVER)
    with_all = launch(script, feed=json.dumps(USES))
    without = launch(script, without=tuple(SHIMS), feed=json.dumps(USES))
    assert with_all.returncode == without.returncode == 0, with_all.stderr + without.stderr
    assert without.stderr.startswith('prmim run: no shim needed')
    return json.loads(with_all.stdout), json.loads(without.stdout)


@pytest.mark.parametrize('name', USES)
def test_shim(outcomes, name):
    with_all, without = outcomes
    assert with_all[name] == 'works', with_all[name]
    assert without[name] != 'works'


@pytest.mark.skipif(torch.cuda.is_available(), reason='for machines without CUDA')
def test_cpu(tmp_path):
    script = written(tmp_path, CPU)
    others = tuple(name for name in SHIMS if name not in ('cpu', 'process-group'))
    done = launch(script, without=others)
    assert done.returncode == 0, done.stderr


def test_every_shim_is_tested_and_described():
    assert {*USES, 'cpu'} == set(SHIMS)
    guide = (Path(__file__).parents[2] / 'docs' / 'upstream.md').read_text()
    for name, shim in SHIMS.items():
        assert shim.__doc__
        assert f'`{name}`' in guide


def test_a_script_runs_as_with_python(tmp_path):
    """Its folder comes first on the path, arguments arrive, it is __main__, no file changes."""
    (tmp_path / 'helper.py').write_text('WHERE = __file__\n')
    script = written(
        tmp_path,
        """
        import sys
        import helper
        assert __name__ == '__main__' and sys.argv[1:] == ['--x', '1', '--', '-h'], sys.argv
        print(helper.WHERE)
        """,
    )
    before = script.read_bytes()
    done = launch(script, '--x', '1', '--', '-h', without=tuple(SHIMS))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / 'helper.py')
    assert script.read_bytes() == before


def test_local_rank_of_the_launcher_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '3')
    required = written(tmp_path, "p.add_argument('--local_rank', required=True)", 'a.py')
    optional = written(tmp_path, "p.add_argument('--local_rank', default=-1)", 'b.py')
    for script, given, expected in (
        (required, [], ['--local_rank', '3']),
        (required, ['--local-rank=1'], ['--local_rank=1']),
        (required, ['--local_rank', '2'], ['--local_rank', '2']),
        (optional, ['--epochs', '1'], ['--epochs', '1']),
    ):
        arguments = list(given)
        assert SHIMS['local-rank'](script, arguments) == (given != expected)
        assert arguments == expected


def test_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'gone\.py: no such script'):
        run_script(str(tmp_path / 'gone.py'), [])
    script = written(tmp_path, 'pass')
    with pytest.raises(UnknownShimError, match=r'no shim called torch-seven; there are torch-six'):
        run_script(str(script), [], without=['torch-seven'])


def test_list_shims():
    from click.testing import CliRunner

    from prmim_adapters.commands.run import run

    shown = CliRunner().invoke(run, ['--list-shims'])
    assert shown.exit_code == 0
    assert [line.split()[0] for line in shown.output.splitlines()] == list(SHIMS)

# SPDX-License-Identifier: Apache-2.0
"""Each shim against the installed libraries, in one process with shims and one without."""

import json
from pathlib import Path

import pytest
import torch
from launched import launch, written

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
    'torchvision-image-size': """
        import torch
        from PIL import Image
        from torchvision.transforms import functional
        assert functional._get_image_size(torch.zeros(3, 4, 6)) == [6, 4]
        assert functional._get_image_size(Image.new('RGB', (6, 4))) == [6, 4]
    """,
    'scipy-interp2d': """
        import numpy as np
        from scipy import interpolate
        x, y = [-5.0, -3, -1, 0, 1, 3, 5], [-2.0, -1, 0, 2, 4]

        def cubic(x, y):
            x, y = np.meshgrid(x, y)
            return x**3 - 2 * x * y**2 + 3 * y + 1

        smooth = interpolate.interp2d(x, y, cubic(x, y), kind='cubic')
        at_x, at_y = np.arange(-4, 5), np.array([-1.5, 0.5, 3])
        assert smooth(at_x, at_y).shape == (3, 9)
        assert np.allclose(smooth(at_x, at_y), cubic(at_x, at_y))
        assert np.allclose(smooth([2, -7], [9]), cubic([-5, 2], [4])[0])
        ramp = interpolate.interp2d([0, 1], [0, 1, 2], np.arange(6))
        assert np.allclose(ramp(0.5, 1.5), [3.5])
    """,
    'minkowski': """
        from MinkowskiEngine import MinkowskiDepthwiseConvolution, SparseTensor
        from MinkowskiOps import to_sparse
        import torch
        assert isinstance(to_sparse(torch.ones(1, 2, 8, 8)), SparseTensor)
    """,
    'resume': """
        import argparse, io, pickle, torch
        from fractions import Fraction
        import numpy as np
        from yacs.config import CfgNode

        def loaded(value):
            file = io.BytesIO()
            torch.save(value, file)
            file.seek(0)
            return torch.load(file)

        config = CfgNode({'TRAIN': CfgNode({'EPOCHS': 3})})
        config.freeze()
        found = loaded({'args': argparse.Namespace(epochs=3), 'lr': np.float64(0.5),
                        'config': config})
        assert found['args'].epochs == 3 and found['lr'] == 0.5
        assert found['config']['TRAIN']['EPOCHS'] == 3
        try:
            loaded(Fraction(1, 2))
        except pickle.UnpicklingError as error:
            assert 'Weights only' in str(error)
        else:
            raise AssertionError('anything is loaded')
        assert torch.hub.load_state_dict_from_url.keywords == {'weights_only': True}
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

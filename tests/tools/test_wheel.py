# SPDX-License-Identifier: Apache-2.0
"""The wheel where nothing else is than what it declares, and no checkout.

An environment of a few links stands for an install: the packages that the wheel's metadata name for
an extra, with all that those need, out of the environment of the tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import prmim_adapters

pytestmark = pytest.mark.package

ROOT = Path(__file__).parents[2]
NAME = 'prmim-adapters'
METADATA = f'prmim_adapters-{prmim_adapters.__version__}.dist-info/METADATA'
FIVE_STEPS = """
import sys
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining
import prmim_adapters as prmim
config = ViTMAEConfig(
    hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=64,
    patch_size=8, decoder_hidden_size=32, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
    decoder_intermediate_size=64)
torch.manual_seed(0)
model = prmim.attach(ViTMAEForPreTraining(config), throw_ratio=0.5)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
images = torch.ones(4, 3, 64, 64)
for _ in range(5):
    loss = model(images).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(float(loss))
assert not {'mmengine', 'mmpretrain', 'timm', 'fvcore', 'matplotlib'} & set(sys.modules)
"""
SAMPLED = """
import sys
import torch
import prmim_adapters.core.sampling as sampling
mask = torch.arange(64).remainder(4).bool()[None]
kept = sampling.farthest(mask, 16, (8, 8), torch.arange(64)[None] * 7919 % 1009)
assert 'numpy' not in sys.modules, 'the environment is not bare'
print(kept.nonzero()[:, 1].tolist())
"""
SMALL = [
    'train_dataloader.batch_size=8',
    'train_cfg.max_epochs=2',
    'model.framework.backbone.arch.num_layers=1',
    'model.framework.neck.decoder_depth=1',
]


class Environment:
    """A virtual environment with the wheel and what an extra of it needs."""

    def __init__(self, folder: Path, wheel: Path, extra: str = '', more: tuple[str, ...] = ()):
        self.folder = folder
        run(sys.executable, '-m', 'venv', '--without-pip', folder / 'venv')
        self.bin = folder / 'venv' / 'bin'
        site = next((folder / 'venv' / 'lib').glob('python*')) / 'site-packages'
        for distribution in closure([*declared(wheel, extra), *map(Requirement, more)]):
            link(distribution, site)
        pip = (sys.executable, '-m', 'pip', '--python', self.bin / 'python')
        run(*pip, 'install', '--no-deps', '--no-index', '--quiet', wheel)

    def __call__(self, program: str, *arguments: object, code: int = 0) -> str:
        """What a program of the environment prints, run in an empty folder beside it."""
        work = self.folder / 'work'
        work.mkdir(exist_ok=True)
        return run(self.bin / program, *arguments, cwd=work, code=code)


def run(*command: object, cwd: Path | None = None, code: int = 0) -> str:
    names = ('PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV')
    env = {key: value for key, value in os.environ.items() if key not in names}
    env['PYTHONWARNINGS'] = 'ignore'
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=cwd, env=env)
    printed = done.stdout + done.stderr
    assert done.returncode == code, printed[-4000:]
    return printed


def declared(wheel: Path, extra: str) -> list[Requirement]:
    """What the wheel asks for, with an extra."""
    text = zipfile.ZipFile(wheel).read(METADATA).decode()
    found = [line.partition(': ')[2] for line in text.splitlines() if line[:14] == 'Requires-Dist:']
    return wanted(list(map(Requirement, found)), {extra})


def wanted(requirements: list[Requirement], extras: set[str]) -> list[Requirement]:
    """Those that hold for extras, with those of this distribution's own extras in their place."""
    found = []
    for requirement in requirements:
        marker = requirement.marker
        if marker and not any(marker.evaluate({'extra': extra}) for extra in extras or {''}):
            continue
        if requirement.name == NAME:
            found += wanted(requirements, requirement.extras)
        else:
            found.append(requirement)
    return found


def closure(requirements: list[Requirement]) -> list[metadata.Distribution]:
    """The installed distributions that requirements lead to; one that is not installed is left out."""
    found: dict[str, metadata.Distribution] = {}
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        name = requirement.name.lower().replace('_', '-')
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        needs = map(Requirement, found[name].requires or [])
        extras = requirement.extras or {''}
        waiting += [
            need
            for need in needs
            if not need.marker or any(need.marker.evaluate({'extra': e}) for e in extras)
        ]
    return list(found.values())


def link(distribution: metadata.Distribution, site: Path) -> None:
    """Link the top-level folders and files of a distribution into ``site``."""
    for top in {file.parts[0] for file in distribution.files or []} - {'..', '__pycache__'}:
        target = site / top
        if not target.exists():
            target.symlink_to(Path(str(distribution.locate_file(top))))


@pytest.fixture(scope='module')
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel built from it."""
    folder = tmp_path_factory.mktemp('built')
    run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', folder, ROOT)
    return folder


@pytest.fixture(scope='module')
def wheel(built: Path) -> Path:
    return next(built.glob('*.whl'))


@pytest.fixture(scope='module')
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Torch and click."""
    return Environment(tmp_path_factory.mktemp('bare'), wheel)


@pytest.fixture(scope='module')
def openmmlab(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp('openmmlab'), wheel, 'openmmlab')


def test_sdist_and_wheel_hold_everything(built: Path, wheel: Path) -> None:
    tracked = run('git', 'ls-files', cwd=ROOT).split('\n') if (ROOT / '.git').exists() else []
    shipped = [f for f in tracked if f.startswith(('configs/', 'sweeps/', 'patches/'))]
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f'prmim_adapters/.mim/{f}' for f in (*shipped, 'model-index.yml')} <= names
    assert {f for f in tracked if f.startswith('prmim_adapters/')} <= names
    with tarfile.open(next(built.glob('*.tar.gz'))) as archive:
        inside = {name.partition('/')[2] for name in archive.getnames()}
    left_out = {f for f in tracked if f and not f.startswith('.')} - inside
    assert left_out == set()


def test_description_has_no_link_into_the_repository(wheel: Path) -> None:
    text = zipfile.ZipFile(wheel).read(METADATA).decode()
    assert 'masked image modeling' in text
    links = [part.partition(')')[0] for part in text.split('](')[1:]]
    assert [link for link in links if not link.startswith(('https://', '#'))] == []


def test_torch_and_click_alone(bare: Environment) -> None:
    shown = bare('prmim', '--help')
    assert all(f'\n  {name} ' in shown for name in ('configs', 'cost', 'list', 'patch', 'run'))
    assert 'cross_attention' in bare('prmim', 'list')
    copied = bare('prmim', 'configs', '--copy', 'mae_prmim_demo', '--out', 'mine').split()
    assert copied[0] == 'mine/_demo_/mae_prmim_demo.py'
    assert all((bare.folder / 'work' / path).is_file() for path in copied)


def test_a_missing_extra_is_named(bare: Environment, openmmlab: Environment) -> None:
    shown = bare('prmim', 'cost', 'mae_prmim_vitb', code=2)
    assert "pip install 'prmim-adapters[openmmlab]'" in shown
    assert 'Traceback' not in shown
    (openmmlab.folder / 'work').mkdir(exist_ok=True)
    (openmmlab.folder / 'work' / 'spec.yaml').write_text('')
    shown = openmmlab('prmim', 'sweep', 'spec.yaml', code=2)
    assert "scikit-learn not installed: pip install 'prmim-adapters[sweep]'" in shown


def test_sampling_without_numpy_gives_the_same(bare: Environment) -> None:
    import torch

    from prmim_adapters.core import sampling

    mask = torch.arange(64).remainder(4).bool()[None]
    kept = sampling.farthest(mask, 16, (8, 8), torch.arange(64)[None] * 7919 % 1009)
    assert (
        json.loads(bare('python', '-c', SAMPLED).splitlines()[-1]) == kept.nonzero()[:, 1].tolist()
    )


def test_transformers_alone(wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path, wheel, more=('transformers',))
    losses = [float(line) for line in environment('python', '-c', FIVE_STEPS).splitlines()[-5:]]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 5


def test_mim_trains_without_a_checkout(openmmlab: Environment) -> None:
    found = openmmlab('python', '-m', 'mim', 'search', NAME, '--field', 'epochs')
    assert 'mae_prmim_vitb_8xb512-amp-300e_in1k' in found
    openmmlab('python', '-m', 'prmim_adapters.demo_data', 'data/demo', '--stride', 448)
    command = ('-m', 'mim', 'train', NAME, '_demo_/mae_prmim_demo.py', '--work-dir', 'work')
    openmmlab('python', *command, '--cfg-options', *SMALL)
    assert (openmmlab.folder / 'work' / 'work' / 'last_checkpoint').exists()

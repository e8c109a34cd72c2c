# SPDX-License-Identifier: Apache-2.0
"""Which stages there are, in order of importance, and how long each is likely to take."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / 'results'

BUILD_SECONDS = 2.0  # a ViT-B on the CPU, moved to the device, with its batch
COMPILE_SECONDS = 25.0  # a model, forward and backward
EVIDENCE_SECONDS = 60.0  # less would finish no point


@dataclass(frozen=True)
class Stage:
    """One measurement, with a result file of its own.

    Attributes:
        name: key, and name of the file.
        title: what the progress shows.
        task: dotted path of a function, called with a context and ``options``.
        options: of the task.
        slow: how many times longer a multiply-add takes than in MAE.
        seconds: estimate of a stage that is not made of steps.
        needs: module without which it is skipped.
    """

    name: str
    title: str
    task: str
    options: dict[str, Any] = field(default_factory=dict)
    slow: float = 1.0
    seconds: float | None = None
    needs: str = 'torch'


def steps(
    name: str,
    title: str,
    config: str,
    batch: int,
    slow: float = 1.0,
    needs: str = 'torch',
    **options: Any,
) -> Stage:
    """Interleaved steps of a config: framework, plain partial reconstruction, PR-MIM."""
    options = {'config': config, 'batch': batch, **options}
    return Stage(name, title, 'gpu_stages.steps.bench', options, slow, needs=needs)


def largest(name: str, title: str, config: str, first: int, slow: float = 1.0) -> Stage:
    """Largest batch of framework and PR-MIM."""
    return Stage(name, title, 'gpu_stages.steps.largest', {'config': config, 'first': first}, slow)


MAE, MAE_LARGE = 'mae_prmim_vitb', 'mae_prmim_vitl'
SIMMIM, SWIN = 'simmim_prmim_vitb', 'simmim_prmim_swinb'
LAST_BLOCK = 'simmim_prmim_vitb_last_block'
FCMAE, SPARK = 'convnextv2_prmim_tiny', 'spark_prmim_convnextv2_tiny'
IBOT, IBOT_RANDOM = 'ibot_prmim_vits', 'ibot_prmim_vits_random'
MASKFEAT, BEIT, BEIT2 = 'maskfeat_prmim_vitb', 'beit_prmim_vitb', 'beitv2_prmim_vitb'
MILAN, CAE = 'milan_prmim_vitb', 'cae_prmim_vitb'
ITPN, ITPN_CLIP = 'itpn_prmim_pixel_hivitb', 'itpn_prmim_clip_hivitb'
ADAPTERS = (
    MAE, SIMMIM, LAST_BLOCK, SWIN, MASKFEAT, BEIT, BEIT2, FCMAE, SPARK, IBOT, IBOT_RANDOM,
    MILAN, CAE, ITPN, ITPN_CLIP,
)  # fmt: skip
VIDEOMAE, HIERA = (f'gpu_stages.transformers_models:{name}' for name in ('videomae', 'hiera'))
COUNTED = {VIDEOMAE: 'transformers VideoMAE-B', HIERA: 'transformers Hiera-B'}
"""Models without a config, by their names in results/declared.json."""

CALIBRATION = Stage(
    'calibration', 'speed of the device', 'gpu_stages.calibrate.calibrate', seconds=15.0
)

STAGES: tuple[Stage, ...] = (
    Stage(
        'sampler', 'farthest point sampling, bit for bit', 'gpu_stages.sampler.compare', seconds=15.0
    ),
    Stage(
        'agreement', 'loss and gradients as on the CPU', 'gpu_stages.agreement.compare',
        {'configs': ADAPTERS}, seconds=40.0,
    ),
    Stage(
        'graph', 'a whole step in one graph', 'gpu_stages.agreement.compile_steps',
        {'configs': (MAE, SIMMIM, SWIN), 'inductor': (MAE,)}, seconds=45.0,
    ),
    steps('mae', 'MAE ViT-B/16', MAE, 512, ratios=(0.5, 0.7), peer=True),
    steps('mae_explicit', 'MAE ViT-B/16, explicit attention', MAE, 512, 1.6, attention='explicit'),
    steps('mae_compiled', 'MAE ViT-B/16, torch.compile', MAE, 512, compiled=True),
    steps('simmim_vit', 'SimMIM ViT-B/16', SIMMIM, 256, 1.3),
    steps('simmim_swin', 'SimMIM Swin-B at 192', SWIN, 128, 2.0),
    steps('simmim_swin_512', 'SimMIM Swin-B at 192, larger batch', SWIN, 512, 2.0),
    steps('mae_large', 'MAE ViT-L/16', MAE_LARGE, 256),
    steps('fcmae', 'FCMAE ConvNeXt V2 tiny', FCMAE, 256, 4.0, dense=True),
    steps('ibot', 'iBOT ViT-S/16, published masks', IBOT, 64, 4.0, by_length=True),
    steps('ibot_random', 'iBOT ViT-S/16, random masks', IBOT_RANDOM, 64, 3.0),
    steps('spark', 'SparK ConvNeXt V2 tiny', SPARK, 128, 3.0, dense=True),
    largest('largest_mae', 'MAE ViT-B/16, largest batch', MAE, 256),
    largest('largest_simmim', 'SimMIM ViT-B/16, largest batch', SIMMIM, 128, 1.3),
    Stage(
        'light', 'sampling, partition, aggregation', 'gpu_stages.light.measure',
        {'config': MAE, 'images': 512}, seconds=20.0,
    ),
    Stage(
        'profile', 'counted against measured', 'gpu_stages.profile.profile_steps',
        {'configs': ((MAE, 256), (SIMMIM, 128))}, seconds=30.0,
    ),
    Stage(
        'profile_swin', 'the same of Swin-B', 'gpu_stages.profile.profile_steps',
        {'configs': ((SWIN, 128),), 'page': 'profile_swin.txt'}, seconds=30.0,
    ),
    Stage(
        'captured', 'a CUDA graph gives what a step gives', 'gpu_stages.agreement.capture_steps',
        {'configs': (MAE, SIMMIM, SWIN, MASKFEAT, FCMAE, MILAN, ITPN)}, seconds=30.0,
    ),
    steps('swin_captured', 'SimMIM Swin-B at 192, CUDA graphs', SWIN, 128, 1.5, captured=True),
    steps('itpn_captured', 'iTPN HiViT-B, pixels, CUDA graphs', ITPN, 256, 1.3, captured=True),
    steps('fcmae_captured', 'FCMAE ConvNeXt V2 tiny, CUDA graphs', FCMAE, 256, 3.0, captured=True),
    steps('mae_captured', 'MAE ViT-B/16, CUDA graphs', MAE, 512, captured=True),
    Stage(
        'profile_slow', 'the same of iTPN and CAE', 'gpu_stages.profile.profile_steps',
        {'configs': ((ITPN, 128), (CAE, 64)), 'page': 'profile_slow.txt'}, seconds=50.0,
    ),
    steps('milan', 'MILAN ViT-B/16', MILAN, 256),
    steps('itpn_clip', 'iTPN HiViT-B, CLIP', ITPN_CLIP, 128, 1.3, ratios=(0.25,)),
    steps('itpn_pixel', 'iTPN HiViT-B, pixels', ITPN, 256, 1.3),
    steps('cae', 'CAE ViT-B/16', CAE, 128, 1.3, ratios=(0.25,)),
    steps('videomae', 'VideoMAE-B of transformers', VIDEOMAE, 32, needs='transformers'),
    steps('hiera', 'Hiera-B of transformers, images', HIERA, 128, 1.5, needs='transformers'),
    steps('mae_ratios', 'MAE ViT-B/16, other ratios', MAE, 512, ratios=(0.25, 0.375)),
    steps('simmim_last_block', 'SimMIM ViT-B/16, dense last block', LAST_BLOCK, 256, 1.3),
    steps('simmim_ratios', 'SimMIM ViT-B/16, another ratio', SIMMIM, 256, 1.3, ratios=(0.25,)),
    Stage('evidence', 'accuracy, with the time that is left', 'gpu_stages.evidence.sweep'),
)  # fmt: skip

ROUNDS, WARMUP, MEMORY_STEPS = 8, 2, 3
LARGEST_TRIALS, LARGEST_IMAGES = 7, 1500  # of each model: what a search of 80 GB takes


def find(names: list[str]) -> list[Stage]:
    """The stages of these names, in the plan's order; all of them if none is named.

    Raises:
        ValueError: a name that is none.
    """
    known = {stage.name: stage for stage in STAGES}
    for name in names:
        if name not in known:
            raise ValueError(f'no stage {name!r}: there are {", ".join(known)}')
    return [stage for stage in STAGES if not names or stage.name in names]


def estimate(stage: Stage, calibration: dict[str, Any] | None) -> float:
    """Seconds that a stage is likely to take.

    Args:
        stage: any.
        calibration: result of the calibration: seconds per multiply-add of training, and to build
            a model. None where it failed.
    """
    if stage.seconds is not None:
        return stage.seconds
    if stage.name == 'evidence':
        return EVIDENCE_SECONDS
    found = calibration or {}
    per_gmac = found.get('seconds_per_gmac', 1e-5) * stage.slow
    build = found.get('build_seconds', BUILD_SECONDS)
    config, options = stage.options['config'], stage.options
    if stage.task == 'gpu_stages.steps.largest':
        images = 2 * 2 * LARGEST_TRIALS * LARGEST_IMAGES  # two models, two steps
        return 2 * LARGEST_TRIALS * build + images * gmacs(config) * per_gmac
    models = 1 + 2 * len(options.get('ratios', (0.5,)))
    models += sum(bool(options.get(key)) for key in ('peer', 'dense', 'by_length'))
    images = options['batch'] * models * (ROUNDS + WARMUP + MEMORY_STEPS)
    seconds = 2 * models * build + images * gmacs(config) * per_gmac
    return seconds + bool(options.get('compiled')) * models * COMPILE_SECONDS


def made_of_steps(stage: Stage) -> bool:
    """Whether its time follows from multiply-adds, so that one such stage tells of the next."""
    return stage.task.startswith('gpu_stages.steps.')


def gmacs(config: str) -> float:
    """Counted training GMACs per image of a config's framework, or of a model without config."""
    if config in COUNTED:
        counted = json.loads((RESULTS / 'declared.json').read_text())
        return counted[COUNTED[config]]['training'] / 1e9
    counted = json.loads((RESULTS / 'costs.json').read_text())
    return counted[config]['costs'][0]['training'] / 1e9

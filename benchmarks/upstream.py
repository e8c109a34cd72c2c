# SPDX-License-Identifier: Apache-2.0
"""Each original repository's own scripts on this stack: trained, resumed, fine-tuned, compared.

    python benchmarks/upstream.py UPSTREAM_DIR DATA_DIR [--only mae ...]

UPSTREAM_DIR holds checkouts ``mae``, ``SimMIM``, ``ConvNeXt-V2``, ``ibot`` at the pinned commits
(docs/upstream.md), DATA_DIR an ImageFolder ``train``. Every run is a process of its own,
``prmim run SCRIPT ...``; checkouts are copied first. Results: benchmarks/results/upstream.json.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch

from prmim_adapters.upstream import patching

RESULTS = Path(__file__).parent / 'results' / 'upstream.json'
COMMON = '--num_workers 0 --warmup_epochs 0'


@dataclass(frozen=True)
class Trial:
    """The command lines of one repository; {data}, {small}, {out}, {epochs} are filled in.

    Attributes:
        folder: of the checkout.
        pretrain: script and arguments.
        resume: arguments that continue from the checkpoint of epoch 0.
        finetune: script and arguments that load the checkpoint of the attached run.
        log: file with the losses, below {out}, and the pattern of an epoch's mean loss.
        checkpoint: the last one of a run of one epoch, below {out}.
        images: to train on.
        finetuning_images: to fine-tune on; iBOT's kNN needs a hundred.
        also: other scripts that load that checkpoint, run to see that they do.
    """

    folder: str
    pretrain: str
    resume: str
    finetune: str
    log: str
    checkpoint: str
    images: int = 32
    finetuning_images: int = 8
    also: tuple[str, ...] = ()


SIMMIM = (
    '--amp-opt-level O0 --batch-size 8 --output {out} --tag t --opts DATA.NUM_WORKERS 0 PRINT_FREQ 1 '
    'TRAIN.EPOCHS {epochs} TRAIN.WARMUP_EPOCHS 0 TRAIN.BASE_LR 0.02 MODEL.NAME m '
)
VIT = 'MODEL.VIT.EMBED_DIM 192 MODEL.VIT.DEPTH 4 MODEL.VIT.NUM_HEADS 3 '
SWIN = (
    'MODEL.SWIN.EMBED_DIM 32 MODEL.SWIN.DEPTHS [2,2,2,2] MODEL.SWIN.NUM_HEADS [1,2,4,8] '
    'TRAIN.MIN_LR 0.0 '
)
TRIALS = {
    'mae': Trial(
        folder='mae',
        pretrain='main_pretrain.py --device cpu --model mae_vit_base_patch16 --norm_pix_loss '
        f'--batch_size 4 --lr 3e-4 {COMMON} --data_path {{data}} --output_dir {{out}} '
        '--log_dir {out} --epochs {epochs}',
        resume='--resume {out}/checkpoint-0.pth',
        finetune='main_finetune.py --device cpu --model vit_base_patch16 --batch_size 4 --epochs 1 '
        f'{COMMON} --data_path {{small}} --output_dir {{out}}/ft --log_dir {{out}}/ft '
        '--finetune {out}/checkpoint-0.pth',
        log='log.txt',
        checkpoint='checkpoint-0.pth',
        images=16,
        also=(
            'main_linprobe.py --device cpu --model vit_base_patch16 --batch_size 4 --epochs 1 '
            f'{COMMON} --data_path {{small}} --output_dir {{out}}/lp --log_dir {{out}}/lp '
            '--finetune {out}/checkpoint-0.pth',
        ),
    ),
    'simmim-vit': Trial(
        folder='SimMIM',
        pretrain='main_simmim.py --cfg configs/vit_base__800ep/'
        'simmim_pretrain__vit_base__img224__800ep.yaml --data-path {data}/train ' + SIMMIM + VIT,
        resume='',  # TRAIN.AUTO_RESUME
        finetune='main_finetune.py --cfg configs/vit_base__800ep/'
        'simmim_finetune__vit_base__img224__800ep.yaml --data-path {small} '
        '--pretrained {out}/m/t/ckpt_epoch_0.pth '
        + SIMMIM.replace('{epochs}', '1')
        .replace('--batch-size 8', '--batch-size 4')
        .replace('{out}', '{out}/ft')
        + VIT,
        log='m/t/log_rank0.txt',
        checkpoint='m/t/ckpt_epoch_0.pth',
    ),
    'simmim-swin': Trial(
        folder='SimMIM',
        pretrain='main_simmim.py --cfg configs/swin_base__100ep/'
        'simmim_pretrain__swin_base__img192_window6__100ep.yaml --data-path {data}/train '
        + SIMMIM
        + SWIN,
        resume='',
        finetune='main_finetune.py --cfg configs/swin_base__100ep/'
        'simmim_finetune__swin_base__img192_window6__100ep.yaml --data-path {small} '
        '--pretrained {out}/m/t/ckpt_epoch_0.pth '
        + SIMMIM.replace('{epochs}', '1')
        .replace('--batch-size 8', '--batch-size 4')
        .replace('{out}', '{out}/ft')
        + SWIN,
        log='m/t/log_rank0.txt',
        checkpoint='m/t/ckpt_epoch_0.pth',
        also=(  # window 7 after window 6
            'main_finetune.py --cfg configs/swin_base__100ep/'
            'simmim_finetune__swin_base__img224_window7__100ep.yaml --data-path {small} '
            '--pretrained {out}/m/t/ckpt_epoch_0.pth '
            + SIMMIM.replace('{epochs}', '1')
            .replace('--batch-size 8', '--batch-size 4')
            .replace('{out}', '{out}/ft7')
            + SWIN,
        ),
    ),
    'convnextv2': Trial(
        folder='ConvNeXt-V2',
        pretrain='main_pretrain.py --device cpu --model convnextv2_atto --batch_size 8 '
        f'--lr 3e-4 {COMMON} --data_path {{data}} --output_dir {{out}} --epochs {{epochs}}',
        resume='',  # --auto_resume
        finetune='main_finetune.py --device cpu --model convnextv2_atto --batch_size 4 --epochs 1 '
        f'{COMMON} --data_path {{small}} --output_dir {{out}}/ft '
        '--finetune {out}/checkpoint-0.pth',
        log='log.txt',
        checkpoint='checkpoint-0.pth',
    ),
    'ibot': Trial(
        folder='ibot',
        pretrain='main_ibot.py --arch vit_tiny --use_fp16 false --batch_size_per_gpu 4 '
        '--pred_ratio 0.3 --pred_shape block --out_dim 512 --patch_out_dim 512 --drop_path 0 '
        '--local_crops_number 1 --local_crops_scale 0.05 0.25 --global_crops_scale 0.25 1 '
        f'--warmup_teacher_temp_epochs 0 --lr 0.02 --freeze_last_layer 0 {COMMON} '
        '--momentum_teacher 0.9 --data_path {data}/train --output_dir {out} --epochs {epochs}',
        resume='--load_from checkpoint.pth',
        finetune='evaluation/eval_knn.py --arch vit_tiny --checkpoint_key student --nb_knn 1 '
        '--pretrained_weights {out}/checkpoint.pth --batch_size_per_gpu 4 --num_workers 0 '
        '--use_cuda false --data_path {small}',
        log='log.txt',
        checkpoint='checkpoint.pth',
        images=16,
        finetuning_images=100,
    ),
}


def losses_of(log: Path) -> list[float]:
    """Mean loss of every epoch that a log tells of."""
    text = log.read_text()
    if log.name == 'log.txt':
        return [json.loads(line)['train_loss'] for line in text.splitlines()]
    steps = re.findall(r'\[(\d+)/\d+\]\[(\d+)/\d+\].*?loss [\d.]+ \(([\d.]+)\)', text)
    return list({epoch: float(mean) for epoch, _, mean in steps}.values())


def run(folder: Path, command: str, environment: str = '') -> str:
    """Run ``prmim run`` in a checkout; its output."""
    line = [sys.executable, '-m', 'prmim_adapters.upstream', *shlex.split(command)]
    print(f'$ {environment} prmim run {command}', flush=True)
    done = subprocess.run(
        [*shlex.split(f'env {environment}'), *line], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-4000:])
    return done.stdout + done.stderr


def measure(trial: Trial, upstream: Path, data: Path, small: Path, scratch: Path) -> dict:
    """All figures of one repository."""
    folder = scratch / trial.folder
    if not folder.exists():
        ignored = shutil.ignore_patterns('.git', 'figures')
        shutil.copytree(upstream / trial.folder, folder, ignore=ignored)
    repository = patching.identify(folder)
    if patching.is_patched(folder, repository):
        patching.undo(folder, repository)

    def command(template: str, out: Path, epochs: int = 1) -> str:
        for name, value in dict(data=data, small=small, out=out, epochs=epochs).items():
            template = template.replace(f'{{{name}}}', str(value))
        out.mkdir(parents=True, exist_ok=True)
        return template

    outputs = {name: scratch / f'{trial.folder}-{name}' for name in ('before', 'zero', 'half')}
    for output in outputs.values():
        shutil.rmtree(output, ignore_errors=True)
    run(folder, command(trial.pretrain, outputs['before']))
    patching.apply(folder, repository)
    run(folder, command(trial.pretrain, outputs['zero']), 'PRMIM_THROW_RATIO=0')
    shown = run(folder, command(trial.pretrain, outputs['half']), 'PRMIM_THROW_RATIO=0.5')
    checkpoint = outputs['half'] / trial.checkpoint
    saved = checkpoint.stat().st_size
    tuned = run(folder, command(trial.finetune, outputs['half']))
    for template in trial.also:
        run(folder, command(template, outputs['half']))
    again = command(f'{trial.pretrain} {trial.resume}', outputs['half'], epochs=4)
    run(folder, again, 'PRMIM_THROW_RATIO=0.5')
    patching.undo(folder, repository)

    loss = {name: losses_of(output / trial.log) for name, output in outputs.items()}
    difference = abs(loss['zero'][0] - loss['before'][0]) / abs(loss['before'][0])
    trained = loss['half']
    return dict(
        commit=repository.commit,
        shims=re.findall(r'prmim run: (.*)', shown)[0].split(', '),
        loss_unpatched=loss['before'],
        loss_ratio_0=loss['zero'],
        ratio_0_relative_difference=difference,
        loss_ratio_0_5=trained,
        falls=trained[-1] < trained[0],
        resumed_epochs=len(trained),
        checkpoint_bytes=saved,
        finetuning_loaded_it=[
            line.strip().replace(str(outputs['half'].parent), '{out}')
            for line in tuned.splitlines()
            if re.search(r'missing_keys|loaded with msg|not used in|not initialized', line)
        ],
        pretraining_command=f'PRMIM_THROW_RATIO=0.5 prmim run {trial.pretrain}',
        finetuning_command=f'prmim run {trial.finetune}',
        also_ran=[f'prmim run {template}' for template in trial.also],
    )


def subset(data: Path, folder: Path, images: int) -> None:
    """The first classes' first images as train and val."""
    for part in ('train', 'val'):
        for source in sorted((data / 'train').iterdir())[:images]:
            target = folder / part / source.name
            target.mkdir(parents=True, exist_ok=True)
            image = sorted(source.iterdir())[0]
            shutil.copy(image, target / image.name)


def main() -> None:
    """Measure and add to the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('upstream', type=Path)
    parser.add_argument('data', type=Path)
    parser.add_argument('--only', nargs='+', choices=TRIALS, default=list(TRIALS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for trial in arguments.only:
            data = scratch / f'data-{trial}'
            subset(arguments.data, data, TRIALS[trial].images)
            small = scratch / f'small-{trial}'
            subset(arguments.data, small, TRIALS[trial].finetuning_images)
            upstream = arguments.upstream.resolve()
            figures = measure(TRIALS[trial], upstream, data, small, scratch)
            results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            results.setdefault('training', {})[trial] = dict(
                **figures,
                images=TRIALS[trial].images,
                torch=torch.__version__,
                date=datetime.now(timezone.utc).date().isoformat(),
                command=f'python benchmarks/upstream.py UPSTREAM_DIR DATA_DIR --only {trial}',
            )
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(results, indent=2) + '\n')


if __name__ == '__main__':
    main()

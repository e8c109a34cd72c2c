# A small iBOT on a tenth of CIFAR-10 (image folders under data/cifar10), with kNN accuracy before
# and after: a few minutes on a CPU. model.throw_ratio=0.0 is the original method.
_base_ = ['mmpretrain::_base_/default_runtime.py', '../_base_/prmim_runtime.py']

arch = dict(embed_dims=64, num_layers=3, num_heads=2, feedforward_channels=256)
model = dict(
    type='PRMIM',
    throw_ratio=0.5,
    max_masked_share=0.75,
    framework=dict(
        type='IBOT',
        backbone=dict(type='IBOTViT', arch=arch, img_size=32, patch_size=4),
        neck=dict(
            type='IBOTNeck',
            in_channels=64,
            hidden_channels=128,
            bottleneck_channels=64,
            out_channels=256,
        ),
        head=dict(type='IBOTHead', out_channels=256, teacher_temp=0.03, teacher_patch_temp=0.07),
        base_momentum=0.01,
    ),
)
data_preprocessor = dict(
    type='SelfSupDataPreprocessor',
    mean=[125.3, 123.0, 113.9],
    std=[63.0, 62.1, 66.7],
    bgr_to_rgb=True,
)

color = [
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomApply',
        prob=0.8,
        transforms=[dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.2)],
    ),
    dict(type='RandomGrayscale', prob=0.2, keep_channels=True),
]
crop = dict(type='RandomResizedCrop', interpolation='bicubic')
mask = dict(type='RandomRatioMask', input_size=8, mask_ratio=0.7, variance=0.0, shape='random')
views = dict(
    type='MaskedMultiView',
    num_views=[2, 1],
    transforms=[
        [dict(crop, scale=32, crop_ratio_range=(0.5, 1.0)), *color, mask],
        [dict(crop, scale=16, crop_ratio_range=(0.2, 0.5)), *color],
    ],
)
loader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
folder = dict(type='CustomDataset', data_root='data/cifar10')
load, pack = dict(type='LoadImageFromFile'), dict(type='PackInputs')
train_dataloader = dict(
    loader,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        folder, data_prefix='train', indices=list(range(0, 50000, 10)), pipeline=[load, views, pack]
    ),
)

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.04),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
param_scheduler = [dict(type='LinearLR', start_factor=0.01, end=40, by_epoch=False)]
custom_hooks = [
    *_base_.prmim_hooks,
    dict(type='ClipEachGradHook', max_norm=3.0),
    dict(
        type='KNNHook',
        num_classes=10,
        interval=4,
        at_start=True,
        train_dataloader=dict(
            loader,
            dataset=dict(
                folder,
                data_prefix='train',
                indices=list(range(0, 50000, 10)),
                pipeline=[load, pack],
            ),
        ),
        test_dataloader=dict(
            loader,
            dataset=dict(
                folder, data_prefix='test', indices=list(range(0, 10000, 5)), pipeline=[load, pack]
            ),
        ),
    ),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=8)
default_hooks = dict(
    logger=dict(interval=20), checkpoint=dict(type='ResumableCheckpointHook', interval=8)
)
randomness = dict(seed=0, diff_rank_seed=True)

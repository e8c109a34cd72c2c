# iBOT ViT-S/16, 800 epochs, 2 global and 10 local crops, published block masks: the recipe of the
# original's README (github.com/bytedance/ibot), batch 1024 = 16 GPUs x 64.
_base_ = [
    'mmpretrain::_base_/default_runtime.py',
    '_base_/prmim_runtime.py',
]

model = dict(
    type='IBOT',
    data_preprocessor=dict(
        type='SelfSupDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    backbone=dict(type='IBOTViT', arch='deit-small', drop_path_rate=0.1),
    neck=dict(type='IBOTNeck', in_channels=384, out_channels=8192, norm_last_layer=False),
    head=dict(type='IBOTHead', out_channels=8192),
    base_momentum=0.004,
)

# ColorJitter is torchvision's: mmpretrain's own fails with hue under numpy 2.
color = [
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomApply',
        prob=0.8,
        transforms=[
            dict(type='NumpyToPIL', to_rgb=True),
            dict(
                type='torchvision/ColorJitter',
                brightness=0.4,
                contrast=0.4,
                saturation=0.2,
                hue=0.1,
            ),
            dict(type='PILToNumpy', to_bgr=True),
        ],
    ),
    dict(
        type='RandomGrayscale', prob=0.2, keep_channels=True, channel_weights=(0.114, 0.587, 0.2989)
    ),
]
blur = dict(type='GaussianBlur', magnitude_range=(0.1, 2.0), magnitude_std='inf')
augment = [
    [*color, dict(blur, prob=1.0)],
    [*color, dict(blur, prob=0.1), dict(type='Solarize', thr=128, prob=0.2)],
    [*color, dict(blur, prob=0.5)],
]
crop = dict(type='RandomResizedCrop', interpolation='bicubic', backend='pillow')
global_crop = dict(crop, scale=224, crop_ratio_range=(0.25, 1.0))
local_crop = dict(crop, scale=96, crop_ratio_range=(0.05, 0.25))
# Half of the global crops whole, half masked by 0.3 +- 0.2.
mask = dict(type='RandomRatioMask', input_size=14, mask_ratio=(0.0, 0.3), variance=(0.0, 0.2))
views = dict(
    type='MaskedMultiView',
    num_views=[1, 1, 10],
    transforms=[
        [global_crop, *augment[0], mask],
        [global_crop, *augment[1], mask],
        [local_crop, *augment[2]],
    ],
)
train_dataloader = dict(
    batch_size=64,
    num_workers=10,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='ImageNet',
        data_root='data/imagenet/',
        split='train',
        pipeline=[dict(type='LoadImageFromFile'), views, dict(type='PackInputs')],
    ),
)

# 5e-4 for a batch of 256.
optim_wrapper = dict(
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.04),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
auto_scale_lr = dict(base_batch_size=1024)
by_iter = dict(by_epoch=True, convert_to_iter_based=True)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=10, **by_iter),
    dict(type='CosineAnnealingLR', T_max=790, eta_min=1e-6, begin=10, end=800, **by_iter),
    dict(type='CosineAnnealingWeightDecay', T_max=800, eta_min=0.4, begin=0, end=800, **by_iter),
]
custom_hooks = [
    dict(type='TeacherTempHook', cls=(0.04, 0.07), patch=(0.04, 0.07), warmup_epochs=30),
    dict(type='FreezeLastLayerHook', epochs=1),
    dict(type='ClipEachGradHook', max_norm=3.0),
    *_base_.prmim_hooks,
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=800)
default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook', interval=40, max_keep_ckpts=3))
randomness = dict(seed=0, diff_rank_seed=True)

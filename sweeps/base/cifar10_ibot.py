"""iBOT on CIFAR-10: two masked global crops of 32 px and four local ones of 16 px, from files.

The batched crops of the in-memory path make one view an image, so this framework uses workers.
"""

_base_ = './cifar10_mae.py'

model = dict(
    _delete_=True,
    type='IBOT',
    backbone=dict(
        type='IBOTViT',
        arch=dict(embed_dims=192, num_layers=9, num_heads=3, feedforward_channels=768),
        img_size=32,
        patch_size=4,
    ),
    neck=dict(type='IBOTNeck', in_channels=192, out_channels=1024, hidden_channels=512),
    head=dict(type='IBOTHead', out_channels=1024, teacher_temp=0.03, teacher_patch_temp=0.07),
    base_momentum=0.004,
)
data_preprocessor = dict(
    _delete_=True,
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
    dict(type='RandomGrayscale', prob=0.2, keep_channels=True),
]
crop = dict(type='RandomResizedCrop', interpolation='bicubic', backend='pillow')
mask = dict(type='RandomRatioMask', input_size=8, mask_ratio=0.7, variance=0.0, shape='random')
views = dict(
    type='MaskedMultiView',
    num_views=[2, 4],
    transforms=[
        [dict(crop, scale=32, crop_ratio_range=(0.5, 1.0)), *color, mask],
        [dict(crop, scale=16, crop_ratio_range=(0.2, 0.5)), *color],
    ],
)
train_dataloader = dict(
    batch_size=256,
    num_workers=8,
    persistent_workers=True,
    collate_fn=dict(_delete_=True, type='default_collate'),
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_prefix='data/cifar10/train',
        pipeline=[dict(type='LoadImageFromFile'), views, dict(type='PackInputs')],
    ),
)

optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.04))
custom_hooks = [dict(type='ClipEachGradHook', max_norm=3.0)]

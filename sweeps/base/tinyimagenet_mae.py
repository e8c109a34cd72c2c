"""MAE on Tiny-ImageNet at 64 px: a ViT of 192 x 9 at patch 8 (64 tokens), data in memory.

The official layout, data/tiny-imagenet-200/{train,val}.
"""

_base_ = 'cifar10_mae.py'

model = dict(
    backbone=dict(img_size=64, patch_size=8),
    neck=dict(patch_size=8),
    head=dict(patch_size=8),
)
data_preprocessor = dict(
    mean=[122.5, 114.3, 101.4],
    std=[70.6, 68.6, 71.9],
    augment=[dict(type='BatchRandomResizedCrop', size=64, scale=(0.2, 1.0))],
)
train_dataloader = dict(
    dataset=dict(
        dataset=dict(
            _delete_=True,
            type='TinyImageNet',
            data_root='data/tiny-imagenet-200',
            split='train',
            pipeline=[dict(type='LoadImageFromFile')],
        ),
    ),
)

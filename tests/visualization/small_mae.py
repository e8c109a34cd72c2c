# A small MAE whose pipeline reads files; what the pictures' tests change.
_base_ = '../../configs/mmpretrain/mae_prmim_vitb.py'

arch = dict(embed_dims=192, num_layers=4, num_heads=3, feedforward_channels=768)
model = dict(
    framework=dict(
        backbone=dict(arch=dict(_delete_=True, **arch), img_size=96, patch_size=8),
        neck=dict(
            num_patches=144,
            patch_size=8,
            embed_dim=192,
            decoder_embed_dim=128,
            decoder_depth=4,
            decoder_num_heads=4,
        ),
        head=dict(patch_size=8),
    )
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=96, crop_ratio_range=(0.4, 1.0), backend='pillow'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root='data/demo/train',
        with_label=False,
        pipeline=train_pipeline,
    ),
)

# AmpOptimWrapper, which the base asks for, refuses a CPU.
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=1, T_max=7, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=8)
default_hooks = dict(logger=dict(interval=4), checkpoint=dict(interval=4))

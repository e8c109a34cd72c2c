"""MAE on CIFAR-10 at 32 px: a ViT of 192 x 9 at patch 4 (64 tokens), data in memory."""

custom_imports = dict(imports=['prmim_adapters.openmmlab'], allow_failed_imports=False)
default_scope = 'mmpretrain'

model = dict(
    type='MAE',
    backbone=dict(
        type='MAEViT',
        arch=dict(embed_dims=192, num_layers=9, num_heads=3, feedforward_channels=768),
        img_size=32,
        patch_size=4,
        mask_ratio=0.75,
    ),
    neck=dict(
        type='MAEPretrainDecoder',
        num_patches=64,
        patch_size=4,
        embed_dim=192,
        decoder_embed_dim=128,
        decoder_depth=4,
        decoder_num_heads=4,
    ),
    head=dict(
        type='MAEPretrainHead',
        norm_pix=True,
        patch_size=4,
        loss=dict(type='PixelReconstructionLoss', criterion='L2'),
    ),
    init_cfg=[
        dict(type='Xavier', layer='Linear', distribution='uniform'),
        dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
    ],
)

data_preprocessor = dict(
    type='DeviceAugment',
    mean=[125.3, 123.0, 113.9],
    std=[63.0, 62.1, 66.7],
    to_rgb=True,
    augment=[dict(type='BatchRandomResizedCrop', size=32, scale=(0.2, 1.0))],
)
train_dataloader = dict(
    batch_size=512,
    num_workers=0,
    persistent_workers=False,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='ready_batch'),
    dataset=dict(
        type='InMemoryImages',
        dataset=dict(
            type='CustomDataset',
            data_prefix='data/cifar10/train',
            with_label=True,
            pipeline=[dict(type='LoadImageFromFile')],
        ),
    ),
)

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1.5e-3, betas=(0.9, 0.95), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=180, begin=20, end=200, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=200)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=50),
    checkpoint=dict(type='CheckpointHook', interval=50, max_keep_ckpts=1),
)

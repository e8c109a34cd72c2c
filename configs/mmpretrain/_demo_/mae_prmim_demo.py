# A small MAE on tiles of photographs (`make pretrain`): shows that everything runs, on a CPU.
_base_ = '../mae_prmim_vitb.py'

arch = dict(embed_dims=128, num_layers=4, num_heads=4, feedforward_channels=512)
model = dict(
    framework=dict(
        backbone=dict(arch=dict(_delete_=True, **arch), img_size=96, patch_size=8),
        neck=dict(
            num_patches=144,
            patch_size=8,
            embed_dim=128,
            decoder_embed_dim=96,
            decoder_depth=2,
            decoder_num_heads=4,
        ),
        # Pixels as they are: predictions of normalised patches have no colours of their own.
        head=dict(patch_size=8, norm_pix=False),
    )
)

# Tiles stay in memory, and a batch is cropped at once: decoding would take as long as training.
data_preprocessor = dict(
    _delete_=True,
    type='DeviceAugment',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
    augment=[
        dict(type='BatchRandomResizedCrop', size=96, scale=(0.4, 1.0)),
        # Eight photographs have few colours: their channels change places, or are one.
        dict(type='RandomChannelPermutation'),
        dict(type='RandomGrayscale', p=0.2),
    ],
)
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    collate_fn=dict(_delete_=True, type='ready_batch'),
    dataset=dict(
        _delete_=True,
        type='InMemoryImages',
        dataset=dict(
            type='CustomDataset',
            data_root='data/demo/train',
            pipeline=[dict(type='LoadImageFromFile')],
        ),
    ),
)

# AmpOptimWrapper, which the base asks for, refuses a CPU.
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=3e-3, betas=(0.9, 0.95), weight_decay=0.05),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=1, T_max=49, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=50)
default_hooks = dict(logger=dict(interval=8), checkpoint=dict(interval=25))

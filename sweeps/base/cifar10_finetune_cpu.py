"""Fine-tuning of the encoder of cifar10_mae_cpu.yaml on 3,000 images, 5 epochs: minutes on a CPU."""

_base_ = 'cifar10_finetune.py'

model = dict(
    backbone=dict(
        arch=dict(embed_dims=96, num_layers=4, num_heads=4, feedforward_channels=384),
        drop_path_rate=0.0,
    ),
    head=dict(in_channels=96),
)
data_preprocessor = dict(
    _delete_=True,
    type='DeviceAugment',
    mean=[125.3, 123.0, 113.9],
    std=[63.0, 62.1, 66.7],
    to_rgb=True,
    augment=[dict(type='BatchRandomCrop', size=32, padding=4)],
)
loader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    collate_fn=dict(_delete_=True, type='ready_batch'),
)
folder = dict(type='CustomDataset', with_label=True, pipeline=[dict(type='LoadImageFromFile')])
train_dataloader = dict(
    **loader,
    dataset=dict(
        _delete_=True,
        type='InMemoryImages',
        per_class=300,
        dataset=dict(**folder, data_prefix='data/cifar10/train'),
    ),
)
val_dataloader = dict(
    **loader,
    dataset=dict(
        _delete_=True,
        type='InMemoryImages',
        per_class=500,
        dataset=dict(**folder, data_prefix='data/cifar10/test'),
    ),
)
optim_wrapper = dict(optimizer=dict(lr=4e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=4, begin=1, end=5, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=5, val_interval=5)
default_hooks = dict(checkpoint=dict(interval=-1, save_last=False))

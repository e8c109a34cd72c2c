"""An ordinary pre-training config of your own: `mim train mmpretrain my_config.py`."""

custom_imports = dict(imports=['my_mim', 'prmim_adapters.openmmlab'], allow_failed_imports=False)
default_scope = 'mmpretrain'

model = dict(type='MyMIM', mask_ratio=0.6)
data_preprocessor = dict(
    type='DeviceAugment',
    mean=[127.5, 127.5, 127.5],
    std=[127.5, 127.5, 127.5],
    to_rgb=True,
    augment=[dict(type='BatchRandomResizedCrop', size=16, scale=(0.5, 1.0))],
)
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='ready_batch'),
    dataset=dict(
        type='InMemoryImages',
        dataset=dict(
            type='CustomDataset',
            data_prefix='images/train',
            with_label=True,
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='ResizeEdge', scale=16, edge='short'),
                dict(type='CenterCrop', crop_size=16),
            ],
        ),
    ),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
train_cfg = dict(by_epoch=True, max_epochs=2)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=-1, save_last=False))

# SimMIM ViT-B/16, the original's 800-epoch recipe (microsoft/SimMIM vit_base__800ep): mmpretrain's
# SimMIM with another backbone. Batch 2048 in all: 8 x 256, or scale with --auto-scale-lr.
_base_ = [
    'mmpretrain::simmim/simmim_swin-base-w6_16xb128-amp-coslr-800e_in1k-192px.py',
    '_base_/prmim_runtime.py',
]

model = dict(
    backbone=dict(_delete_=True, type='SimMIMViT', drop_path_rate=0.1),
    neck=dict(in_channels=768, encoder_stride=16),
    head=dict(patch_size=16),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, crop_ratio_range=(0.67, 1.0)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='SimMIMMaskGenerator', input_size=224, mask_patch_size=32, model_patch_size=16),
    dict(type='PackInputs'),
]
# A base from another package leaves a scope in this dict that default_collate does not take.
train_dataloader = dict(
    dataset=dict(pipeline=train_pipeline), collate_fn=dict(_delete_=True, type='default_collate')
)

# No decay for vectors and the cls token; the original decays mask token and position bias.
optim_wrapper = dict(
    paramwise_cfg=dict(
        _delete_=True,
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys={'cls_token': dict(decay_mult=0.0)},
    )
)

param_scheduler = [
    dict(type='LinearLR', start_factor=5e-7 / 1e-4, end=10, convert_to_iter_based=True),
    # at epoch 700: milestones count from `begin`
    dict(type='MultiStepLR', milestones=[690], begin=10, end=800, convert_to_iter_based=True),
]
randomness = dict(seed=0, diff_rank_seed=True)  # masks differ by rank
default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook'))

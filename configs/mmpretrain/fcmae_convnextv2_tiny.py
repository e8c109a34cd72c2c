# ConvNeXt V2 tiny pre-trained by FCMAE with the original's recipe: 64 GPUs x 64 images, fp32.
_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs512_mae.py',
    'mmpretrain::_base_/default_runtime.py',
    '_base_/prmim_runtime.py',
]

# Set execution='dense' for the masked computation without packing, grn_scope for another GRN.
model = dict(
    type='FCMAE',
    backbone=dict(type='FCMAEConvNeXt', arch='tiny', img_size=224, mask_ratio=0.6),
    neck=dict(type='FCMAEPretrainDecoder', embed_dim=768, decoder_embed_dim=512, decoder_depth=1),
    head=dict(
        type='MAEPretrainHead',
        norm_pix=True,
        patch_size=32,
        loss=dict(type='PixelReconstructionLoss', criterion='L2'),
    ),
)

# A base from another package leaves a scope in this dict that default_collate does not take.
train_dataloader = dict(batch_size=64, collate_fn=dict(_delete_=True, type='default_collate'))

# The original decays GRN, whose parameters it stores as 2-D; biases and norms it does not decay.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1.5e-4 * 4096 / 256, betas=(0.9, 0.95), weight_decay=0.05),
    paramwise_cfg=dict(flat_decay_mult=0.0, custom_keys=dict(grn=dict(decay_mult=1.0))),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, end=40, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=40, end=1600, T_max=1560, convert_to_iter_based=True),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1600)
default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook', interval=1, max_keep_ckpts=3))
randomness = dict(seed=0, diff_rank_seed=True)
auto_scale_lr = dict(base_batch_size=4096)

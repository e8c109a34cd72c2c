"""MaskFeat on CIFAR-10: 40 of 64 tokens masked in blocks (the paper masks 40 % of them)."""

_base_ = './cifar10_mae.py'

model = dict(
    _delete_=True,
    type='MaskFeat',
    backbone=dict(
        type='MaskFeatViT',
        arch=dict(embed_dims=192, num_layers=9, num_heads=3, feedforward_channels=768),
        img_size=32,
        patch_size=4,
    ),
    neck=dict(type='LinearNeck', in_channels=192, out_channels=108, norm_cfg=None),
    head=dict(type='MIMHead', loss=dict(type='PixelReconstructionLoss', criterion='L2')),
    target_generator=dict(type='HOGGenerator', nbins=9, pool=2, gaussian_window=4),
)
data_preprocessor = dict(
    mask_generator=dict(
        type='BEiTMaskGenerator', input_size=8, num_masking_patches=40, min_num_patches=4
    ),
)

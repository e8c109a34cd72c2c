"""SimMIM with a ViT on CIFAR-10: 10 of the 16 units of 8 px are masked, 40 of 64 tokens."""

_base_ = './cifar10_mae.py'

model = dict(
    _delete_=True,
    type='SimMIM',
    backbone=dict(
        type='SimMIMViT',
        arch=dict(embed_dims=192, num_layers=9, num_heads=3, feedforward_channels=768),
        img_size=32,
        patch_size=4,
    ),
    neck=dict(type='SimMIMLinearDecoder', in_channels=192, encoder_stride=4),
    head=dict(
        type='SimMIMHead',
        patch_size=4,
        loss=dict(type='PixelReconstructionLoss', criterion='L1', channel=3),
    ),
)
data_preprocessor = dict(
    mask_generator=dict(
        type='SimMIMMaskGenerator',
        input_size=32,
        mask_patch_size=8,
        model_patch_size=4,
        mask_ratio=0.6,
    ),
)

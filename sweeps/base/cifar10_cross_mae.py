"""MAE on CIFAR-10 with a decoder of cross-attention, a quarter of the patches predicted."""

_base_ = 'cifar10_mae.py'

model = dict(
    type='CrossMAE',
    predict_ratio=0.25,
    neck=dict(
        _delete_=True,
        type='CrossAttentionDecoder',
        num_patches=64,
        patch_size=4,
        embed_dim=192,
        decoder_embed_dim=128,
        decoder_depth=6,  # the paper's 12 blocks where MAE has 8
        decoder_num_heads=4,
    ),
)

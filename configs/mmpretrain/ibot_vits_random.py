# iBOT ViT-S/16 with 0.7 of the tokens masked at random in every global crop, beside the published
# block masks: all crops mask 137 of 196 tokens.
_base_ = 'ibot_vits.py'

mask = dict(type='RandomRatioMask', input_size=14, mask_ratio=0.7, variance=0.0, shape='random')
views = dict(
    type='MaskedMultiView',
    num_views=[1, 1, 10],
    transforms=[
        [_base_.global_crop, *_base_.augment[0], mask],
        [_base_.global_crop, *_base_.augment[1], mask],
        [_base_.local_crop, *_base_.augment[2]],
    ],
)
train_dataloader = dict(
    dataset=dict(pipeline=[dict(type='LoadImageFromFile'), views, dict(type='PackInputs')])
)

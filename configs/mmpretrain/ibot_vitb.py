# iBOT ViT-B/16, 400 epochs, published block masks, batch 1024 = 32 GPUs x 32. Differences from
# ViT-S after the arguments that the original publishes with its ViT-B checkpoint.
_base_ = 'ibot_vits.py'

model = dict(backbone=dict(arch='b'), neck=dict(in_channels=768, norm_last_layer=True))

global_crop = dict(_base_.global_crop, crop_ratio_range=(0.32, 1.0))
local_crop = dict(_base_.local_crop, crop_ratio_range=(0.05, 0.32))
views = dict(
    type='MaskedMultiView',
    num_views=[1, 1, 10],
    transforms=[
        [global_crop, *_base_.augment[0], _base_.mask],
        [global_crop, *_base_.augment[1], _base_.mask],
        [local_crop, *_base_.augment[2]],
    ],
)
train_dataloader = dict(
    batch_size=32,
    dataset=dict(pipeline=[dict(type='LoadImageFromFile'), views, dict(type='PackInputs')]),
)

optim_wrapper = dict(optimizer=dict(lr=3e-3))  # 7.5e-4 for a batch of 256
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=10, **_base_.by_iter),
    dict(type='CosineAnnealingLR', T_max=390, eta_min=2e-6, begin=10, end=400, **_base_.by_iter),
    dict(
        type='CosineAnnealingWeightDecay',
        T_max=400,
        eta_min=0.4,
        begin=0,
        end=400,
        **_base_.by_iter,
    ),
]
custom_hooks = [
    dict(type='TeacherTempHook', cls=(0.04, 0.07), patch=(0.04, 0.07), warmup_epochs=50),
    dict(type='FreezeLastLayerHook', epochs=3),
    dict(type='ClipEachGradHook', max_norm=0.3),
    *_base_.prmim_hooks,
]
train_cfg = dict(max_epochs=400)

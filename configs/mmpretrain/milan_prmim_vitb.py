# MILAN ViT-B/16 with half of the patches thrown, on mmpretrain's own recipe.
_base_ = [
    'mmpretrain::milan/milan_vit-base-p16_16xb256-amp-coslr-400e_in1k.py',
    '_base_/prmim_runtime.py',
]

model = dict(
    _delete_=True,
    type='PRMIM',
    framework={{_base_.model}},
    throw_ratio=0.5,
    neck=dict(embed_dim=768),  # the recipe leaves the decoder's default, that of ViT-L
)
default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook'))
optim_wrapper = dict(  # as the recipe's other norms
    paramwise_cfg=dict(custom_keys={'aggregators.0.norm': dict(decay_mult=0.0)})
)

# A base from another package leaves a scope in this dict that default_collate does not take.
train_dataloader = dict(collate_fn=dict(_delete_=True, type='default_collate'))

# iTPN HiViT-B with pixels as target and half of the patches thrown, on mmpretrain's own recipe.
_base_ = [
    'mmpretrain::itpn/itpn-pixel_hivit-base-p16_8xb512-amp-coslr-400e_in1k.py',
    '_base_/prmim_runtime.py',
]

model = dict(_delete_=True, type='PRMIM', framework={{_base_.model}}, throw_ratio=0.5)
default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook'))

# A base from another package leaves a scope in this dict that default_collate does not take.
train_dataloader = dict(collate_fn=dict(_delete_=True, type='default_collate'))

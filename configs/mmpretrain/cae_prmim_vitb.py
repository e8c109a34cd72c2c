# CAE ViT-B/16 with a quarter of the patches thrown: 49 of the 75 masked ones (at most 74).
_base_ = [
    'mmpretrain::cae/cae_beit-base-p16_8xb256-amp-coslr-300e_in1k.py',
    '_base_/prmim_runtime.py',
]

model = dict(_delete_=True, type='PRMIM', framework={{_base_.model}}, throw_ratio=0.25)
default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook'))

# A base from another package leaves a scope in this dict that default_collate does not take.
train_dataloader = dict(collate_fn=dict(_delete_=True, type='default_collate'))

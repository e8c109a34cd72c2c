# MaskFeat ViT-B/16 with a quarter of the patches thrown: 49 of the 78 masked ones (at most 77).
_base_ = [
    'mmpretrain::maskfeat/maskfeat_vit-base-p16_8xb256-amp-coslr-300e_in1k.py',
    '_base_/prmim_runtime.py',
]

model = dict(_delete_=True, type='PRMIM', framework={{_base_.model}}, throw_ratio=0.25)
default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook'))
randomness = dict(seed=0, diff_rank_seed=True)  # masks differ by rank

# A base from another package leaves a scope in this dict that default_collate does not take.
train_dataloader = dict(collate_fn=dict(_delete_=True, type='default_collate'))

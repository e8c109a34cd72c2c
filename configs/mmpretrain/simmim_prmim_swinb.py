# SimMIM Swin-B at 192 px with half of the 32-px units thrown: 18 of 36, of which 22 are masked.
_base_ = [
    'mmpretrain::simmim/simmim_swin-base-w6_8xb256-amp-coslr-100e_in1k-192px.py',
    '_base_/prmim_runtime.py',
]

model = dict(_delete_=True, type='PRMIM', framework={{_base_.model}}, throw_ratio=0.5)
default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook'))
randomness = dict(seed=0, diff_rank_seed=True)  # masks differ by rank

# A base from another package leaves a scope in this dict that default_collate does not take.
train_dataloader = dict(collate_fn=dict(_delete_=True, type='default_collate'))

# SparK ConvNeXt V2 tiny on mmpretrain's recipe; its encoder computes visible units only.
_base_ = [
    'mmpretrain::spark/spark_sparse-convnextv2-tiny_16xb256-amp-coslr-800e_in1k.py',
    '_base_/prmim_runtime.py',
]

model = dict(backbone=dict(type='PackedSparseConvNeXt'))

# A base from another package leaves a scope in this dict that default_collate does not take.
train_dataloader = dict(collate_fn=dict(_delete_=True, type='default_collate'))
default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook'))

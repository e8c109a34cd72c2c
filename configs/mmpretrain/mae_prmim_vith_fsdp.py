# MAE ViT-H/14 with half of the patches thrown, its parameters, gradients and optimizer states in
# shards over all GPUs: FSDP2 under mmengine's FlexibleRunner.
_base_ = 'mae_prmim_vith.py'

runner_type = 'FlexibleRunner'
strategy = dict(type='FullyShardStrategy', layers=['TransformerEncoderLayer'])
optim_wrapper = dict(dtype='bfloat16', loss_scale=1.0)  # needs no scale that all shards agree on

# ConvNeXt V2 atto pre-trained by FCMAE with the original's recipe.
_base_ = './fcmae_convnextv2_tiny.py'
model = dict(backbone=dict(arch='atto'), neck=dict(embed_dim=320))

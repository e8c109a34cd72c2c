# ConvNeXt V2 base pre-trained by FCMAE with the original's recipe.
_base_ = './fcmae_convnextv2_tiny.py'
model = dict(backbone=dict(arch='base'), neck=dict(embed_dim=1024))

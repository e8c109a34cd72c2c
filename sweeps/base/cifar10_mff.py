"""MFF on CIFAR-10: MAE whose decoder sees features of several encoder blocks."""

_base_ = './cifar10_mae.py'

model = dict(type='MFF', backbone=dict(type='MFFViT', out_indices=[0, 2, 4, 6, 8]))

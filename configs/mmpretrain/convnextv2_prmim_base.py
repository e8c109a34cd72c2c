# FCMAE of ConvNeXt V2 base with half of the units (24 of 49) thrown in the decoder.
_base_ = './fcmae_convnextv2_base.py'

model = dict(_delete_=True, type='PRMIM', framework={{_base_.model}}, throw_ratio=0.5)

# FCMAE of ConvNeXt V2 tiny with half of the units (24 of 49) thrown in the decoder.
_base_ = './fcmae_convnextv2_tiny.py'

model = dict(_delete_=True, type='PRMIM', framework={{_base_.model}}, throw_ratio=0.5)

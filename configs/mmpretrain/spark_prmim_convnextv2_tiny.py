# SparK ConvNeXt V2 tiny with 24 of 49 units thrown in its decoder, and a packed encoder.
_base_ = './spark_packed_convnextv2_tiny.py'

model = dict(_delete_=True, type='PRMIM', framework={{_base_.model}}, throw_ratio=0.5)

# iBOT ViT-S/16 with partial reconstruction, published block masks: an image throws 2/3 of its masked
# tokens, 0.09 of all tokens on average.
_base_ = 'ibot_vits.py'

model = dict(_delete_=True, type='PRMIM', framework={{_base_.model}}, throw_ratio=0.5)

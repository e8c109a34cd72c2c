# iBOT ViT-S/16, 0.7 of the tokens masked at random, half of all patches thrown: 98 of 137 masked
# ones, which is more than the 2/3 of them that are the default limit.
_base_ = 'ibot_vits_random.py'

model = dict(
    _delete_=True, type='PRMIM', framework={{_base_.model}}, throw_ratio=0.5, max_masked_share=0.75
)

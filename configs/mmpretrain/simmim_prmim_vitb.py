# SimMIM ViT-B/16 with half of the patches thrown: 98 of the 120 masked ones.
# simmim_prmim_vitb_last_block.py is recommended instead: docs/simmim.md says what each loses or gains.
_base_ = './simmim_vitb.py'

model = dict(_delete_=True, type='PRMIM', framework={{_base_.model}}, throw_ratio=0.5)

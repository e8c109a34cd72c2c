# SimMIM ViT-B/16, half of the patches thrown; they come back before the last of the 12 blocks.
_base_ = './simmim_prmim_vitb.py'

model = dict(aggregator='last_blocks')

# SimMIM ViT-B/16 with half of the patches thrown: 98 of the 120 masked ones.
_base_ = './simmim_vitb.py'
custom_imports = dict(
    imports=['prmim_adapters.openmmlab', 'prmim_adapters.accounting.cost_hook'],
    allow_failed_imports=False,
)

model = dict(_delete_=True, type='PRMIM', framework={{_base_.model}}, throw_ratio=0.5)
custom_hooks = [dict(type='CostHook')]  # validates a batch, logs what it saves

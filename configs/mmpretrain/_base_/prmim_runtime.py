# What every run of this project has beside its recipe. Configs that have hooks of their own add
# prmim_hooks to them.
custom_imports = dict(
    imports=['prmim_adapters.openmmlab', 'prmim_adapters.accounting.cost_hook'],
    allow_failed_imports=False,
)
prmim_hooks = [
    dict(type='CostHook'),  # validates a batch; with PR-MIM it logs what throwing saves
    dict(type='FiniteLossHook'),  # stops before a loss that is not finite changes the weights
    dict(type='EndWithLauncherHook'),  # ends with `mim train`, and on SIGTERM
]
custom_hooks = prmim_hooks

# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # PR-MIM in mmpretrain
#
# Attach partial reconstruction to a small MAE, look at what it throws, count what that saves, train ten steps,
# and look at reconstructions. No data and no GPU are needed.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from mmengine.logging import MMLogger
from mmpretrain.registry import MODELS
from mmpretrain.utils import register_all_modules
from skimage import data

import prmim_adapters as prmim
from prmim_adapters.accounting import activation_bytes, count_macs
from prmim_adapters.visualization import observe, panels

register_all_modules()
MMLogger.get_current_instance().setLevel('WARNING')  # or it says how each weight begins
_ = torch.manual_seed(0)

# %% [markdown]
# ## Images
#
# Crops of a photograph that scikit-image ships (the astronaut, public domain), 96 pixels wide.

# %%
photograph = torch.from_numpy(data.astronaut()).permute(2, 0, 1).float()
corners = torch.randint(0, 512 - 192, (16, 2))
crops = torch.stack([photograph[:, y : y + 192 : 2, x : x + 192 : 2] for y, x in corners])
batch = dict(inputs=crops, data_samples=None)

# %% [markdown]
# ## The model
#
# mmpretrain's own MAE, small: 8 x 8 pixel patches, so 12 x 12 = 144 tokens, of which 108 are masked.

# %%
arch = dict(embed_dims=96, num_layers=2, num_heads=3, feedforward_channels=384)
model = MODELS.build(
    dict(
        type='MAE',
        backbone=dict(type='MAEViT', arch=arch, img_size=96, patch_size=8, mask_ratio=0.75),
        neck=dict(
            type='MAEPretrainDecoder',
            num_patches=144,
            patch_size=8,
            embed_dim=96,
            decoder_embed_dim=64,
            decoder_depth=4,
            decoder_num_heads=4,
        ),
        head=dict(
            type='MAEPretrainHead',
            norm_pix=True,
            patch_size=8,
            loss=dict(type='PixelReconstructionLoss', criterion='L2'),
        ),
        data_preprocessor=dict(
            type='SelfSupDataPreprocessor', mean=[124, 116, 104], std=[58, 57, 57]
        ),
    )
)
model.init_weights()

# %% [markdown]
# ## Attach
#
# In place. Only the classes of decoder and head change; the state dict keeps its names.

# %%
images = model.data_preprocessor(batch, True)
before = count_macs(model, images), activation_bytes(model, images)
prmim.attach(model, throw_ratio=0.5)
type(model.neck), type(model.head)

# %% [markdown]
# ## What it saves
#
# Counted on the loss path, per image: what a training step executes. The encoder is small here, so the decoder's
# share, and what is saved of it, is larger than in ViT-B.

# %%
after = count_macs(model, images), activation_bytes(model, images)
for name, old, new, unit in zip(('MACs', 'activations'), before, after, (1e6, 1e6), strict=True):
    old, new = (getattr(value, 'total', value) / unit for value in (old, new))
    print(f'{name}: {old:.1f} M -> {new:.1f} M ({new / old - 1:+.1%})')

# %% [markdown]
# ## What is thrown
#
# Blue patches are kept and go through the decoder. Orange ones are thrown: the light stage reconstructs them.

# %%
two = dict(inputs=crops[:2], data_samples=None)
plt.figure(figsize=(10, 5))
plt.imshow(panels(observe(model, two)))
plt.axis('off')
plt.show()

# %% [markdown]
# The model is untrained, so its reconstruction is noise. Its target is normalised per patch (`norm_pix`), so patches
# are shown with the mean and variance of the true ones, which the model does not know.
#
# ## Ten steps

# %%
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
losses = []
for _ in range(10):
    loss = model.loss(images['inputs'], images['data_samples'])['loss']
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(np.round(losses, 3))
assert losses[-1] < losses[0]

# %% [markdown]
# ## Reconstruction
#
# Ten steps are no training: they show that gradients flow. `make pretrain` trains long enough to see more.

# %%
plt.figure(figsize=(10, 5))
plt.imshow(panels(observe(model, two)))
plt.axis('off')
plt.show()

# %% [markdown]
# ## And back

# %%
prmim.detach(model)
type(model.neck)

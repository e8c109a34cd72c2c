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
# # PR-MIM in transformers
#
# The same as in mmpretrain, for `ViTMAEForPreTraining`: attach, look at what is thrown, count what that saves,
# train ten steps, and look at reconstructions. No data, no GPU and no OpenMMLab are needed.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from skimage import data
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTMAEConfig, ViTMAEForPreTraining

import prmim_adapters as prmim
from prmim_adapters.adapters import partial_of

_ = torch.manual_seed(0)

# %% [markdown]
# ## Images
#
# Crops of a photograph that scikit-image ships (the astronaut, public domain), 96 pixels wide.

# %%
photograph = torch.from_numpy(data.astronaut()).permute(2, 0, 1).float() / 255
corners = torch.randint(0, 512 - 192, (16, 2))
images = torch.stack([photograph[:, y : y + 192 : 2, x : x + 192 : 2] for y, x in corners])
images = (images - 0.45) / 0.23

# %% [markdown]
# ## The model
#
# A small one: 8 x 8 pixel patches, so 12 x 12 = 144 tokens, of which 108 are masked.

# %%
config = ViTMAEConfig(
    image_size=96,
    patch_size=8,
    hidden_size=96,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=384,
    decoder_hidden_size=64,
    decoder_num_hidden_layers=4,
    decoder_num_attention_heads=4,
    decoder_intermediate_size=256,
    norm_pix_loss=False,
)
model = ViTMAEForPreTraining(config)


# %% [markdown]
# ## What it saves
#
# Counted while the loss is computed, per image. One multiply-add is two FLOPs. For a table by module in which two
# counters must agree, see `prmim_adapters.accounting`.


# %%
def macs_per_image():
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(pixel_values=images)
    return counter.get_total_flops() / 2 / len(images) / 1e6


before = macs_per_image()
prmim.attach(model, throw_ratio=0.5)
after = macs_per_image()
print(f'{before:.1f} M -> {after:.1f} M ({after / before - 1:+.1%})')

# %% [markdown]
# ## What is thrown
#
# A hook on the shared part of the model sees every partition. Grey patches are visible, blue ones are kept and go
# through the decoder, orange ones are thrown.

# %%
seen = []
hook = partial_of(model).register_forward_hook(
    lambda module, args, partition: seen.append(partition)
)
with torch.no_grad():
    output = model(pixel_values=images[:2])
hook.remove()


def roles(partition, index):
    cells = torch.full((144, 3), 0.82)
    cells[partition.kept[index]] = torch.tensor((0.12, 0.40, 0.72))
    cells[partition.thrown[index]] = torch.tensor((0.96, 0.66, 0.25))
    return cells.reshape(12, 12, 3)


figure, axes = plt.subplots(1, 4, figsize=(10, 2.8))
for index in range(2):
    axes[2 * index].imshow((images[index] * 0.23 + 0.45).permute(1, 2, 0))
    axes[2 * index + 1].imshow(roles(seen[0], index))
for axis in axes:
    axis.axis('off')
plt.show()

# %% [markdown]
# ## Ten steps

# %%
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
losses = []
for _ in range(10):
    loss = model(pixel_values=images).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(np.round(losses, 3))
assert losses[-1] < losses[0]

# %% [markdown]
# ## Reconstruction
#
# Visible patches as they are, the model's predictions elsewhere. Ten steps are no training: they show that gradients
# flow.

# %%
with torch.no_grad():
    output = model(pixel_values=images[:2])
    predicted = model.unpatchify(output.logits)
hidden = output.mask.reshape(2, 1, 12, 12).repeat_interleave(8, 2).repeat_interleave(8, 3)
shown = (images[:2] * (1 - hidden) + predicted * hidden) * 0.23 + 0.45
figure, axes = plt.subplots(1, 2, figsize=(5, 2.8))
for axis, picture in zip(axes, shown, strict=True):
    axis.imshow(picture.permute(1, 2, 0).clamp(0, 1))
    axis.axis('off')
plt.show()

# %% [markdown]
# ## Take it away
#
# `detach` before `save_pretrained` leaves a plain checkpoint of transformers.

# %%
prmim.detach(model)
type(model)

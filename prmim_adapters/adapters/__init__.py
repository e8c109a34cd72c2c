# SPDX-License-Identifier: Apache-2.0
"""Adapters: which seam of each framework the pipeline goes into.

One entry per framework: the model class, the module that registers its adapter, and which part of
the model thrown tokens skip. The module is imported when such a model is attached, so this package
needs torch only.
"""

from . import masks
from .base import (
    Adapter,
    attach,
    attachment_of,
    detach,
    is_attached,
    partial_of,
    set_throw_ratio,
)
from .declared import Declaration, declare
from .dense import dense_features, feature_map
from .registry import ADAPTERS, AGGREGATORS, SAMPLERS
from .seams import Seams

_HUGGINGFACE = 'transformers.models'
_LIGHTLY = 'lightly.models.modules'
_FRAMEWORKS = {
    'mmpretrain.models.selfsup.mae.MAE': ('mmpretrain.mae', 'decoder (MAE, MFF, HiViT)'),
    'mmpretrain.models.selfsup.eva.EVA': (
        'mmpretrain.mae',
        'decoder; the frozen target network stays',
    ),
    'mmpretrain.models.selfsup.simmim.SimMIM': (
        'mmpretrain.simmim',
        'encoder, ViT and Swin: nearly all',
    ),
    'mmpretrain.models.selfsup.maskfeat.MaskFeat': (
        'mmpretrain.maskfeat',
        'encoder; ratios below 0.4',
    ),
    'mmpretrain.models.selfsup.beit.BEiT': (
        'mmpretrain.beit',
        "encoder, BEiTv2's neck; ratios below 0.39; the frozen tokenizer stays",
    ),
    'mmpretrain.models.selfsup.milan.MILAN': (
        'mmpretrain.milan',
        'decoder, whose loss covers visible tokens too; the frozen target network stays',
    ),
    'mmpretrain.models.selfsup.cae.CAE': (
        'mmpretrain.cae',
        'regressor and decoder; ratios below 0.39; teacher and frozen tokenizer stay',
    ),
    'mmpretrain.models.selfsup.itpn.iTPN': (
        'mmpretrain.itpn',
        'decoder (pixels), encoder and pyramid (CLIP features; ratios below 0.39)',
    ),
    'prmim_adapters.frameworks.fcmae.FCMAE': (
        'mmpretrain.fcmae',
        "decoder, a small part; the large one is the packed encoder (execution='packed')",
    ),
    'mmpretrain.models.selfsup.spark.SparK': (
        'mmpretrain.spark',
        "decoder; the encoder is packed by type='PackedSparseConvNeXt'",
    ),
    'prmim_adapters.frameworks.ibot.IBOT': (
        'mmpretrain.ibot',
        "student's encoder on global crops; teacher and local crops stay",
    ),
    'models_mae.MaskedAutoencoderViT': ('original.mae', 'decoder (facebookresearch/mae)'),
    'models.simmim.SimMIM': ('original.simmim', 'encoder (microsoft/SimMIM)'),
    'models.fcmae.FCMAE': ('original.fcmae', 'decoder (facebookresearch/ConvNeXt-V2)'),
    'utils.MultiCropWrapper': ('original.ibot', "student's encoder (bytedance/ibot)"),
    f'{_HUGGINGFACE}.vit_mae.modeling_vit_mae.ViTMAEForPreTraining': ('huggingface.vit', 'decoder'),
    f'{_HUGGINGFACE}.vit.modeling_vit.ViTForMaskedImageModeling': ('huggingface.vit', 'encoder'),
    f'{_HUGGINGFACE}.swin.modeling_swin.SwinForMaskedImageModeling': (
        'huggingface.swin',
        'encoder',
    ),
    f'{_LIGHTLY}.masked_autoencoder_timm.MAEDecoderTIMM': ('lightly', 'decoder'),
    f'{_LIGHTLY}.masked_vision_transformer_decoder_timm.MaskedVisionTransformerDecoderTIMM': (
        'lightly',
        'decoder',
    ),
}
_DECLARED = {
    f'{_HUGGINGFACE}.videomae.modeling_videomae.VideoMAEForPreTraining': ('huggingface', 'decoder'),
    f'{_HUGGINGFACE}.hiera.modeling_hiera.HieraForPreTraining': ('huggingface', 'decoder'),
    f'{_HUGGINGFACE}.deit.modeling_deit.DeiTForMaskedImageModeling': ('huggingface', 'encoder'),
    'modeling_pretrain.PretrainVisionTransformer': (
        'video',
        'decoder (MCG-NJU/VideoMAE, pengzhiliang/MAE-pytorch)',
    ),
    'models.modeling_pretrain.PretrainVisionTransformer': (
        'video',
        'decoder (OpenGVLab/VideoMAEv2, instead of its decoder mask)',
    ),
    'mae_st.models_mae.MaskedAutoencoderViT': ('video', 'decoder (facebookresearch/mae_st)'),
    'hiera.hiera_mae.MaskedAutoencoderHiera': ('video', 'decoder (facebookresearch/hiera)'),
    'models_mae_learn_loss.MaskedAutoencoderViT': (
        'image',
        'pixel decoder (Haochen-Wang409/HPM)',
    ),
    'models_mae_learn_feature_loss.MaskedAutoencoderViT': (
        'image',
        'decoder (Haochen-Wang409/HPM)',
    ),
    'models.modeling_pretrain_bootmae.VisionTransformerForMaskedImageModeling': (
        'image',
        'pixel decoder (LightDXY/BootMAE)',
    ),
    'solo.methods.mae.MAE': ('image', 'decoder (solo-learn)'),
    'models_mae_group_channels.MaskedAutoencoderGroupChannelViT': (
        'satellite',
        'decoder (sustainlab-group/SatMAE, groups of bands)',
    ),
    'models_mae_temporal.MaskedAutoencoderViT': (
        'satellite',
        'decoder (sustainlab-group/SatMAE, three dates)',
    ),
    'models_mae.MaskedAutoencoderViT (SatMAE++)': ('satellite', 'decoder (techmn/satmae_pp)'),
    'models_mae_group_channels.MaskedAutoencoderGroupChannelViT (SatMAE++)': (
        'satellite',
        'decoder (techmn/satmae_pp, groups of bands)',
    ),
    'terratorch.models.backbones.prithvi_mae.PrithviMAE': (
        'satellite',
        'decoder (Prithvi in terratorch)',
    ),
    'models_mae.MaskedAutoencoderViT (AudioMAE)': (
        'audio',
        'global decoder (facebookresearch/AudioMAE)',
    ),
    'monai.networks.nets.masked_autoencoder_vit.MaskedAutoEncoderViT': ('medicine', 'decoder'),
}
_FRAMEWORKS |= {name: (f'declarations.{part}', s) for name, (part, s) in _DECLARED.items()}
for _framework, (_module, _spared) in _FRAMEWORKS.items():
    ADAPTERS.register_location(_framework, f'{__name__}.{_module}', _spared)
ADAPTERS.register_refusal(
    'mmpretrain.models.selfsup.mixmim.MixMIM',
    'its encoder, 16.35 of 19.04 GMACs, has no mask tokens (masked patches are those of another '
    'image), and its decoder runs on 49 tokens only: throwing all that can be thrown saves 6 %',
)

__all__ = [
    'ADAPTERS',
    'AGGREGATORS',
    'SAMPLERS',
    'Adapter',
    'Declaration',
    'Seams',
    'attach',
    'attachment_of',
    'declare',
    'dense_features',
    'detach',
    'feature_map',
    'is_attached',
    'masks',
    'partial_of',
    'set_throw_ratio',
]

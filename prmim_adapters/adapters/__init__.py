# SPDX-License-Identifier: Apache-2.0
"""Adapters: which seam of each framework the pipeline goes into.

One line per framework: the model class, and the module that registers its adapter. The module is
imported when such a model is attached, so this package needs torch only.
"""

from .base import Adapter, attach, attachment_of, detach, is_attached, partial_of
from .registry import ADAPTERS, AGGREGATORS, SAMPLERS

_LOCATIONS = {
    'mmpretrain.models.selfsup.mae.MAE': 'mae',
    'mmpretrain.models.selfsup.eva.EVA': 'mae',
    'mmpretrain.models.selfsup.simmim.SimMIM': 'simmim',
    'mmpretrain.models.selfsup.maskfeat.MaskFeat': 'maskfeat',
    'mmpretrain.models.selfsup.beit.BEiT': 'beit',
    'prmim_adapters.frameworks.fcmae.FCMAE': 'fcmae',
    'mmpretrain.models.selfsup.spark.SparK': 'spark',
    'prmim_adapters.frameworks.ibot.IBOT': 'ibot',
    'models_mae.MaskedAutoencoderViT': 'original_mae',
    'models.simmim.SimMIM': 'original_simmim',
    'models.fcmae.FCMAE': 'original_fcmae',
    'utils.MultiCropWrapper': 'original_ibot',
    'transformers.models.vit_mae.modeling_vit_mae.ViTMAEForPreTraining': 'huggingface',
    'transformers.models.vit.modeling_vit.ViTForMaskedImageModeling': 'huggingface',
    'transformers.models.swin.modeling_swin.SwinForMaskedImageModeling': 'huggingface_swin',
    'lightly.models.modules.masked_autoencoder_timm.MAEDecoderTIMM': 'lightly',
    'lightly.models.modules.masked_vision_transformer_decoder_timm.'
    'MaskedVisionTransformerDecoderTIMM': 'lightly',
}
for _framework, _module in _LOCATIONS.items():
    ADAPTERS.register_location(_framework, f'{__name__}.{_module}')

__all__ = [
    'ADAPTERS',
    'AGGREGATORS',
    'SAMPLERS',
    'Adapter',
    'attach',
    'attachment_of',
    'detach',
    'is_attached',
    'partial_of',
]

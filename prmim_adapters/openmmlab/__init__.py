# SPDX-License-Identifier: Apache-2.0
"""What mmpretrain configs name. Importing this package registers everything:

custom_imports = dict(imports=['prmim_adapters.openmmlab'], allow_failed_imports=False)
"""

from ..frameworks import fcmae, simmim_vit
from . import compat, device_dataset, knn, prmim

compat.apply()

__all__ = ['compat', 'device_dataset', 'fcmae', 'knn', 'prmim', 'simmim_vit']

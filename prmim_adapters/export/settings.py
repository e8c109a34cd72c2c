# SPDX-License-Identifier: Apache-2.0
"""An encoder's settings out of the config text in a checkpoint, which a stranger may have written.

Literals alone are not safe: a registry of mmengine imports whatever a dotted ``type`` names, calls
it, and imports a package for a ``_scope_``. So nothing of the text reaches a registry that is not
one of the words below: all words that the encoders with a converter take.
"""

from __future__ import annotations

import ast
import re
from typing import Any

#: The encoders that a converter exists for, by their names in mmpretrain's registry.
ENCODERS = frozenset({
    'BEiTPretrainViT', 'BEiTViT', 'CAEPretrainViT', 'FCMAEConvNeXt', 'IBOTViT', 'MAEViT',
    'MFFViT', 'MILANViT', 'MaskFeatViT', 'MoCoV3ViT', 'SimMIMSwinTransformer', 'SimMIMViT',
    'SwinTransformer', 'VisionTransformer',
})  # fmt: skip
#: What may stand before those names, as in the text of a pure-Python config.
_OURS = ('mmpretrain.', 'prmim_adapters.')
#: Layers that these encoders build by name.
_LAYERS = frozenset({'BN', 'Conv2d', 'DropPath', 'GELU', 'LN', 'LN2d', 'ReLU', 'SiLU', 'SyncBN'})
#: Choices that these encoders' options have.
_CHOICES = frozenset({
    'avg_featmap', 'batch', 'bicubic', 'bilinear', 'cls_token', 'corner', 'dense', 'featmap',
    'global', 'image', 'nearest', 'origin', 'packed', 'qv_bias', 'raw', 'same', 'swiglu_fused',
})  # fmt: skip
#: Keys that play no part in building: how weights start, and where a registry looks for names.
_LEFT_OUT = ('init_cfg', '_scope_')
#: Longest config text and largest size that are taken for an honest one.
_MAX_TEXT, _MAX_SIZE, _MAX_IMAGE = 2**20, 2**14, 2**10


def read_literal(text: str, name: str) -> Any:
    """Value of ``name`` in the text of a config, without executing it.

    Raises:
        ValueError: no such name, its value is made by anything but literals and ``dict(...)``, or
            the text is no Python.
    """
    if len(text) > _MAX_TEXT:
        raise ValueError(
            f'the config in the checkpoint has {len(text)} characters, more than {_MAX_TEXT}; '
            'give the training config with --config'
        )
    try:
        for statement in ast.parse(text).body:
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
                return _literal(statement.value)
    except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError) as error:
        raise ValueError(
            f'the config in the checkpoint cannot be read as literals ({error}); give the '
            'training config with --config'
        ) from error
    raise ValueError(f'the config in the checkpoint has no {name!r}; give it with --config')


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and ast.unparse(node.func) == 'dict' and not node.args:
        return {str(keyword.arg): _literal(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        return {
            ast.literal_eval(key): _literal(value)
            for key, value in zip(node.keys, node.values, strict=True)
            if key is not None
        }
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [_literal(item) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    return ast.literal_eval(node)


def checked_encoder(settings: Any) -> dict[str, Any]:
    """Settings of an encoder in which every word is a known one.

    Args:
        settings: what a config in a checkpoint says, as :func:`read_literal` gives it.

    Returns:
        The settings without ``init_cfg`` and ``_scope_``, which building does not need.

    Raises:
        ValueError: no known encoder, a word beyond those listed, a dotted name among them, or a
            size that no encoder has; names the setting.
    """
    kind = settings.get('type') if isinstance(settings, dict) else None
    if isinstance(kind, str) and kind.startswith(_OURS):
        kind = kind.rpartition('.')[2]
    if not isinstance(kind, str) or kind not in ENCODERS:
        raise ValueError(
            f'the config in the checkpoint asks for an encoder of type {kind!r}; known are '
            f'{", ".join(sorted(ENCODERS))}. {_ADVICE}'
        )
    rest = {key: value for key, value in settings.items() if key != 'type'}
    return dict(type=kind, **_checked(rest, 'encoder'))


_ADVICE = 'Nothing was built. If you trust the file, give its training config with --config'


def _checked(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        return {
            _key(key, where): _checked(item, f'{where}.{key}')
            for key, item in value.items()
            if key not in _LEFT_OUT
        }
    if isinstance(value, (list, tuple)):
        return type(value)(_checked(item, where) for item in value)
    if _is_known(value, where):
        return value
    raise ValueError(
        f'the config in the checkpoint has {where}={value!r:.80}, which no known encoder takes. '
        f'{_ADVICE}'
    )


def _is_known(value: Any, where: str) -> bool:
    if isinstance(value, str):
        # Names of sizes are looked up in a table of the encoder's class.
        is_arch = where == 'encoder.arch' and re.fullmatch(r'[a-z0-9-]+', value) is not None
        return is_arch or value in _LAYERS or value in _CHOICES
    largest = _MAX_IMAGE if where == 'encoder.img_size' else _MAX_SIZE
    return value is None or (isinstance(value, (int, float)) and abs(value) <= largest)


def _key(key: Any, where: str) -> str:
    if isinstance(key, str) and key.isidentifier():
        return key
    raise ValueError(
        f'the config in the checkpoint has the key {key!r:.80} in {where}, no name of a setting. '
        f'{_ADVICE}'
    )

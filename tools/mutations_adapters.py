# SPDX-License-Identifier: Apache-2.0
"""Adapters and packed networks: tokens, queries and positions of the wrong rows."""

from __future__ import annotations

from collections.abc import Iterator

from mutation_run import Mutation
from mutation_tests import EXACT, KEYS, ORDER, OWN_PATH, PRESENT, WEIGHTS, contract, named


def queries() -> Iterator[Mutation]:
    """Queries of zeros and queries without mask token, in each adapter."""
    rows = [  # file, the call that queries {} are handed to, queries without mask token, cases
        ('mae_decoder', 'partial.reconstruct(partition, features, {})', 'positions',
         'mae', 'huggingface-vitmae'),
        ('mae_decoder', 'partial.reconstruct(partition, tokens, {})', '(queries - token)', 'fcmae'),
        ('mmpretrain/maskfeat', '(partition, tokens[:, 1:], {})', '(queries - self.mask_token[0])',
         'maskfeat'),
        ('mmpretrain/beit', 'Encoded(partition, seen, {}, ', '(queries - backbone.mask_token[0])',
         'beit', 'beitv2', 'simmim-vit'),
        ('mmpretrain/ibot', '(groups, features, {})', '(queries - self.mask_token[0])', 'ibot'),
        ('mmpretrain/simmim', '(partition, features, {}))', '', 'simmim-swin'),
        ('mmpretrain/spark', '(partition, pixels, {})', '', 'spark'),
        ('huggingface/vit', 'tokens[:, 1:], {})', 'self.embeddings.position_embeddings[0, 1:]',
         'huggingface-vit'),
        ('huggingface/swin', 'partition, features, {})', '', 'huggingface-swin'),
        ('lightly', 'features[:, prefix:], {})', 'positions[0, prefix:]',
         'lightly-MAEDecoderTIMM', 'lightly-MaskedVisionTransformerDecoderTIMM-registers'),
        ('original/simmim', 'self.norm(x)[:, 1:], {})', '(queries - self.mask_token[0])',
         'original-simmim-vit', 'original-simmim-vit-ape'),
        ('original/swin', 'encoder.norm(x), {})', '', 'original-simmim-swin'),
        ('original/ibot', '(groups, features, {})', 'self.pos_embed[0, 1:]', 'original-ibot'),
    ]  # fmt: skip
    for file, call, positions, *cases in rows:
        old, path, tests = call.format('queries'), f'adapters/{file}.py', contract(EXACT, *cases)
        where = f'{file} ({cases[0]})'
        zeros = call.format('0 * queries')
        yield Mutation(f'{where}: queries are zeros', path, old, zeros, tests)
        if positions:
            alone = call.format(positions)
            yield Mutation(f'{where}: queries lack the mask token', path, old, alone, tests)


ADAPTERS = [
    *queries(),
    Mutation(
        'declared: queries are zeros',
        'adapters/blocks.py',
        'reconstruct(partition, x[:, prefix:], self.queries)',
        'reconstruct(partition, x[:, prefix:], 0 * self.queries)',
        contract(EXACT, 'declared'),
    ),
    Mutation(
        'declared: present rows reversed',
        'adapters/blocks.py',
        'return gather_tokens(x, self._present)',
        'return gather_tokens(x, self._present.flip(1))',
        contract(EXACT, 'declared'),
    ),
    Mutation(
        'declared: rows of masked tokens are not compared',
        'adapters/blocks.py',
        'self._check_rows(x)',
        'pass',
        named('adapters/test_declared', 'test_rows_that_are_no_mask_tokens'),
    ),
    Mutation(
        'declared: the mask of the loss is not compared',
        'adapters/blocks.py',
        'if not any(torch.equal(mask, weighed) for mask in seen):',
        'if False:',
        named('adapters/test_declared', 'test_a_loss_of_other_tokens'),
    ),
    Mutation(
        'declared: a loss keeps its mask',
        'adapters/declared.py',
        'if not self.partial.changes_loss:',
        'if True:',
        contract('masked_tokens_have_their_weights', 'declared'),
    ),
    Mutation(
        'ViT encoder: present rows reversed (Hugging Face)',
        'adapters/huggingface/vit.py',
        'gather_tokens(tokens[:, 1:], partition.present)',
        'gather_tokens(tokens[:, 1:], partition.present.flip(1))',
        contract(EXACT, 'huggingface-vit'),
    ),
    Mutation(
        'ViT encoder: visible rows reversed (BEiT, SimMIM, MaskFeat)',
        'adapters/vit_encoder.py',
        'gather_tokens(patches, partition.visible)',
        'gather_tokens(patches, partition.visible.flip(1))',
        contract(ORDER, 'beit', 'simmim-vit', 'maskfeat'),
    ),
    Mutation(
        'ViT encoder: positions reversed (MaskFeat)',
        'adapters/vit_encoder.py',
        'table_rows(positions, partition.present)',
        'table_rows(positions, partition.present.flip(1))',
        contract(EXACT, 'maskfeat'),
    ),
    Mutation(
        'ViT encoder: present rows reversed (iBOT)',
        'packed/sequences.py',
        'F.pad(groups.positions + 1, (1, 0))',
        'F.pad(groups.positions.flip(1) + 1, (1, 0))',
        contract(EXACT, 'ibot', 'ibot-ragged'),
    ),
    Mutation(
        'MAE: shuffled latents taken for sorted ones',
        'adapters/mae_decoder.py',
        'partition = replace(partition, visible=ids_restore.argsort(dim=1)[:, :num_visible])',
        'partition = replace(partition)',
        contract(ORDER, 'mae', 'huggingface-vitmae'),
    ),
    Mutation(
        'relative position bias of the wrong rows',
        'adapters/vit_encoder.py',
        'F.pad(partition.present + 1, (1, 0))',
        'F.pad(partition.present.flip(1) + 1, (1, 0))',
        contract(OWN_PATH, 'beit', 'simmim-vit'),
    ),
    Mutation(
        'MILAN: queries without mask token',
        'adapters/mmpretrain/milan.py',
        'features[:, 1:], queries)',
        'features[:, 1:], positions)',
        contract(EXACT, 'milan'),
    ),
    Mutation(
        'MILAN: cls left out of a weighted loss',
        'adapters/mmpretrain/milan.py',
        'value=1.0',
        'value=0.0',
        contract(WEIGHTS, 'milan'),
    ),
    Mutation(
        'CAE: targets and positions of other masked tokens',
        'adapters/mmpretrain/cae.py',
        'partition.masked.argsort(dim=1).argsort(dim=1)',
        'partition.masked.argsort(dim=1)',
        contract(EXACT, 'cae'),
    ),
    Mutation(
        "CAE: the decoder's thrown tokens from their positions alone",
        'adapters/mmpretrain/cae.py',
        'self.norm_decoder(x), entering, which=1)',
        'self.norm_decoder(x), self.mask_token + there, which=1)',
        contract(EXACT, 'cae'),
    ),
    Mutation(
        'iTPN with CLIP: relative position bias of mirrored pairs',
        'adapters/vit_encoder.py',
        'dense = table_rows(table, index)',
        'dense = table_rows(table, index.T)',
        contract(OWN_PATH, 'itpn-clip'),
    ),
    Mutation(
        "iTPN with CLIP: the pyramid's finer levels of other tokens",
        'adapters/mmpretrain/itpn.py',
        'levels.append(_patches(x, supervised))',
        'levels.append(_patches(x, supervised.flip(1)))',
        contract(EXACT, 'itpn-clip'),
    ),
    Mutation(
        "dense features at each other's positions",
        'adapters/dense.py',
        'torch.cat((partition.visible, partial.supervised(partition)), dim=1)',
        'torch.cat((partial.supervised(partition), partition.visible), dim=1)',
        contract(EXACT, 'huggingface-swin', 'lightly-PixioDecoderTIMM'),
    ),
    Mutation(
        'keys do not know their positions',
        'adapters/specs.py',
        "options.setdefault('key_positions', True)",
        'pass',
        contract(KEYS, 'beit', 'simmim-swin', 'spark', 'huggingface-swin'),
    ),
    Mutation(
        'ViTMAE: weighted loss over the number of masked tokens',
        'adapters/huggingface/vit.py',
        'mul(weights).sum() / weights.sum()',
        'mul(weights).sum() / mask.sum()',
        contract(WEIGHTS, 'huggingface-vitmae'),
    ),
    Mutation(
        'SimMIM: weighted loss over the number of masked tokens',
        'adapters/dense.py',
        '(weights.sum() + 1e-5)',
        '(mask.sum() + 1e-5)',
        contract(WEIGHTS, 'huggingface-vit', 'huggingface-swin'),
    ),
    Mutation(
        'num_prefix: HiViT has a cls token',
        'adapters/mmpretrain/mae.py',
        'num_prefix=0 if isinstance(backbone, HiViT) else 1',
        'num_prefix=1',
        (*contract(OWN_PATH, 'mae-hivit'), *contract(ORDER, 'mae-hivit')),
    ),
    *(
        Mutation(
            f'num_prefix: none in {file}',
            f'adapters/mmpretrain/{file}.py',
            'num_prefix=1',
            'num_prefix=0',
            contract(PRESENT, file),
        )
        for file in ('maskfeat', 'beit', 'ibot')
    ),
    Mutation(
        'num_prefix: SimMIM ViT without cls token',
        'adapters/mmpretrain/simmim.py',
        'num_prefix=0 if is_swin else 1',
        'num_prefix=0',
        contract(PRESENT, 'simmim-vit'),
    ),
    Mutation(
        'num_prefix: registers are patches (lightly)',
        'adapters/lightly.py',
        'num_prefix=model.num_prefix_tokens',
        'num_prefix=1',
        contract(PRESENT, 'lightly-MAEDecoderTIMM-registers'),
    ),
    Mutation(
        'Swin: thrown units are keys',
        'packed/windows.py',
        'absent = torch.full((batch * layout.num_slots,), ABSENT, device=units.device)',
        'absent = torch.full((batch * layout.num_slots,), 0.0, device=units.device)',
        named('packed/test_swin', 'test_equals_the_dense_network_with_thrown_keys_masked'),
    ),
    Mutation(
        'Swin: regions of a shifted map attend to each other',
        'packed/window_attention.py',
        'mask = absent if region is None else absent + region',
        'mask = absent',
        contract(OWN_PATH, 'simmim-swin', 'huggingface-swin'),
    ),
    Mutation(
        'Swin: gradient of keys without the scale of the queries',
        'packed/window_attention.py',
        'of_k = of_scores.transpose(-2, -1) @ q',
        'of_k = of_scores.transpose(-2, -1) @ (q / scale)',
        named('packed/test_swin', 'test_the_backward_of_window_attention_is_autograds'),
    ),
    Mutation(
        'Swin: padded positions give the bias of QKV no gradient',
        'packed/window_attention.py',
        '        of_qkv_bias = None\n        if padding is not None',
        '        of_qkv_bias = None\n        if False',
        named('packed/test_swin', 'test_the_backward_of_window_attention_is_autograds'),
    ),
]

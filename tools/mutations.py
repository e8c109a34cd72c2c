# SPDX-License-Identifier: Apache-2.0
"""Break the code once in each way that the tests must notice, and report what they do not notice.

    python tools/mutations.py             # all: one line each, exit 1 if any survives
    python tools/mutations.py ibot slot   # those with one of these words in their names
    python tools/mutations.py --list

Each mutation replaces a text that must occur exactly once in its file, in a temporary copy of the
working tree, and runs the tests named for it, all of which the default run includes. A text that no
longer occurs, a test that no longer exists, and a test that fails without any mutation are errors,
not kills. Mutations of the original repositories' adapters need PRMIM_UPSTREAM_DIR.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from mutation_run import Mutation, main

EXACT, OWN_PATH = 'loss_is_exact_at_any_ratio', 'own_path_is_the_framework'
WEIGHTS, ORDER = 'masked_tokens_have_their_weights', 'features_follow_their_positions'
KEYS, PRESENT = 'light_stage_knows_positions', 'heavy_network_sees_present_tokens'


def contract(check: str, *cases: str) -> tuple[str, ...]:
    """Node ids of a check of the contract."""
    return tuple(f'tests/contract/test_matrix.py::test_adapter[{case}-{check}]' for case in cases)


def named(path: str, *names: str) -> tuple[str, ...]:
    """Node ids of tests in a file."""
    return tuple(f'tests/{path}.py::{name}' for name in names)


def queries() -> Iterator[Mutation]:
    """Queries of zeros and queries without mask token, in each adapter."""
    rows = [  # file, the call that queries {} are handed to, queries without mask token, cases
        ('mae_decoder', 'partial.reconstruct(partition, features, {})', 'positions',
         'mae', 'huggingface-vitmae'),
        ('mae_decoder', 'partial.reconstruct(partition, tokens, {})', '(queries - token)', 'fcmae'),
        ('mmpretrain/maskfeat', '(partition, tokens[:, 1:], {})', '(queries - self.mask_token[0])',
         'maskfeat'),
        ('mmpretrain/beit', 'return Encoded(partition, {}, ', '(queries - backbone.mask_token[0])',
         'beit', 'beitv2', 'simmim-vit'),
        ('mmpretrain/ibot', '(partition, f[:, 1:], {})', 'positions', 'ibot'),
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
        ('original/ibot', 'f[:, 1:], {})', 'self.pos_embed[0, 1:]', 'original-ibot'),
    ]  # fmt: skip
    for file, call, positions, *cases in rows:
        old, path, tests = call.format('queries'), f'adapters/{file}.py', contract(EXACT, *cases)
        where = f'{file} ({cases[0]})'
        zeros = call.format('0 * queries')
        yield Mutation(f'{where}: queries are zeros', path, old, zeros, tests)
        if positions:
            alone = call.format(positions)
            yield Mutation(f'{where}: queries lack the mask token', path, old, alone, tests)


SLOT = named(
    'adapters/test_seams',
    'test_two_views_before_one_loss_are_refused_and_one_after_the_other_works',
)

MUTATIONS = [
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
        'declared: a loss keeps its mask',
        'adapters/declared.py',
        'if not self.partial.changes_loss:',
        'if True:',
        contract('masked_tokens_have_their_weights', 'declared'),
    ),
    Mutation(
        'kept and thrown swapped',
        'core/partition.py',
        'torch.cat((self.kept, self.thrown), dim=1)',
        'torch.cat((self.thrown, self.kept), dim=1)',
        contract(EXACT, 'mae', 'simmim-swin', 'spark'),
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
        'gather_tokens(tokens[i, 1:], p.present)',
        'gather_tokens(tokens[i, 1:], p.present.flip(1))',
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
        'adapters/mmpretrain/itpn.py',
        'present[:, :, None], present[:, None, :]',
        'present[:, None, :], present[:, :, None]',
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
        'second progressive stage ignores the first',
        'core/pipeline.py',
        'if len(done) < stages:',
        'if False:',
        named('core/test_pipeline', 'test_the_second_stage_reads_the_first'),
    ),
    Mutation(
        'stages in no order of distance',
        'core/pipeline.py',
        'return _nearest_first(partition) if self.num_stages > 1 else partition',
        'return partition',
        named('core/test_pipeline', 'test_stages_go_from_near_to_far_and_build_on_each_other'),
    ),
    Mutation(
        'gradient of thrown tokens not stopped',
        'core/pipeline.py',
        'features.detach() if self.stop_gradient else features',
        'features',
        named(
            'core/test_pipeline', 'test_stop_gradient_keeps_thrown_tokens_from_the_heavy_network'
        ),
    ),
    Mutation(
        'counters agree to a tenth only',
        'accounting/flops.py',
        'rel_tol=1e-6',
        'rel_tol=0.1',
        named('accounting/test_flops', 'test_a_few_hidden_products_are_refused'),
    ),
    Mutation(
        'thrown_weight ignored',
        'core/pipeline.py',
        'weight = self.thrown_weight if self.supervises_thrown else 0.0',
        'weight = 1.0 if self.supervises_thrown else 0.0',
        contract(WEIGHTS, 'mae', 'simmim-vit', 'huggingface-vit'),
    ),
    Mutation(
        'thrown_weight ignored (BEiT, CAE, iTPN with CLIP)',
        'adapters/averages.py',
        'share = weight * num_thrown / (num_kept + weight * num_thrown)',
        'share = num_thrown / (num_kept + num_thrown)',
        contract(WEIGHTS, 'beit', 'beitv2', 'cae', 'itpn-clip'),
    ),
    Mutation(
        'thrown_weight ignored (iBOT)',
        'adapters/mmpretrain/ibot.py',
        'thrown = self.partial.thrown_weight if',
        'thrown = 1.0 if',
        contract(WEIGHTS, 'ibot'),
    ),
    Mutation(
        'plain reconstruction supervises thrown tokens',
        'core/pipeline.py',
        'weight = self.thrown_weight if self.supervises_thrown else 0.0',
        'weight = self.thrown_weight',
        contract(WEIGHTS, 'huggingface-vitmae', 'huggingface-swin'),
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
        'farthest: visible tokens do not count from the start',
        'core/sampling.py',
        "start = ~mask if seeds == 'visible' else torch.zeros_like(mask)",
        'start = torch.zeros_like(mask)',
        named('core/test_sampling', 'test_every_thrown_token_touches_a_present_one'),
    ),
    Mutation(
        'farthest: ties by position (one by one)',
        'core/farthest_numpy.py',
        'np.where(near == top, order, -1)',
        'np.where(near == top, 1, -1)',
        named('core/test_farthest_numpy', 'test_blocks_far_from_any_visible_token'),
    ),
    Mutation(
        'farthest: ties without noise',
        'core/farthest_numpy.py',
        'order = noise.numpy() * mask.shape[1] - np.arange(mask.shape[1])',
        'order = 0 * noise.numpy() - np.arange(mask.shape[1])',
        named('core/test_sampling', 'test_ties_are_broken_at_random_and_repeatably'),
    ),
    Mutation(
        'farthest: ties of the reference by position',
        'core/sampling.py',
        'score = (squared_distance_to(start, (height, width)) << BITS) + noise',
        'score = squared_distance_to(start, (height, width)) << BITS',
        named('core/test_farthest_numpy', 'test_equals_the_reference'),
    ),
    Mutation(
        'EMA: the teacher stands still',
        'frameworks/ibot/algorithm.py',
        'model.teacher.update_parameters(_Network(model.backbone, model.neck))',
        'pass',
        named(
            'frameworks/test_ibot_teacher',
            'test_teacher_is_the_moving_average_with_a_cosine_momentum',
        ),
    ),
    Mutation(
        'EMA: momentum of the other side',
        'frameworks/ibot/algorithm.py',
        'torch._foreach_add_(averaged, source, alpha=momentum)',
        'torch._foreach_add_(averaged, source, alpha=1 - momentum)',
        named(
            'frameworks/test_ibot_teacher',
            'test_teacher_is_the_moving_average_with_a_cosine_momentum',
        ),
    ),
    Mutation(
        'centres: share of the old one swapped',
        'frameworks/ibot/head.py',
        'center.lerp_(mean, 1 - momentum)',
        'center.lerp_(mean, momentum)',
        named('frameworks/test_ibot', 'test_losses_and_centres_are_those_of_the_paper'),
    ),
    Mutation(
        'centres: of this process only',
        'frameworks/ibot/head.py',
        "all_reduce(mean, 'mean')",
        'pass',
        named('frameworks/test_ibot_distributed', 'test_centres_are_means_over_all_processes'),
    ),
    Mutation(
        'centres: of patches from class tokens',
        'frameworks/ibot/head.py',
        '(self.patch_center, teacher_patch, self.patch_center_momentum)',
        '(self.patch_center, teacher_cls, self.patch_center_momentum)',
        named('frameworks/test_ibot', 'test_losses_and_centres_are_those_of_the_paper'),
    ),
    Mutation(
        'ragged shares: rounded up',
        'core/pipeline.py',
        '+ 1e-6).floor()',
        '+ 1e-6).ceil()',
        named('core/test_pipeline', 'test_ragged_rule'),
    ),
    Mutation(
        'ragged shares: every masked token may go',
        'core/pipeline.py',
        '.minimum((num_masked - 1).clamp(min=0))',
        '',
        named('core/test_pipeline', 'test_one_masked_token_is_kept_whatever_the_share'),
    ),
    Mutation(
        'ragged shares: the ratio does not bound them',
        'core/pipeline.py',
        '.clamp(max=self.num_thrown)',
        '',
        named('core/test_pipeline', 'test_ragged_rule'),
    ),
    Mutation(
        'ragged shares: groups in their own order',
        'core/partition.py',
        'return torch.cat([index for index, _ in self.groups]).argsort()',
        'return torch.cat([index for index, _ in self.groups])',
        contract(OWN_PATH, 'ibot-ragged'),
    ),
    Mutation(
        'no gradient for the light stage where nothing is thrown',
        'adapters/mmpretrain/ibot.py',
        'whole.cls + self.partial.unused()',
        'whole.cls',
        named(
            'adapters/mmpretrain/test_ibot',
            'test_a_batch_without_masks_is_the_framework_and_uses_every_parameter',
        ),
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
        'packed/windows.py',
        'mask = windows.absent if region is None else windows.absent + region',
        'mask = windows.absent',
        contract(OWN_PATH, 'simmim-swin', 'huggingface-swin'),
    ),
    Mutation(
        'slot: the loss does not consume the partition',
        'core/pipeline.py',
        'partition = self.current()\n        self._pass = None',
        'partition = self.current()',
        SLOT,
    ),
    Mutation(
        'slot: overwritten unread', 'core/pipeline.py', 'if unread is not None:', 'if False:', SLOT
    ),
    Mutation(
        'slot: of another batch',
        'core/pipeline.py',
        'if len(partition.thrown) != batch_size:',
        'if False:',
        SLOT,
    ),
    Mutation(
        'signatures of overridden methods unchecked',
        'adapters/seams.py',
        'if not _fits(found, expected):',
        'if False:',
        named('adapters/test_seams', 'test_a_decoder_that_takes_the_mask_is_refused'),
    ),
]


if __name__ == '__main__':
    sys.exit(main(MUTATIONS, __doc__))

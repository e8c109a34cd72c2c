# SPDX-License-Identifier: Apache-2.0
"""iBOT: its teacher, its centres, masks of different sizes."""

from __future__ import annotations

from mutation_run import Mutation
from mutation_tests import OWN_PATH, WEIGHTS, contract, named

IBOT = [
    Mutation(
        'thrown_weight ignored (iBOT)',
        'adapters/mmpretrain/ibot.py',
        'thrown = self.partial.thrown_weight if',
        'thrown = 1.0 if',
        contract(WEIGHTS, 'ibot'),
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
        'center.lerp_(total / count, 1 - momentum)',
        'center.lerp_(total / count, momentum)',
        named('frameworks/test_ibot', 'test_losses_and_centres_are_those_of_the_paper'),
    ),
    Mutation(
        'centres: of this process only',
        'frameworks/ibot/head.py',
        'all_reduce(total)\n            all_reduce(count)',
        'pass',
        named('frameworks/test_ibot_distributed', 'test_centres_are_means_over_all_images'),
    ),
    Mutation(
        'centres: processes weigh alike, whatever they hold',
        'frameworks/ibot/head.py',
        'all_reduce(count)',
        'total, count = total / count, count / count + 1',
        named('frameworks/test_ibot_distributed', 'test_centres_are_means_over_all_images'),
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
        'core/ragged.py',
        'return self.images.argsort()',
        'return self.images',
        contract(OWN_PATH, 'ibot-ragged'),
    ),
    Mutation(
        'ragged attention: what fills up is attended to',
        'packed/sequences.py',
        'block.attend(padded, self.mask)',
        'block.attend(padded, None)',
        named('packed/test_sequences', 'test_packing_changes_neither_outputs_nor_gradients'),
    ),
    Mutation(
        'ragged light stage: what fills up is attended to',
        'core/aggregation.py',
        'return None if partition.filled is None else partition.filled[:, None, None]',
        'return None',
        named('core/test_pipeline', 'test_ragged_masks_are_reconstructed_as_each_size_by_itself'),
    ),
    Mutation(
        'ragged blocks of cross-attention: what fills up is attended to',
        'core/cross_blocks.py',
        'allowed = None if filled is None else filled[:, None, None]',
        'allowed = None',
        named('core/test_pipeline', 'test_ragged_masks_are_reconstructed_as_each_size_by_itself'),
    ),
    Mutation(
        'ragged light stage: rows of the first image for all',
        'core/pipeline.py',
        'ragged_places(num_visible, length, length, device)',
        'ragged_places(num_visible[:1] * len(num_visible), length, length, device)',
        named('core/test_pipeline', 'test_ragged_masks_are_reconstructed_as_each_size_by_itself'),
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
]

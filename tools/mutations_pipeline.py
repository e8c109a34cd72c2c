# SPDX-License-Identifier: Apache-2.0
"""What all frameworks share: partition, choice of tokens, light stages, weights, the slot."""

from __future__ import annotations

from mutation_run import Mutation
from mutation_tests import EXACT, WEIGHTS, contract, named

SLOT = named(
    'adapters/test_pass_slot',
    'test_two_views_before_one_loss_are_refused_and_one_after_the_other_works',
)

PIPELINE = [
    Mutation(
        'kept and thrown swapped',
        'core/partition.py',
        'torch.cat((self.kept, self.thrown), dim=1)',
        'torch.cat((self.thrown, self.kept), dim=1)',
        contract(EXACT, 'mae', 'simmim-swin', 'spark'),
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
        'a graph of another throw ratio is replayed',
        'openmmlab/cuda_graph.py',
        'run, key=ratios)',
        'run)',
        named('openmmlab/test_cuda_graph', 'test_another_ratio_is_another_graph'),
    ),
    Mutation(
        'gradients before a graph are not cleared',
        'openmmlab/cuda_graph.py',
        'optim_wrapper.zero_grad()',
        'pass',
        named(
            'openmmlab/test_cuda_graph',
            'test_a_run_with_the_hook_ends_where_one_without_does',
        ),
    ),
    Mutation(
        'a loss of a replay that is not finite goes unseen',
        'openmmlab/cuda_graph.py',
        "hook.look((), dict(data, mode='loss'), log_vars)",
        'pass',
        named('openmmlab/test_cuda_graph', 'test_a_loss_that_is_not_finite_ends_the_run'),
    ),
    Mutation(
        'a graph reads the tensors of the batch that it was captured with',
        'openmmlab/cuda_graph.py',
        '_with_tensors(data, tensors)',
        'data',
        named(
            'openmmlab/test_cuda_graph',
            'test_a_pass_reads_the_tensors_that_it_is_given',
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
        'plain reconstruction supervises thrown tokens',
        'core/pipeline.py',
        'weight = self.thrown_weight if self.supervises_thrown else 0.0',
        'weight = self.thrown_weight',
        contract(WEIGHTS, 'huggingface-vitmae', 'huggingface-swin'),
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
        'last blocks: thrown tokens come back in the places of others',
        'core/pipeline.py',
        '*(dropout(part) for part in thrown)',
        '*(dropout(part).flip(1) for part in thrown)',
        contract('thrown_tokens_come_back_before_the_last_block', 'simmim-vit-norm-target'),
    ),
    Mutation(
        'last blocks: thrown tokens come back past the dropout',
        'core/pipeline.py',
        '*(dropout(part) for part in thrown)',
        '*thrown',
        named('adapters/mmpretrain/test_simmim', 'test_last_blocks_run_on_all_tokens'),
    ),
    Mutation(
        'last blocks: thrown tokens weigh as kept ones (BEiT)',
        'adapters/mmpretrain/beit.py',
        '            encoded.partition,\n            lambda',
        '            encoded.seen,\n            lambda',
        contract('thrown_tokens_come_back_before_the_last_block', 'beit'),
    ),
    Mutation(
        'last blocks: one block too early',
        'adapters/mmpretrain/beit.py',
        'len(backbone.layers) - backbone.partial.last_blocks',
        'len(backbone.layers) - backbone.partial.last_blocks - 1',
        named('adapters/mmpretrain/test_simmim', 'test_last_blocks_run_on_all_tokens'),
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
        named('adapters/test_users_classes', 'test_a_decoder_that_takes_the_mask_is_refused'),
    ),
]

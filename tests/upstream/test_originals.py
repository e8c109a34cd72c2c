# SPDX-License-Identifier: Apache-2.0
"""Adapters on the classes of the original repositories, small, where checkouts are present."""

import copy
import logging
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import prmim_adapters as prmim
from prmim_adapters.adapters import partial_of
from prmim_adapters.upstream.shims import SHIMS


def unit_masks(masked: int, scale: int, batch: int = 3, side: int = 6) -> torch.Tensor:
    """(B, side * scale, side * scale) int64, ``masked`` units of scale x scale tokens each."""
    order = torch.rand(batch, side**2, generator=torch.Generator().manual_seed(7)).argsort(1)
    mask = torch.zeros_like(order).scatter(1, order[:, :masked], 1).view(-1, side, side)
    return mask.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def build_mae():
    import models_mae

    return models_mae.MaskedAutoencoderViT(
        img_size=32,
        patch_size=4,
        embed_dim=24,
        depth=1,
        num_heads=2,
        decoder_embed_dim=32,
        decoder_depth=2,
        decoder_num_heads=2,
        norm_pix_loss=True,
    )


def build_simmim_vit(**options):
    from models.simmim import SimMIM, VisionTransformerForSimMIM

    options = dict(use_abs_pos_emb=False, use_shared_rel_pos_bias=True) | options
    encoder = VisionTransformerForSimMIM(
        img_size=48,
        patch_size=4,
        embed_dim=24,
        depth=2,
        num_heads=2,
        num_classes=0,
        qkv_bias=True,
        init_values=0.1,
        use_mean_pooling=False,
        **options,
    )
    if encoder.rel_pos_bias is not None:
        torch.nn.init.normal_(encoder.rel_pos_bias.relative_position_bias_table)
    return SimMIM(encoder, 4)


def build_simmim_swin(**options):
    from models.simmim import SimMIM, SwinTransformerForSimMIM

    options = dict(img_size=48) | options
    encoder = SwinTransformerForSimMIM(
        patch_size=2,
        embed_dim=12,
        depths=[2, 2, 2],
        num_heads=[1, 2, 4],
        num_classes=0,
        window_size=6,
        drop_path_rate=0.0,
        **options,
    )
    return SimMIM(encoder, 8)


def build_fcmae():
    from models.fcmae import FCMAE

    model = FCMAE(
        img_size=128,
        depths=[1, 1, 1, 1],
        dims=[8, 12, 16, 24],
        decoder_depth=2,
        decoder_embed_dim=32,
        norm_pix_loss=True,
    )
    for name, parameter in model.named_parameters():
        if 'grn' in name:  # starts at zero, where it is the identity
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def build_ibot(**options):
    import utils
    from models.head import iBOTHead
    from models.vision_transformer import VisionTransformer

    options = dict(masked_im_modeling=True, drop_path_rate=0.0) | options
    backbone = VisionTransformer(
        img_size=[32],
        patch_size=4,
        embed_dim=24,
        depth=2,
        num_heads=2,
        qkv_bias=True,
        return_all_tokens=True,
        **options,
    )
    head = iBOTHead(24, 16, patch_out_dim=16, hidden_dim=32, bottleneck_dim=8)
    student = utils.MultiCropWrapper(backbone, head)
    if options['masked_im_modeling']:
        torch.nn.init.normal_(backbone.masked_embed)
    return student


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def ibot_masks(counts=(48, 0, 20, 48, 7, 1)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    rows = [
        torch.zeros(64, dtype=torch.bool).scatter(
            0, torch.randperm(64, generator=generator)[:count], True
        )
        for count in counts
    ]
    return torch.stack(rows).view(-1, 8, 8)


def ibot_loss(student):
    """Both outputs of two global crops, as iBOTLoss takes them."""
    crops = list(noise(6, 3, 32, 32).chunk(2))
    cls, patches = student(crops, mask=list(ibot_masks().chunk(2)))
    return cls.square().mean() + (patches.square().mean(-1) * ibot_masks().flatten(1)).mean()


@dataclass(frozen=True)
class Original:
    """One original model: how to make it, its loss, and the input of its heavy network."""

    name: str
    repository: str
    build: Callable[[], Any]
    loss: Callable[[Any], torch.Tensor]
    heavy: Callable[[Any], torch.nn.Module]
    present: int
    ratio: float = 0.5
    weighted: bool = True


ORIGINALS = [
    Original(
        'mae',
        'mae',
        build_mae,
        lambda model: model(noise(3, 3, 32, 32), mask_ratio=0.75)[0],
        lambda model: model.decoder_blocks[0],
        1 + 16 + 16,
    ),
    Original(
        'simmim-vit',
        'simmim',
        build_simmim_vit,
        lambda model: model(noise(3, 3, 48, 48), unit_masks(22, 2)),
        lambda model: model.encoder.blocks[0],
        1 + 4 * 14 + 4 * 22 - 72,
    ),
    Original(
        'simmim-vit-ape',
        'simmim',
        lambda: build_simmim_vit(use_abs_pos_emb=True, use_shared_rel_pos_bias=False),
        lambda model: model(noise(3, 3, 48, 48), unit_masks(22, 2)),
        lambda model: model.encoder.blocks[0],
        1 + 4 * 14 + 4 * 22 - 72,
    ),
    Original(
        'simmim-swin',
        'simmim',
        build_simmim_swin,
        lambda model: model(noise(3, 3, 48, 48), unit_masks(22, 4)),
        lambda model: model.encoder.layers[0].blocks[0].norm1,
        16 * (14 + 4),
    ),
    Original(
        'fcmae',
        'convnextv2',
        build_fcmae,
        lambda model: model(noise(3, 3, 128, 128), mask_ratio=0.6)[0],
        lambda model: model.decoder[0].pwconv1,
        6 + 2,
    ),
    Original(
        'ibot',
        'ibot',
        build_ibot,
        ibot_loss,
        lambda model: model.backbone.blocks[0].attn.qkv,
        # packed: of 48, 0, 20, 48, 7, 1 masked tokens 32, 0, 13, 32, 4, 0 are thrown
        6 * 65 - 81,
        weighted=False,
    ),
]


@pytest.fixture(params=ORIGINALS, ids=lambda original: original.name)
def original(request, upstream_modules):
    upstream_modules(request.param.repository)
    return request.param


def made(original: Original, **options):
    torch.manual_seed(0)
    model = original.build()
    if not options:
        return model
    torch.manual_seed(2)
    return prmim.attach(model, **{'throw_ratio': original.ratio, **options})


def loss_of(original: Original, model) -> torch.Tensor:
    torch.manual_seed(1)
    return original.loss(model)


def test_ratio_zero_is_upstream(original):
    upstream, ours = made(original), made(original, throw_ratio=0)
    expected, actual = loss_of(original, upstream), loss_of(original, ours)
    assert_close(actual, expected, rtol=1e-6, atol=0)
    expected.backward()
    actual.backward()
    gradients = dict(ours.named_parameters())
    for name, parameter in upstream.named_parameters():
        if parameter.requires_grad:
            assert_close(gradients[name].grad, parameter.grad, rtol=1e-5, atol=1e-7, msg=name)


def test_own_path_is_upstream_where_nothing_is_thrown(original):
    """Gathering, packing and scattering change nothing by themselves."""
    expected = loss_of(original, made(original))
    ours = made(original, throw_ratio=original.ratio)
    partial_of(ours).throw_ratio = 0.0
    actual = loss_of(original, ours)
    assert_close(actual, expected, rtol=2e-6, atol=1e-6)


def test_heavy_network_sees_present_tokens(original):
    model, seen = made(original, throw_ratio=original.ratio), []

    def record(module, args):
        x = args[0]
        seen.append(x.shape[0] if x.dim() == 2 else x.shape[1])

    handle = original.heavy(model).register_forward_pre_hook(record)
    loss_of(original, model)
    handle.remove()
    assert seen == [original.present]


def test_names_checkpoints_and_detach(original):
    upstream, ours = made(original), made(original, throw_ratio=original.ratio)
    theirs, mine = upstream.state_dict(), ours.state_dict()
    added = set(mine) - set(theirs)
    assert set(theirs) < set(mine)
    assert all('partial.aggregators.' in name for name in added)
    kept = [name for name in dict(ours.named_parameters()) if name not in added]
    assert kept == list(dict(upstream.named_parameters()))  # iBOT's average goes by order too
    missing, unexpected = ours.load_state_dict(theirs, strict=False)
    assert set(missing) == added
    assert unexpected == []
    prmim.detach(ours)
    assert list(ours.state_dict()) == list(theirs)
    assert [type(m) for m in ours.modules()] == [type(m) for m in upstream.modules()]
    assert torch.equal(loss_of(original, ours), loss_of(original, upstream))


def test_every_parameter_is_used(original):
    model = made(original, throw_ratio=original.ratio)
    loss_of(original, model).backward()
    unused = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []
    assert any(p.grad.abs().sum() > 0 for p in partial_of(model).parameters())


def test_deepcopy_pickle_and_autocast(original):
    model = made(original, throw_ratio=original.ratio)
    expected = loss_of(original, model)
    twins = [pickle.loads(pickle.dumps(model))]
    if original.name != 'ibot':  # torch cannot copy the weight norm of upstream's head
        twins.append(copy.deepcopy(model))
    for twin in twins:
        assert type(twin) is type(model)
        assert torch.equal(loss_of(original, twin), expected)
    with torch.autocast('cpu', torch.bfloat16):
        rounded = loss_of(original, model)
    assert_close(rounded.float(), expected, rtol=0.05, atol=0.05)


def test_weights_of_thrown_tokens(original):
    """Weight 1 is the default; plain reconstruction is weight 0; 0.5 is between."""
    if not original.weighted:
        with pytest.raises(ValueError, match='weighs every masked token'):
            loss_of(original, made(original, throw_ratio=original.ratio, aggregator=None))
        return
    default, half, zero, plain = (
        loss_of(original, made(original, throw_ratio=original.ratio, **options))
        for options in (
            {},
            dict(thrown_weight=0.5),
            dict(thrown_weight=0.0),
            dict(aggregator=None),
        )
    )
    assert_close(zero, plain, rtol=1e-5, atol=1e-6)
    assert not torch.isclose(default, plain)
    assert min(default, plain) < half < max(default, plain)


def test_too_large_a_ratio_is_refused(original):
    if original.name == 'ibot':
        pytest.skip('ragged masks: an image throws what it can')
    with pytest.raises(ValueError, match='cannot throw'):
        loss_of(original, made(original, throw_ratio=0.9))


def test_simmim_with_a_bias_in_every_block_is_refused(upstream_modules):
    upstream_modules('simmim')
    model = build_simmim_vit(use_shared_rel_pos_bias=False, use_rel_pos_bias=True)
    with pytest.raises(ValueError, match='USE_RPB=True'):
        prmim.attach(model)


def test_simmim_with_a_mask_that_cuts_units_is_refused(upstream_modules):
    upstream_modules('simmim')
    model = prmim.attach(build_simmim_swin())
    with pytest.raises(ValueError, match='not constant inside'):
        model(noise(3, 3, 48, 48), unit_masks(22, 2, side=12))


def test_ibot_local_crops_and_empty_masks(upstream_modules):
    upstream_modules('ibot')
    upstream, ours = build_ibot(), prmim.attach(build_ibot(), throw_ratio=0.5)
    ours.load_state_dict(upstream.state_dict(), strict=False)
    crops, empty = [noise(2, 3, 32, 32)], [torch.zeros(2, 8, 8, dtype=torch.bool)]
    expected, actual = upstream(crops, mask=empty), ours(crops, mask=empty)
    assert torch.equal(actual[1], expected[1])
    (actual[0].sum() + actual[1].sum()).backward()
    assert [n for n, p in ours.named_parameters() if p.requires_grad and p.grad is None] == []
    for model in (upstream, ours):
        model.backbone.masked_im_modeling = False
    local = [noise(2, 3, 16, 16)]
    assert torch.equal(ours(local)[0], upstream(local)[0])


def test_ibot_teacher_and_swin_are_refused(upstream_modules):
    upstream_modules('ibot')
    with pytest.raises(ValueError, match='this is the teacher'):
        prmim.attach(build_ibot(masked_im_modeling=False))
    import models
    import utils

    swin = utils.MultiCropWrapper(models.swin_tiny(window_size=7, masked_im_modeling=True))
    with pytest.raises(TypeError, match='not Swin'):
        prmim.attach(swin)


def test_fcmae_encoder_equals_this_packages(upstream_modules):
    """The stand-in for MinkowskiEngine against mmpretrain's dense masked ConvNeXt, weights remapped."""
    fcmae = pytest.importorskip('prmim_adapters.frameworks.fcmae')
    upstream_modules('convnextv2')
    import utils

    torch.manual_seed(0)
    theirs = build_fcmae().encoder
    for module in theirs.modules():
        for name in ('kernel', 'gamma', 'beta'):
            if hasattr(module, name):
                torch.nn.init.normal_(getattr(module, name), std=0.3)
    ours = fcmae.FCMAEConvNeXt(
        arch=dict(depths=[1, 1, 1, 1], channels=[8, 12, 16, 24]),
        img_size=128,
        mask_ratio=0.6,
        execution='dense',
        grn_scope='batch',
    )
    state = utils.remap_checkpoint_keys({f'encoder.{k}': v for k, v in theirs.state_dict().items()})
    ours.load_state_dict(
        {
            k.replace('dwconv', 'depthwise_conv').replace('pwconv', 'pointwise_conv'): v.flatten()
            if 'grn' in k
            else v
            for k, v in state.items()
        }
    )
    order = torch.rand(3, 16, generator=torch.Generator().manual_seed(0)).argsort(1)
    mask = torch.ones(3, 16).scatter(1, order[:, :6], 0.0)
    expected = ours(noise(3, 3, 128, 128), mask.bool())[0]
    assert_close(theirs(noise(3, 3, 128, 128), mask), expected, rtol=1e-4, atol=1e-4)


def test_mae_linear_probe_crops(upstream_modules, monkeypatch):
    functional = pytest.importorskip('torchvision.transforms.functional')
    folder = upstream_modules('mae')
    from util.crop import RandomResizedCrop

    shown = getattr(functional, '_get_image_size', None)
    monkeypatch.setattr(functional, '_get_image_size', shown, raising=False)
    if shown is None:
        del functional._get_image_size
    SHIMS['torchvision-image-size'](folder / 'main_linprobe.py', [])
    assert RandomResizedCrop(8)(torch.rand(3, 5, 30)).shape == (3, 8, 8)
    top, left, height, width = RandomResizedCrop.get_params(torch.rand(3, 5, 30), (1, 1), (6, 6))
    assert (top, left, height, width) == (0, 0, 5, 30)


def test_simmim_fine_tuning_with_another_window(upstream_modules, monkeypatch):
    """Position biases that rise linearly rise as they did, from window 6 to 7 and 6 x 6 to 7 x 7."""
    interpolate = pytest.importorskip('scipy.interpolate')
    folder = upstream_modules('simmim')
    import utils

    monkeypatch.setattr(interpolate, 'interp2d', getattr(interpolate, 'interp2d', None))
    SHIMS['scipy-interp2d'](folder / 'main_finetune.py', [])

    def ramp(positions):
        y, x = torch.meshgrid(positions, positions, indexing='ij')
        return torch.stack([2 * x - y, x + 3 * y + 1], -1).flatten(0, 1)

    root = torch.linalg.eigvals(  # 1 + r + r^2 + r^3 + r^4 = 6: upstream's distances end at 6
        torch.tensor(
            [[-1.0, -1, -1, 5], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], dtype=torch.double
        )
    )
    r = root.real[(root.imag == 0) & (root.real > 1)]
    distances = torch.cat([r**i for i in range(5)]).cumsum(0)
    before = ramp(torch.cat([-distances.flip(0), torch.zeros(1), distances])).float()
    expected = ramp(torch.arange(-6.0, 7))

    key = 'relative_position_bias_table'
    swin = SimpleNamespace(state_dict=lambda: {key: torch.zeros(13 * 13, 2)})
    tables = utils.remap_pretrained_keys_swin(swin, {key: before}, logging.getLogger())
    assert_close(tables[key], expected, rtol=0, atol=1e-4)

    extra = torch.tensor([[7.0, 8.0]] * 3)
    name = f'blocks.0.attn.{key}'
    vit = SimpleNamespace(
        get_num_layers=lambda: 1,
        patch_embed=SimpleNamespace(patch_shape=(7, 7)),
        state_dict=lambda: {name: torch.zeros(13 * 13 + 3, 2)},
    )
    shared = {f'rel_pos_bias.{key}': torch.cat([before, extra])}
    tables = utils.remap_pretrained_keys_vit(vit, shared, logging.getLogger())
    assert_close(tables[name], torch.cat([expected, extra]), rtol=0, atol=1e-4)

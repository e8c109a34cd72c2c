# SPDX-License-Identifier: Apache-2.0
"""SimMIM's normalised targets against the original and against every window on its own."""

from __future__ import annotations

import pytest
import torch

from prmim_adapters.frameworks.norm_target import NormTargetSimMIMHead

LOSS = {'type': 'PixelReconstructionLoss', 'criterion': 'L1', 'channel': 3}


def head(norm_window):
    return NormTargetSimMIMHead(norm_window, patch_size=4, loss=LOSS)


def target(norm_window, images):
    mean, deviation = head(norm_window).statistics(images)
    return (images - mean) / deviation


@pytest.fixture
def images():
    wave = torch.sin(torch.arange(2 * 3 * 12 * 20, dtype=torch.float64) * 0.013)
    return wave.reshape(2, 3, 12, 20).float()


def test_equals_the_original(images):
    # Golden numbers: norm_targets of models/simmim.py, microsoft/Swin-Transformer at 055c506, of
    # these images with patch_size=5.
    found = target(5, images)
    near = dict(rtol=0, atol=2e-6)
    corner = torch.tensor([-1.22763264, -1.21501505, -1.19366443, -1.19435143])
    torch.testing.assert_close(found[0, 0, 0, :4], corner, **near)
    corner = torch.tensor([1.20220995, 1.20146310, 1.22401404, 1.23775434])
    torch.testing.assert_close(found[1, 2, -1, -4:], corner, **near)
    torch.testing.assert_close(found[0, 1, 6, 10], torch.tensor(-0.99462563), **near)
    assert found.double().abs().mean().item() == pytest.approx(0.54598506, abs=1e-6)
    assert found.double().square().sum().item() == pytest.approx(644.74359074, abs=1e-3)


@pytest.mark.parametrize('norm_window', [3, 7, 47])
def test_each_window_is_that_of_its_pixel(norm_window):
    images = torch.randn(2, 3, 9, 14, generator=torch.Generator().manual_seed(0))
    mean, deviation = head(norm_window).statistics(images)
    reach = norm_window // 2
    for row in range(9):
        for column in range(14):
            rows = slice(max(row - reach, 0), row + reach + 1)
            columns = slice(max(column - reach, 0), column + reach + 1)
            window = images[:, :, rows, columns].flatten(2).double()
            found = mean[:, :, row, column], deviation[:, :, row, column]
            expected = window.mean(-1), (window.var(-1) + 1e-6).sqrt()
            torch.testing.assert_close(found, tuple(v.float() for v in expected))


def test_the_loss_is_that_of_the_normalised_image(images):
    mask = torch.tensor([[[1, 0, 0, 1, 0]] * 3, [[0, 1, 1, 0, 0]] * 3])
    pixels = mask.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None].expand(-1, 3, -1, -1)
    pred = images.flip(0)
    expected = (pred - target(5, images)).abs()[pixels.bool()].mean()
    torch.testing.assert_close(head(5).loss(pred, images, mask), expected)


def test_an_even_image_has_finite_targets():
    assert target(5, torch.full((1, 3, 8, 8), 0.3)).abs().max() < 0.1


@pytest.mark.parametrize(
    ('value', 'message'),
    [
        (4, 'norm_window=4 must be odd'),
        (1, 'norm_window=1 must be at least 3'),
        (5.0, 'norm_window=5.0 .*whole number'),
    ],
)
def test_windows_that_have_no_middle_are_refused(value, message):
    with pytest.raises((TypeError, ValueError), match=message):
        head(value)

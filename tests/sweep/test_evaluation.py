# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from prmim_adapters.sweep.evaluation import frozen_accuracy
from prmim_adapters.sweep.point import described


def clusters(count, generator, noise=0.5):
    labels = torch.arange(count) % 4
    centres = torch.eye(4)
    return centres[labels] * 3 + noise * torch.randn(count, 4, generator=generator), labels


def test_separable_features_are_classified():
    generator = torch.Generator().manual_seed(0)
    got = frozen_accuracy(clusters(200, generator), clusters(100, generator), num_classes=4)
    assert got['knn'] == 100.0
    assert got['linear'] == 100.0


def test_accuracy_is_a_percentage_of_the_test_labels():
    generator = torch.Generator().manual_seed(0)
    train, (features, labels) = clusters(200, generator), clusters(100, generator)
    wrong = labels.clone()
    wrong[:25] = (wrong[:25] + 1) % 4
    got = frozen_accuracy(train, (features, wrong), num_classes=4)
    assert got['knn'] == got['linear'] == 75.0


def test_the_scale_of_a_channel_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    train, test = clusters(200, generator, noise=1.5), clusters(400, generator, noise=1.5)
    scale = torch.tensor([1.0, 100.0, 0.01, 7.0])
    plain = frozen_accuracy(train, test, num_classes=4)
    scaled = frozen_accuracy((train[0] * scale, train[1]), (test[0] * scale, test[1]), 4)
    assert plain['knn'] < 100
    assert scaled['knn'] == pytest.approx(plain['knn'], abs=0.3)
    assert scaled['linear'] == pytest.approx(plain['linear'], abs=0.3)


def test_random_labels_give_chance():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1200, 8, generator=generator)
    labels = torch.randint(4, (1200,), generator=generator)
    halves = (features[:600], labels[:600]), (features[600:], labels[600:])
    got = frozen_accuracy(*halves, num_classes=4)
    assert 18 < got['knn'] < 32
    assert 18 < got['linear'] < 32


def test_a_failed_point_ends_with_type_and_place_of_an_error_without_message():
    try:
        raise AssertionError
    except AssertionError as error:
        last = described(error).splitlines()[-1]
    assert last.startswith('AssertionError at ')
    assert last.endswith(': raise AssertionError')

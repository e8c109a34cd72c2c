# SPDX-License-Identifier: Apache-2.0
"""The vote of the nearest neighbours, against one by hand."""

import math

import numpy as np
import pytest
import torch

import prmim_adapters.openmmlab  # noqa: F401, registers InMemoryImages
from prmim_adapters.frameworks import packed_convnext  # noqa: F401, registers the backbone
from prmim_adapters.openmmlab.knn import knn_classify


def vote_by_hand(train, labels, test, num_classes, k, temperature):
    """The definition, image by image, in double precision numpy."""
    predictions = []
    for image in test.double().numpy():
        similarity = [
            float(image @ row / (np.linalg.norm(image) * np.linalg.norm(row)))
            for row in train.double().numpy()
        ]
        votes = [0.0] * num_classes
        for index in sorted(range(len(train)), key=lambda i: -similarity[i])[:k]:
            votes[int(labels[index])] += math.exp(similarity[index] / temperature)
        predictions.append(int(np.argmax(votes)))
    return predictions


@pytest.mark.parametrize(('k', 'temperature'), [(1, 0.07), (20, 0.07), (20, 10.0)])
def test_prediction_is_the_weighted_vote(k, temperature):
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(60, 5, generator=generator) * 3
    test = torch.randn(37, 5, generator=generator)
    labels = torch.randint(0, 4, (60,), generator=generator)

    predicted = knn_classify(train, labels, test, 4, k, temperature, chunk_size=10)

    assert predicted.tolist() == vote_by_hand(train, labels, test, 4, k, temperature)


def test_near_neighbour_outvotes_a_far_majority_only_when_temperature_is_low():
    angles = torch.tensor([0.0, 0.9, 1.0, 1.1])
    train = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels = torch.tensor([0, 1, 1, 1])
    test = torch.tensor([[1.0, 0.05]])

    assert knn_classify(train, labels, test, 2, k=4, temperature=0.07).item() == 0
    assert knn_classify(train, labels, test, 2, k=4, temperature=100.0).item() == 1


def test_small_temperature_does_not_overflow():
    train = torch.eye(3)
    labels = torch.tensor([2, 1, 0])
    assert knn_classify(train, labels, torch.eye(3), 3, k=3, temperature=1e-3).tolist() == [2, 1, 0]


def test_too_many_neighbours_is_an_error():
    with pytest.raises(ValueError, match='k=20 neighbours asked of 3 training features'):
        knn_classify(torch.eye(3), torch.arange(3), torch.eye(3), 3)
    with pytest.raises(ValueError, match='2 labels for 3 training features'):
        knn_classify(torch.eye(3), torch.arange(2), torch.eye(3), 3, k=1)

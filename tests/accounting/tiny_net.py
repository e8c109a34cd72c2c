# SPDX-License-Identifier: Apache-2.0
"""A model that other processes can build: a module that they can import."""

from __future__ import annotations

import torch


class Build:
    """Picklable, as the processes that measure memory need it."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self):
        return Net(self.width)


class Net(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer, self.last = torch.nn.Linear(4, width), torch.nn.Linear(width, 4)

    def forward(self, x):
        return self.last(self.layer(x).relu()).square().mean()


def batch_for(model):
    return {'inputs': torch.ones(256, 4), 'data_samples': None}


def fails(model):
    return 1 // 0

"""Writes a model as a TorchScript file: python export.py model.pt. Training it needs no Python any more."""

import sys

import torch
from torch import nn


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        )
        self.classes = nn.Linear(32 * 7 * 7, 10)
        self.dropout = nn.Dropout(0.2)

    def forward(self, pictures):
        return self.classes(self.dropout(self.features(pictures).flatten(1)))


torch.manual_seed(1)
torch.jit.script(Network()).save(sys.argv[1])

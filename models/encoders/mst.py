"""Encoders of MNIST-SVHN-Text, with one token each, which is also their vector (docs/reference/dymo.md §1.4).

The trunks are shared with the posterior networks of MoPoE. Layers are named as in the original.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class MNISTTrunk(nn.Module):
    """(B, 1, 28, 28) in [0, 1] -> (B, 400), one hidden layer."""

    features = 400

    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Sequential(nn.Sequential(nn.Linear(784, self.features), nn.ReLU()))

    def trunk(self, x: Tensor) -> Tensor:
        return self.enc(x.flatten(1))


class SVHNTrunk(nn.Module):
    """(B, 3, 32, 32) in [0, 1] -> (B, 128), four stride-2 convolutions."""

    features = 128

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 4, 2, 1)
        self.conv2 = nn.Conv2d(32, 64, 4, 2, 1)
        self.conv3 = nn.Conv2d(64, 64, 4, 2, 1)
        self.conv4 = nn.Conv2d(64, self.features, 4, 2, 0)

    def trunk(self, x: Tensor) -> Tensor:
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.relu(conv(x))
        return x.flatten(1)


class TextTrunk(nn.Module):
    """One-hot text (B, 8, symbols) -> (B, 128)."""

    features = 128

    def __init__(self, symbols: int = 71) -> None:
        super().__init__()
        self.text_feature_enc = nn.ModuleDict(
            {
                "conv1": nn.Conv1d(symbols, self.features, 1),
                "conv2": nn.Conv1d(self.features, self.features, 4, 2, 1),
                "conv5": nn.Conv1d(self.features, self.features, 4, 2, 0),
            }
        )

    def trunk(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        for conv in self.text_feature_enc.values():
            x = F.relu(conv(x))
        return x.flatten(1)


class MNISTEncoder(MNISTTrunk):
    """(B, 1, 28, 28) -> (B, 1, width). 326,832 parameters at width 32."""

    tokens = 1

    def __init__(self, width: int = 32, vector_width: int | None = None) -> None:
        super().__init__()
        self.width = vector_width or width
        self.proj = nn.Linear(self.features, self.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.trunk(x))[:, None]


class SVHNEncoder(SVHNTrunk):
    """(B, 3, 32, 32) -> (B, 1, width). 235,328 parameters at width 32."""

    tokens = 1

    def __init__(self, width: int = 32, vector_width: int | None = None) -> None:
        super().__init__()
        self.width = vector_width or width
        self.proj = nn.Linear(self.features, self.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.trunk(x))[:, None]


class TextEncoder(TextTrunk):
    """One-hot text (B, 8, symbols) -> (B, 1, width). 144,672 parameters at width 32 and 71 symbols."""

    tokens = 1

    def __init__(self, width: int = 32, symbols: int = 71, vector_width: int | None = None) -> None:
        super().__init__(symbols)
        self.width = vector_width or width
        self.proj = nn.Linear(self.features, self.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.trunk(x))[:, None]

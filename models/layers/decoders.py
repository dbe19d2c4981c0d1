"""Parts of decoders: from a vector to content of any shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class Reshape(nn.Module):
    """Linear map (B, D) -> (B, *shape); with ``is_text``, log-probabilities over the last axis."""

    def __init__(self, width: int, shape: Sequence[int], is_text: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(width, math.prod(shape))
        self.shape, self.is_text = tuple(shape), is_text

    def forward(self, code: Tensor) -> Tensor:
        x = self.linear(code).unflatten(1, self.shape)
        return x.log_softmax(-1) if self.is_text else x


class Resized(nn.Module):
    """Resize images (B, C, h, w) to (B, C, *sides)."""

    def __init__(self, sides: Sequence[int]) -> None:
        super().__init__()
        self.sides = tuple(sides)

    def forward(self, x: Tensor) -> Tensor:
        return x if tuple(x.shape[2:]) == self.sides else F.interpolate(x, self.sides, mode="bilinear")


def upsampling(width: int, shape: Sequence[int], activation: nn.Module | None = None) -> nn.Sequential:
    """Decoder (B, width) -> (B, *shape) of images (C, H, W) of any size: transposed convolutions from 4 x 4.

    Args:
        activation: of the output.
    """
    doublings = max(1, (max(shape[1:]) - 1).bit_length() - 2)
    channels = [max(16, 128 >> i) for i in range(doublings)]
    layers: list[nn.Module] = [Reshape(width, (channels[0], 4, 4)), nn.ReLU()]
    for inner, outer in pairwise(channels):
        layers += [nn.ConvTranspose2d(inner, outer, 4, 2, 1), nn.ReLU()]
    last = [nn.ConvTranspose2d(channels[-1], shape[0], 4, 2, 1), *([activation] if activation else [])]
    return nn.Sequential(*layers, *last, Resized(shape[1:]))

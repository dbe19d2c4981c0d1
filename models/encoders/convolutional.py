"""Small convolutional encoders: image -> tokens (B, N, D)."""

from __future__ import annotations

from torch import Tensor, nn


class PolyMNISTEncoder(nn.Module):
    """(B, 3, 28, 28) in [0, 1] -> (B, 4, 128): three stride-2 convolutions, 1x1, max-pool (dymo_core 1.4).

    109,760 parameters at the default widths.
    """

    tokens = 4

    def __init__(self, channels: int = 3, width: int = 128) -> None:
        super().__init__()
        self.width = width
        self.network = nn.Sequential(
            nn.Conv2d(channels, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(64, width, 3, 2, 1),
            nn.ReLU(),
        )
        self.proj_conv = nn.Sequential(nn.Conv2d(width, width, 1), nn.MaxPool2d(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj_conv(self.network(x)).flatten(2).transpose(1, 2)

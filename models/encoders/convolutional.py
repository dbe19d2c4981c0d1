"""Small convolutional encoders: image -> tokens (B, N, D) or one vector (B, 1, D)."""

from __future__ import annotations

from torch import Tensor, nn

from models.layers.batch_norm import BatchNorm2d


class PolyMNISTEncoder(nn.Module):
    """(B, 3, 28, 28) in [0, 1] -> (B, 4, 128): three stride-2 convolutions, 1x1, max-pool
    (docs/reference/dymo.md §1.4).

    109,760 parameters at the default widths. With ``vector_width``, a linear map of the flattened feature map replaces
    1x1 and max-pool: (B, 1, ``vector_width``), 1,142,336 parameters at 512 (docs/reference/baselines.md §1.2).
    """

    def __init__(self, channels: int = 3, width: int = 128, vector_width: int | None = None) -> None:
        super().__init__()
        self.tokens, self.width = (1, vector_width) if vector_width else (4, width)
        self.network = nn.Sequential(
            nn.Conv2d(channels, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(64, width, 3, 2, 1),
            nn.ReLU(),
        )
        if vector_width:
            self.proj = nn.Linear(width * 4 * 4, vector_width)
        else:
            self.proj_conv = nn.Sequential(nn.Conv2d(width, width, 1), nn.MaxPool2d(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        if self.tokens == 1:
            return self.proj(self.network(x).flatten(1))[:, None]
        return self.proj_conv(self.network(x)).flatten(2).transpose(1, 2)


class ConvolutionalEncoder(nn.Module):
    """(B, channels, H, W) of at least 16 x 16 -> (B, 4, width): four stride-2 convolutions, 2 x 2 average pooling.

    98,176 parameters at the default width, for experiments on a CPU, where a ResNet is too slow.
    """

    tokens = 4

    def __init__(self, width: int = 128, channels: int = 3) -> None:
        super().__init__()
        self.width = width
        layers: list[nn.Module] = []
        for channels_in, channels_out in ((channels, 16), (16, 32), (32, 64), (64, width)):
            layers += [
                nn.Conv2d(channels_in, channels_out, 3, 2, 1, bias=False),
                BatchNorm2d(channels_out),
                nn.ReLU(),
            ]
        self.network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).flatten(2).transpose(1, 2)


class ClipEncoder(ConvolutionalEncoder):
    """:class:`ConvolutionalEncoder` of clips (B, T, channels, H, W), with the mean tokens of the frames, or of single
    frames (B, channels, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            return super().forward(x)
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)


class SpectrogramEncoder(ConvolutionalEncoder):
    """:class:`ConvolutionalEncoder` of spectrograms (B, H, W), 97,888 parameters at the default width."""

    def __init__(self, width: int = 128) -> None:
        super().__init__(width, channels=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, None])

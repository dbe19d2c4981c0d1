"""Residual encoders of CelebA for images and attribute text, with one token each, which is also their vector
(docs/reference/dymo.md §1.4).

Pre-activation blocks with batch normalisation and dropout 0.5, and transposed blocks for the decoders of MoPoE. Layers
are named as in the original. The original encodes a batch once per subset of a training step, we once per step: running
statistics then move by 0.1 per step instead of 1 - 0.9^K, and the subsets of a step share their dropout. In a training
batch of one row, layers with one value per channel normalise by their running statistics.
"""

from __future__ import annotations

from torch import Tensor, nn

from models.layers.batch_norm import BatchNorm1d, BatchNorm2d

SHORTCUT, BRANCH = 2.0, 0.3
DROPOUT = 0.5


class ResidualBlock(nn.Module):
    """2.0 * shortcut + 0.3 * branch.

    Branch: BN - ReLU - 1x1 convolution - dropout - BN - ReLU - 4x4 convolution - dropout, without biases for images;
    shortcut: 4x4 convolution - BN.

    Args:
        dims: 2 for images (dropout of complete channels), 1 for text.
        transposed: use transposed convolutions, for decoders; the shortcut is then named ``upsample``.
    """

    def __init__(
        self,
        dims: int,
        channels_in: int,
        channels_out: int,
        stride: int = 2,
        padding: int = 1,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        plain, up = (nn.Conv1d, nn.ConvTranspose1d) if dims == 1 else (nn.Conv2d, nn.ConvTranspose2d)
        conv = up if transposed else plain
        norm, dropout = (BatchNorm1d, nn.Dropout) if dims == 1 else (BatchNorm2d, nn.Dropout2d)
        self.conv1 = conv(channels_in, channels_in, 1, bias=dims == 1)
        self.bn1, self.bn2 = norm(channels_in), norm(channels_in)
        self.conv2 = conv(channels_in, channels_out, 4, stride, padding, bias=dims == 1)
        self.relu, self.dropout1, self.dropout2 = nn.ReLU(), dropout(DROPOUT), dropout(DROPOUT)
        self.shortcut = "upsample" if transposed else "downsample"
        shortcut = nn.Sequential(conv(channels_in, channels_out, 4, stride, padding), norm(channels_out))
        self.add_module(self.shortcut, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout1(self.conv1(self.relu(self.bn1(x))))
        y = self.dropout2(self.conv2(self.relu(self.bn2(y))))
        return SHORTCUT * self.get_submodule(self.shortcut)(x) + BRANCH * y


class ResidualImageTrunk(nn.Module):
    """(B, 3, 64, 64) in [0, 1] -> (B, 5 * base)."""

    def __init__(self, base: int = 128) -> None:
        super().__init__()
        self.features = 5 * base
        layers: dict[str, nn.Module] = {"conv1": nn.Conv2d(3, base, 3, 2, 2, bias=False)}
        for i in range(1, 5):
            block = ResidualBlock(2, i * base, (i + 1) * base, padding=int(i < 4))
            layers[f"resblock{i}"] = nn.Sequential(block)
        self.feature_extractor = nn.ModuleDict(layers)

    def trunk(self, x: Tensor) -> Tensor:
        for layer in self.feature_extractor.values():
            x = layer(x)
        return x.flatten(1)


class ResidualTextTrunk(nn.Module):
    """One-hot text (B, 256, symbols) -> (B, 5 * base)."""

    def __init__(self, base: int = 128, symbols: int = 71) -> None:
        super().__init__()
        self.features = 5 * base
        layers: dict[str, nn.Module] = {"conv1": nn.Conv1d(symbols, base, 4, 2, 1)}
        for i in range(1, 7):
            block = ResidualBlock(1, min(i, 5) * base, min(i + 1, 5) * base, padding=int(i < 6))
            layers[f"resblock_{i}"] = nn.Sequential(block)
        self.feature_extractor = nn.ModuleDict(layers)

    def trunk(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        for layer in self.feature_extractor.values():
            x = layer(x)
        return x.flatten(1)


class ResidualImageEncoder(ResidualImageTrunk):
    """(B, 3, 64, 64) -> (B, 1, width). 21,497,504 parameters at width 32."""

    tokens = 1

    def __init__(self, width: int = 32, base: int = 128, vector_width: int | None = None) -> None:
        super().__init__(base)
        self.width = vector_width or width
        self.proj = nn.Linear(self.features, self.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.trunk(x))[:, None]


class ResidualTextEncoder(ResidualTextTrunk):
    """One-hot text (B, 256, symbols) -> (B, 1, width). 13,189,280 parameters at width 32 and 71 symbols."""

    tokens = 1

    def __init__(self, width: int = 32, base: int = 128, symbols: int = 71, vector_width: int | None = None) -> None:
        super().__init__(base, symbols)
        self.width = vector_width or width
        self.proj = nn.Linear(self.features, self.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.trunk(x))[:, None]

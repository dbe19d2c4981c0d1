"""Posterior and decoder networks of MoPoE on PolyMNIST, MST and CelebA (docs/reference/dymo.md §5.1), with the original
layer names.

A posterior maps its modality to mean and log-variance (B, latent) of the shared latent; with a style latent
(``style`` > 0) mean and log-variance (B, style) of that follow. A decoder takes (B, latent), or (B, style + latent)
with the style first, and returns the location of a Laplace, or for text the log-softmax over the symbols.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from models.encoders.mst import MNISTTrunk, SVHNTrunk, TextTrunk
from models.encoders.residual import ResidualBlock, ResidualImageTrunk, ResidualTextTrunk


class ImageEncoder(nn.Module):
    """(B, C, 28, 28), a view of PolyMNIST. ``width`` is the number of maps of the first convolution; each further one
    doubles it."""

    def __init__(self, channels: int = 3, latent: int = 512, hidden: int = 512, width: int = 32) -> None:
        super().__init__()
        self.shared_encoder = nn.Sequential(
            nn.Conv2d(channels, width, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(4 * width * 4 * 4, hidden),
            nn.ReLU(),
        )
        self.class_mu = nn.Linear(hidden, latent)
        self.class_logvar = nn.Linear(hidden, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.shared_encoder(x)
        return self.class_mu(h), self.class_logvar(h)


class ImageDecoder(nn.Module):
    """-> (B, C, 28, 28); no output activation. ``width`` as for :class:`ImageEncoder`, whose mirror image it is."""

    def __init__(self, channels: int = 3, latent: int = 512, width: int = 32) -> None:
        super().__init__()
        self.decoder = nn.Sequential(
            nn.Linear(latent, 4 * width * 4 * 4),
            nn.ReLU(),
            nn.Unflatten(1, (4 * width, 4, 4)),
            nn.ConvTranspose2d(4 * width, 2 * width, 3, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 3, 2, 1, output_padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(width, channels, 3, 2, 1, output_padding=1),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(z)


class VectorPosterior(nn.Module):
    """(B, features), a table of continuous columns; ours."""

    def __init__(self, features: int, latent: int = 32, hidden: int = 256) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(features, hidden), nn.ReLU())
        self.mu, self.logvar = nn.Linear(hidden, latent), nn.Linear(hidden, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.mu(h), self.logvar(h)


class VectorDecoder(nn.Sequential):
    """-> (B, features); ours."""

    def __init__(self, features: int, latent: int = 32, hidden: int = 256) -> None:
        super().__init__(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, features))


# ---- MST -------------------------------------------------------------------------------------------------------------


class MNISTPosterior(MNISTTrunk):
    """(B, 1, 28, 28)."""

    def __init__(self, latent: int = 20) -> None:
        super().__init__()
        self.hidden_mu, self.hidden_logvar = nn.Linear(self.features, latent), nn.Linear(self.features, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.hidden_mu(h), self.hidden_logvar(h)


class MNISTDecoder(nn.Module):
    """-> (B, 1, 28, 28) in (0, 1)."""

    def __init__(self, latent: int = 20) -> None:
        super().__init__()
        self.dec = nn.Sequential(nn.Sequential(nn.Linear(latent, 400), nn.ReLU()))
        self.fc3 = nn.Linear(400, 784)

    def forward(self, z: Tensor) -> Tensor:
        return self.fc3(self.dec(z)).sigmoid().unflatten(1, (1, 28, 28))


class SVHNPosterior(SVHNTrunk):
    """(B, 3, 32, 32)."""

    def __init__(self, latent: int = 20) -> None:
        super().__init__()
        self.hidden_mu, self.hidden_logvar = nn.Linear(self.features, latent), nn.Linear(self.features, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.hidden_mu(h), self.hidden_logvar(h)


class SVHNDecoder(nn.Module):
    """-> (B, 3, 32, 32); no output activation."""

    def __init__(self, latent: int = 20) -> None:
        super().__init__()
        self.linear = nn.Linear(latent, 128)
        self.conv1 = nn.ConvTranspose2d(128, 64, 4, 1, 0)
        self.conv2 = nn.ConvTranspose2d(64, 64, 4, 2, 1)
        self.conv3 = nn.ConvTranspose2d(64, 32, 4, 2, 1)
        self.conv4 = nn.ConvTranspose2d(32, 3, 4, 2, 1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.linear(z)[:, :, None, None]
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = conv(F.relu(x))
        return x


class TextPosterior(TextTrunk):
    """One-hot text (B, 8, symbols)."""

    def __init__(self, latent: int = 20, symbols: int = 71) -> None:
        super().__init__(symbols)
        self.latent_mu, self.latent_logvar = nn.Linear(self.features, latent), nn.Linear(self.features, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.latent_mu(h), self.latent_logvar(h)


class TextDecoder(nn.Module):
    """-> log-softmax (B, 8, symbols)."""

    def __init__(self, latent: int = 20, symbols: int = 71) -> None:
        super().__init__()
        self.linear = nn.Linear(latent, 128)
        self.conv1 = nn.ConvTranspose1d(128, 128, 4, 1, 0)
        self.conv2 = nn.ConvTranspose1d(128, 128, 4, 2, 1)
        self.conv_last = nn.Conv1d(128, symbols, 1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.linear(z)[:, :, None]
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.conv_last(x).log_softmax(1).transpose(1, 2)


# ---- CelebA ----------------------------------------------------------------------------------------------------------


def _compressor(features: int, style: int, latent: int) -> nn.ModuleDict:
    widths = {"style_mu": style, "style_logvar": style, "content_mu": latent, "content_logvar": latent}
    return nn.ModuleDict({name: nn.Linear(features, width) for name, width in widths.items()})


def _compress(compressor: nn.ModuleDict, h: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mu, logvar, style_mu, style_logvar = (
        compressor[name](h) for name in ("content_mu", "content_logvar", "style_mu", "style_logvar")
    )
    return mu, logvar, style_mu, style_logvar


class ResidualImagePosterior(ResidualImageTrunk):
    """(B, 3, 64, 64)."""

    def __init__(self, latent: int = 32, style: int = 32, base: int = 128) -> None:
        super().__init__(base)
        self.style = style
        self.feature_compressor = _compressor(self.features, style, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return _compress(self.feature_compressor, self.trunk(x))


class ResidualTextPosterior(ResidualTextTrunk):
    """One-hot text (B, 256, symbols)."""

    def __init__(self, latent: int = 32, style: int = 32, base: int = 128, symbols: int = 71) -> None:
        super().__init__(base, symbols)
        self.style = style
        self.feature_compressor = _compressor(self.features, style, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return _compress(self.feature_compressor, self.trunk(x))


class ResidualImageDecoder(nn.Module):
    """-> (B, 3, 64, 64); no output activation."""

    def __init__(self, latent: int = 32, style: int = 32, base: int = 128) -> None:
        super().__init__()
        self.feature_generator = nn.Linear(style + latent, 5 * base)
        layers: dict[str, nn.Module] = {}
        for i in range(1, 5):
            stride, padding = (1, 0) if i == 1 else (2, 1)
            block = ResidualBlock(2, (6 - i) * base, (5 - i) * base, stride, padding, transposed=True)
            layers[f"resblock{i}"] = nn.Sequential(block)
        layers["conv"] = nn.ConvTranspose2d(base, 3, 3, 2, 1, output_padding=1)
        self.img_generator = nn.ModuleDict(layers)

    def forward(self, z: Tensor) -> Tensor:
        x = self.feature_generator(z)[:, :, None, None]
        for layer in self.img_generator.values():
            x = layer(x)
        return x


class ResidualTextDecoder(nn.Module):
    """-> log-softmax (B, 256, symbols)."""

    def __init__(self, latent: int = 32, style: int = 32, base: int = 128, symbols: int = 71) -> None:
        super().__init__()
        self.feature_generator = nn.Linear(style + latent, 5 * base)
        layers: dict[str, nn.Module] = {}
        for i in range(1, 7):
            stride, padding = (1, 0) if i == 1 else (2, 1)
            block = ResidualBlock(1, min(8 - i, 5) * base, min(7 - i, 5) * base, stride, padding, transposed=True)
            layers[f"resblock_{i}"] = nn.Sequential(block)
        layers["conv2"] = nn.ConvTranspose1d(base, symbols, 4, 2, 1)
        self.text_generator = nn.ModuleDict(layers)

    def forward(self, z: Tensor) -> Tensor:
        x = self.feature_generator(z)[:, :, None]
        for layer in self.text_generator.values():
            x = layer(x)
        return x.log_softmax(1).transpose(1, 2)

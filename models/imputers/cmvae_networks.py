"""Networks of the published CMVAE and MMVAE+ for images of 28 x 28 pixels (docs/reference/dymo.md §5.2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 28


class ResBlock(nn.Module):
    """Shortcut + 0.1 branch of two activations and 3x3 convolutions."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        hidden = min(channels_in, channels_out)
        self.conv_0 = nn.Conv2d(channels_in, hidden, 3, 1, 1)
        self.conv_1 = nn.Conv2d(hidden, channels_out, 3, 1, 1)
        self.conv_s = None if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.conv_s is None else self.conv_s(x)
        return shortcut + 0.1 * self.conv_1(F.leaky_relu(self.conv_0(F.leaky_relu(x, 0.2)), 0.2))


class ResNetEncoder(nn.Module):
    """(B, C, 28, 28) -> mean and raw scale of the shared latent u (B, shared), then of the private one w (B, private),
    from two networks side by side.

    Args:
        width: channels of the first layer; 64 is published.
    """

    def __init__(self, channels: int = 3, shared: int = 32, private: int = 32, width: int = 64) -> None:
        super().__init__()
        for branch, latent in (("w", private), ("u", shared)):
            resnet = nn.Sequential(
                ResBlock(width, width),
                nn.AvgPool2d(3, 2, 1),
                ResBlock(width, 2 * width),
                nn.AvgPool2d(3, 2, 1),
                ResBlock(2 * width, 4 * width),
            )
            self.add_module(f"conv_img_{branch}", nn.Conv2d(channels, width, 3, 1, 1))
            self.add_module(f"resnet_{branch}", resnet)
            self.add_module(f"fc_mu_{branch}", nn.Linear(4 * width * 49, latent))
            self.add_module(f"fc_lv_{branch}", nn.Linear(4 * width * 49, latent))

    def branch(self, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Mean and raw scale of the shared (``u``) or the private (``w``) latent alone."""
        conv, resnet, mu, raw = (
            self.get_submodule(f"{part}_{name}") for part in ("conv_img", "resnet", "fc_mu", "fc_lv")
        )
        h = resnet(conv(x)).flatten(1)
        return mu(h), raw(h)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return *self.branch(x, "u"), *self.branch(x, "w")


class ResNetDecoder(nn.Module):
    """(B, shared + private), the shared latent first -> (B, C, 28, 28), the location of a Laplace."""

    def __init__(self, channels: int = 3, shared: int = 32, private: int = 32, width: int = 64) -> None:
        super().__init__()
        self.fc = nn.Linear(shared + private, 4 * width * 49)
        self.resnet = nn.Sequential(
            ResBlock(4 * width, 2 * width),
            nn.Upsample(scale_factor=2),
            ResBlock(2 * width, width),
            nn.Upsample(scale_factor=2),
            ResBlock(width, width),
        )
        self.conv_img = nn.Conv2d(width, channels, 3, 1, 1)

    def forward(self, z: Tensor) -> Tensor:
        return self.conv_img(F.leaky_relu(self.resnet(self.fc(z).unflatten(1, (-1, 7, 7))), 0.2))

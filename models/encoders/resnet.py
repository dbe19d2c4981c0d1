"""ResNet encoder of images, spectrograms and clips: the last feature map as tokens (B, H/32 * W/32, D).

Images as in DyMo (docs/reference/dymo.md §1.4), spectrograms and clips as in UDML (docs/reference/udml.md §1.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError

import torchvision
from torch import Tensor, nn

from models.layers.batch_norm import accept_single_values
from utils.errors import UserError
from utils.weights import load_part

ARCHITECTURES = ("resnet18", "resnet34", "resnet50", "resnet101")
LAYERS = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")


class ResNetEncoder(nn.Module):
    """torchvision's ResNet without pooling and classifier, with its parameter names.

    Takes images (B, C, H, W), spectrograms (B, H, W) as images of one channel, and clips (B, T, C, H, W), whose tokens
    are averaged over frames.

    ResNet-50: 23,508,032 parameters, 16 tokens of width 2048 at 128 x 128 pixels.

    Args:
        architecture: resnet18 | resnet34 (width 512) | resnet50 | resnet101 (width 2048).
        weights: ``none``, ``imagenet`` (torchvision's IMAGENET1K_V1, downloaded once), or a file: a state dict of
            torchvision, or a checkpoint with the entries ``encoder_imaging.`` (TIP) or ``m_encoders.img.`` (DyMo).
        image_size: side of the images in pixels, or their height and width; determines the number of tokens.
        channels: of the input; other than 3 replaces the first layer.

    Raises:
        ValueError: an unknown architecture, or ImageNet weights for other than 3 channels.
        UserError: the weights cannot be loaded or do not fit.
    """

    def __init__(
        self,
        architecture: str = "resnet50",
        weights: str = "none",
        image_size: int | Sequence[int] = 128,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, not {architecture!r}")
        if channels != 3 and weights == "imagenet":
            raise ValueError(f"weights=imagenet are for 3 channels, not {channels}: set weights=none")
        enum = torchvision.models.get_model_weights(architecture).IMAGENET1K_V1 if weights == "imagenet" else None
        try:
            network = torchvision.models.get_model(architecture, weights=enum)
        except (URLError, OSError, RuntimeError) as error:
            raise UserError(
                f"the ImageNet weights of {architecture} cannot be downloaded ({error}): set weights to a file "
                "with them, or set weights=none"
            ) from None
        if channels != 3:
            network.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        for name in LAYERS:
            setattr(self, name, accept_single_values(getattr(network, name)))
        self.width = network.fc.in_features
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.tokens = -(-height // 32) * -(-width // 32)
        self.pretrained = weights != "none"
        if weights not in ("none", "imagenet"):
            load_part(self, Path(weights), ("encoder_imaging.", "m_encoders.img."), architecture, ignore=("fc.",))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 5:
            return self(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)
        if x.ndim == 3:
            x = x[:, None]
        for name in LAYERS:
            x = getattr(self, name)(x)
        return x.flatten(2).transpose(1, 2)

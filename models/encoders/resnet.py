"""ResNet image encoder: the last feature map as tokens, (B, 3, H, W) -> (B, H/32 * W/32, D) (dymo_core 1.4)."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import torchvision
from torch import Tensor, nn

from utils.checkpoints import load_part
from utils.errors import UserError

ARCHITECTURES = ("resnet18", "resnet34", "resnet50", "resnet101")
LAYERS = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")


class ResNetEncoder(nn.Module):
    """torchvision's ResNet without pooling and classifier; names of the weights are torchvision's.

    ResNet-50: 23,508,032 parameters, 16 tokens of width 2048 at 128 x 128 pixels.

    Args:
        architecture: resnet18 | resnet34 (width 512) | resnet50 | resnet101 (width 2048).
        weights: ``none``, ``imagenet`` (torchvision's IMAGENET1K_V1, downloaded once), or a file: a state dict of
            torchvision's, or a checkpoint whose entries ``encoder_imaging.`` (TIP) or ``m_encoders.img.`` (DyMo) are
            used.
        image_size: side of the images in pixels, which decides the number of tokens.

    Raises:
        UserError: the weights cannot be had, or do not fit.
    """

    def __init__(self, architecture: str = "resnet50", weights: str = "none", image_size: int = 128) -> None:
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, not {architecture!r}")
        enum = torchvision.models.get_model_weights(architecture).IMAGENET1K_V1 if weights == "imagenet" else None
        try:
            network = torchvision.models.get_model(architecture, weights=enum)
        except (URLError, OSError, RuntimeError) as error:
            raise UserError(
                f"the ImageNet weights of {architecture} cannot be downloaded ({error}): put a file with them in "
                "weights, or set weights=none"
            ) from None
        for name in LAYERS:
            setattr(self, name, getattr(network, name))
        self.width = network.fc.in_features
        side = -(-image_size // 32)
        self.tokens = side * side
        self.pretrained = weights != "none"
        if weights not in ("none", "imagenet"):
            load_part(self, Path(weights), ("encoder_imaging.", "m_encoders.img."), architecture, ignore=("fc.",))

    def forward(self, x: Tensor) -> Tensor:
        for name in LAYERS:
            x = getattr(self, name)(x)
        return x.flatten(2).transpose(1, 2)

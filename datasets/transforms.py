"""Batched augmentation of images and tables (docs/reference/datasets.md §4.5, §5.2).

Every row of a batch has its own draws. torchvision's v2 transforms draw once for all images that they are given, so
that the operations are implemented here for a batch with one parameter per row, with the results of torchvision's
functionals per row. All draws are made on the CPU from one generator: they depend on seed and epoch, not on the device.

Differences from the originals: images are stored at one size first, and crop, flip and rotation are one resampling
instead of three; colour comes before geometry in both recipes; hues do not change (the originals do not ask for a
shift, but the ColorJitter of albumentations makes one of up to 0.2 by default).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from datasets.batch import rows_like

_ORDERS = torch.tensor(list(permutations(range(3))))
_ATTEMPTS = 10


@dataclass(frozen=True)
class JointAugmentation:
    """Augmentation of training rows; a rate of 0 disables an operation.

    Attributes:
        rate: share of the augmented rows; the other rows, image and table, go through the test transform.
        brightness, contrast, saturation: factors are drawn from [1 - v, 1 + v], in random order.
        colour_rate, grey_rate, blur_rate: share of the augmented rows that get colour jitter, become grey, are blurred.
        blur_kernel, blur_sigma: in pixels of an image of side ``blur_side`` (both are scaled to the stored side).
        rotation: degrees to either side.
        outside: content outside a rotated image: its mirror image (``reflection``) or ``zeros``.
        rotation_rate: share of the augmented rows that are rotated.
        crop_scale, crop_ratio: area share and aspect ratio of the crop.
        flip_rate: share of the augmented rows that are flipped left to right.
        corruption: share of the columns of a row (rounded down) that are replaced by draws from the training column.
    """

    rate: float = 0.95
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    colour_rate: float = 0.8
    grey_rate: float = 0.2
    blur_rate: float = 0.5
    blur_kernel: int = 29
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_side: int = 300
    rotation: float = 0.0
    rotation_rate: float = 1.0
    outside: str = "reflection"
    crop_scale: tuple[float, float] = (0.6, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_rate: float = 0.5
    corruption: float = 0.3

    def __post_init__(self) -> None:
        for name in ("rate", "colour_rate", "grey_rate", "blur_rate", "rotation_rate", "flip_rate", "corruption"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is outside [0, 1]")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is outside [0, 1]")
        if self.outside not in ("reflection", "zeros"):
            raise ValueError(f"outside={self.outside}: must be reflection or zeros")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale={list(self.crop_scale)} must rise within (0, 1]")

    @classmethod
    def of(cls, options: Mapping[str, Any] | JointAugmentation | None) -> JointAugmentation | None:
        """The augmentation of an option: None, its settings, or itself."""
        return cls(**options) if isinstance(options, Mapping) else options


Statistics = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class ImageForm:
    """Form of the images that a model gets.

    Attributes:
        side: in pixels.
        statistics: mean and deviation per channel, by which pixels in [0, 1] are normalised; None = they stay in
            [0, 1].
    """

    side: int
    statistics: Statistics | None = None

    def normalised(self, images: Tensor) -> Tensor:
        """(B, C, side, side) in [0, 1] -> the input of the model."""
        if self.statistics is None:
            return images
        mean, deviation = (torch.tensor(values)[:, None, None].to(images) for values in self.statistics)
        return (images - mean) / deviation


class ImageTransform:
    """Transform of stored images and tables to inputs of the model; augments with a generator.

    Args:
        images: modality -> form of its images.
        augmentation: of rows, whose images and tables are augmented together; None = always the test transform.
        pools: table -> from which its corrupted cells are drawn; other tables do not change.
    """

    def __init__(
        self,
        images: Mapping[str, ImageForm],
        augmentation: JointAugmentation | None = None,
        pools: Mapping[str, ColumnPool] | None = None,
    ) -> None:
        self.images, self.augmentation, self.pools = dict(images), augmentation, dict(pools or {})

    def __call__(self, inputs: dict[str, Tensor], generator: torch.Generator | None) -> dict[str, Tensor]:
        if generator is not None and self.augmentation is not None:
            return self._augmented(inputs, self.augmentation, generator)
        images = {name: form.normalised(resize(inputs[name], form.side)) for name, form in self.images.items()}
        return {**inputs, **images}

    def _augmented(
        self, inputs: dict[str, Tensor], a: JointAugmentation, generator: torch.Generator
    ) -> dict[str, Tensor]:
        changed = dict(inputs)
        rows = torch.rand(len(next(iter(inputs.values()))), generator=generator) < a.rate
        for name, form in self.images.items():
            stored = inputs[name]
            augmented = augment_images(stored, form.side, a, generator)
            x = torch.where(rows_like(rows.to(stored.device), stored), augmented, resize(stored, form.side))
            changed[name] = form.normalised(x)
        for name, pool in self.pools.items() if a.corruption else ():
            table = inputs[name]
            corrupted = pool.corrupt(table, int(table.shape[1] * a.corruption), generator)
            changed[name] = torch.where(rows_like(rows.to(table.device), table), corrupted, table)
        return changed


class ColumnPool:
    """Observed training values per column, to draw from.

    Args:
        columns: (N, F).
        gaps: (N, F) bool, True = not observed; a column without any observed cell is never corrupted.
    """

    def __init__(self, columns: Tensor, gaps: Tensor | None = None) -> None:
        gaps = torch.zeros_like(columns, dtype=torch.bool) if gaps is None else gaps
        order = gaps.to(torch.uint8).argsort(dim=0, stable=True)  # observed rows first
        self.values, self.counts = columns.gather(0, order), (~gaps).sum(0)

    def corrupt(self, table: Tensor, k: int, generator: torch.Generator) -> Tensor:
        """Replace ``k`` random columns per row of (B, F) by training values of these columns."""
        b, f = table.shape
        order = torch.rand(b, f, generator=generator).argsort(1)
        chosen = torch.zeros(b, f, dtype=torch.bool).scatter_(1, order[:, :k], True) & (self.counts > 0)
        rows = (torch.rand(b, f, generator=generator, dtype=torch.float64) * self.counts).long()
        drawn = self.values.gather(0, rows.clamp_(max=len(self.values) - 1))
        return torch.where(chosen.to(table.device), drawn.to(table), table)


def resize(images: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B, C, side, side), bilinear with antialiasing; the aspect ratio may change."""
    if images.shape[-2:] == (side, side):
        return images
    return V.resize_image(images, [side, side], antialias=True)


def augment_images(images: Tensor, side: int, a: JointAugmentation, generator: torch.Generator) -> Tensor:
    """(B, C, S, S) in [0, 1] -> (B, C, side, side), with separate draws per row."""
    b, channels, height, width = images.shape

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    factors = 1 + (2 * rand(3, b) - 1) * torch.tensor([a.brightness, a.contrast, a.saturation])[:, None]
    order = _ORDERS[torch.randint(len(_ORDERS), (b,), generator=generator)]
    coloured, grey, blurred = (rand(b) < rate for rate in (a.colour_rate, a.grey_rate, a.blur_rate))
    low, high = a.blur_sigma
    scale = width / a.blur_side
    sigma = (low + (high - low) * rand(b)) * scale
    flip, angle = rand(b) < a.flip_rate, (2 * rand(b) - 1) * a.rotation
    boxes = crop_boxes(b, height, width, a.crop_scale, a.crop_ratio, generator)
    angle = torch.where(rand(b) < a.rotation_rate, angle, 0)

    x = images
    if a.colour_rate and (a.brightness or a.contrast or a.saturation):
        x = jitter_colours(x, factors, order, coloured)
    if channels == 3 and a.grey_rate:
        rows = grey.nonzero()[:, 0].to(x.device)
        x = x.index_copy(0, rows, luminance(x[rows]).expand(-1, 3, -1, -1))
    if a.blur_rate:
        rows = blurred.nonzero()[:, 0]
        kernel = max(3, round(a.blur_kernel * scale) | 1)
        x = x.index_copy(0, rows.to(x.device), blur(x[rows.to(x.device)], sigma[rows], kernel))
    return resample(x, boxes, side, flip, angle, a.outside)


def luminance(x: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W), Rec. 601 with torchvision's weights."""
    weights = torch.tensor([0.2989, 0.587, 0.114], device=x.device, dtype=x.dtype)
    return (x * weights[:, None, None]).sum(1, keepdim=True)


def jitter_colours(x: Tensor, factors: Tensor, order: Tensor, rows: Tensor) -> Tensor:
    """Change brightness, contrast and saturation of some rows, in an order per row.

    Args:
        x: (B, C, H, W) in [0, 1].
        factors: (3, B).
        order: (B, 3), permutations of 0 brightness, 1 contrast, 2 saturation.
        rows: (B,) bool, the rows to change.
    """
    x = x.clone()
    for position in range(3):
        for operation in range(3):
            picked = (rows & (order[:, position] == operation)).nonzero()[:, 0]
            if not len(picked) or (operation == 2 and x.shape[1] != 3):
                continue
            f = factors[operation, picked].to(x)[:, None, None, None]
            picked = picked.to(x.device)
            part = x[picked]
            if operation == 0:
                other = torch.zeros_like(part)
            elif operation == 1:
                grey = luminance(part) if x.shape[1] == 3 else part
                other = grey.mean(dim=(1, 2, 3), keepdim=True)
            else:
                other = luminance(part)
            x[picked] = (f * part + (1 - f) * other).clamp_(0, 1)
    return x


def blur(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Gaussian blur of (B, C, H, W) with standard deviations (B,) in pixels; edges are reflected."""
    if not len(x):
        return x
    b, c, h, w = x.shape
    half = kernel // 2
    offsets = torch.arange(-half, half + 1, dtype=torch.float32)
    weights = torch.exp(-0.5 * (offsets / sigma.float()[:, None].clamp(min=1e-3)) ** 2)
    weights = (weights / weights.sum(1, keepdim=True)).to(x).repeat_interleave(c, 0)
    y = F.pad(x, [half] * 4, mode="reflect").reshape(1, b * c, h + 2 * half, w + 2 * half)
    y = F.conv2d(y, weights[:, None, :, None], groups=b * c)
    return F.conv2d(y, weights[:, None, None, :], groups=b * c).reshape(b, c, h, w)


def crop_boxes(
    b: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: torch.Generator,
) -> Tensor:
    """Draw random crops as torchvision's RandomResizedCrop does.

    The first of ten candidates that fits is used, or else the largest central crop within the ratios.

    Returns:
        (B, 4) top, left, height, width in whole pixels.
    """
    area = height * width * (scale[0] + (scale[1] - scale[0]) * torch.rand(b, _ATTEMPTS, generator=generator))
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * torch.rand(b, _ATTEMPTS, generator=generator))
    w, h = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    w, h = w.gather(1, first)[:, 0], h.gather(1, first)[:, 0]
    central_ratio = min(max(width / height, ratio[0]), ratio[1])
    central_w = min(width, round(height * central_ratio))
    central_h = min(height, round(width / central_ratio))
    none = ~fits.any(1)
    w, h = torch.where(none, central_w, w), torch.where(none, central_h, h)
    corner = torch.rand(2, b, generator=generator)
    top = torch.where(none, (height - h) // 2, (corner[0] * (height - h + 1)).floor())
    left = torch.where(none, (width - w) // 2, (corner[1] * (width - w + 1)).floor())
    return torch.stack([top, left, h, w], dim=1)


def resample(x: Tensor, boxes: Tensor, side: int, flip: Tensor, angle: Tensor, outside: str = "reflection") -> Tensor:
    """Rotate, crop, resize and flip in one bilinear resampling.

    Args:
        x: (B, C, H, W).
        boxes: (B, 4) top, left, height, width of the crop in the rotated image.
        flip: (B,) bool, left to right.
        angle: (B,) degrees counter-clockwise, about the centre.
        outside: see :class:`JointAugmentation`.
    """
    b, _, height, width = x.shape
    top, left, h, w = boxes.float().T[:, :, None]
    steps = (torch.arange(side, dtype=torch.float32) + 0.5) / side
    across = torch.where(flip[:, None], 1 - steps, steps)
    # Pixel centres have integer coordinates; interpolation stays inside the crop.
    column = (left + across * w - 0.5).clamp(min=left, max=left + w - 1)
    row = (top + steps * h - 0.5).clamp(min=top, max=top + h - 1)
    grid_x = column[:, None, :].expand(b, side, side)
    grid_y = row[:, :, None].expand(b, side, side)
    if (angle != 0).any():
        radians = torch.deg2rad(angle)[:, None, None]
        dx, dy = grid_x - (width - 1) / 2, grid_y - (height - 1) / 2
        grid_x = torch.cos(radians) * dx - torch.sin(radians) * dy + (width - 1) / 2
        grid_y = torch.sin(radians) * dx + torch.cos(radians) * dy + (height - 1) / 2
    grid = torch.stack([(2 * grid_x + 1) / width - 1, (2 * grid_y + 1) / height - 1], dim=-1)
    return F.grid_sample(x, grid.to(x), mode="bilinear", padding_mode=outside, align_corners=False)

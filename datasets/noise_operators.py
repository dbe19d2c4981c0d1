"""Noise operators: content that is available, and is worth less the higher the level of its noise.

Levels are whole numbers from 1 (clean: the content, bit for bit) to 11, as in UDML
(CVPR 2026; docs/reference/datasets.md §12.5). The effect of a level l > 1:

===================  ======================  =========================================================================
operator             kinds of modality       level l
===================  ======================  =========================================================================
``gaussian``         image, video            + N(0, (l^2)^2) in grey levels of 0 to 255, one plane for all channels,
                                             limited to [0, 255]; 11: only noise
                     audio                   + N(0, l^2) on the natural logarithm of the spectrogram, limited to
                                             [-255, 255]; 11: only noise
                     table                   numbers: + N(0, (l / 4)^2) in standard deviations, 11: only noise;
                                             categories: drawn anew with probability (l - 1) / 10
                     series                  + N(0, (l / 4)^2) in standard deviations; 11: only noise
``salt_and_pepper``  image, video            a share f of the pixels is black or white, the same in all channels
``motion_blur``      image, video            mean over l pixels in a random direction
``temporal_blur``    audio                   mean over l frames of the spectrogram (even l: one more after it)
``time_mask``        audio, series           a share f of the frames or time steps, one after the other, is 0
``occlusion``        image, video, audio     a rectangle of a share f of each side is black (audio: 0)
===================  ======================  =========================================================================

f = (l - 1) / 20. Level 11 of ``gaussian`` destroys a modality: images are N(0, 121^2) and spectrograms N(0, 11^2),
25.5 times, limited as above. Every frame of a video has its own noise plane, but all frames have one direction of blur
and one place of a rectangle. Text has no operator.

Every draw is keyed by seed, row, modality and operator (:mod:`utils.noise`): a row has the same noise in any batch, on
any device and at any level (louder), and no global random state changes. Operators work on batches as models get them,
after all transforms; :class:`datasets.scale.Scale` defines the meaning of the values.

Intended differences from UDML's code: values are limited on both sides (in UDML, pixels below 0 wrap around to white
and spectrograms have no lower limit), every item has its own noise (in UDML, all items have one pattern), and no global
generator is reset.
"""

from __future__ import annotations

import difflib
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.errors import UserError
from utils.noise import hash_seed, row_normal_16bit, row_uniform

if TYPE_CHECKING:
    from datasets.batch import Modality

CLEAN, WORST = 1, 11
WHITE = 255.0
PIXELS = ("image", "video")
# Factor of the noise that replaces the content at level 11, as in the reference: / 10 * 255.
REPLACING = WHITE / 10


@dataclass(frozen=True)
class _Items:
    """Levels (B,) int64 and rows (B,) int64 of the items of a batch, and the key of their draws."""

    modality: Modality
    levels: Tensor
    rows: Tensor
    seed: int

    def normal(self, shape: Sequence[int], stream: int = 0) -> Tensor:
        """(B, *shape) standard normal."""
        flat = row_normal_16bit(self.rows, math.prod(shape), hash_seed(self.seed, stream))
        return flat.reshape(-1, *shape)

    def uniform(self, shape: Sequence[int], stream: int = 0) -> Tensor:
        """(B, *shape) uniform on (0, 1], float64."""
        flat = row_uniform(self.rows, math.prod(shape), hash_seed(self.seed, stream))
        return flat.reshape(-1, *shape)

    def level(self, x: Tensor) -> Tensor:
        """Levels as floats, broadcastable to ``x`` (B, ...)."""
        return self.levels.to(torch.float32).reshape(-1, *[1] * (x.ndim - 1))

    def share(self) -> Tensor:
        """Share f per item, (B,) float64."""
        return (self.levels - 1).double() / 20


def _add_or_replace(content: Tensor, noise: Tensor, deviation: Tensor, replacing: float, levels: Tensor) -> Tensor:
    noise = noise * deviation
    return torch.where(levels >= WORST, noise * replacing, content + noise)


def _gaussian(x: Tensor, items: _Items) -> Tensor:
    kind, scale, level = items.modality.kind, items.modality.scale, items.level(x)
    if kind == "table":
        return _gaussian_table(x, items)
    if kind == "series":
        return _add_or_replace(x, items.normal(x.shape[1:]), level / 4, 1.0, level)
    if kind == "audio":
        noisy = _add_or_replace(scale.read(x), items.normal(x.shape[1:]), level, REPLACING, level)
        return scale.write(noisy.clamp(-WHITE, WHITE))
    plane = items.normal((*x.shape[1:-3], 1, *x.shape[-2:]))
    noisy = _add_or_replace(scale.read(x) * WHITE, plane, level**2, REPLACING, level)
    return scale.write(noisy.clamp(0, WHITE) / WHITE)


def _gaussian_table(x: Tensor, items: _Items) -> Tensor:
    cardinalities, level = items.modality.cardinalities, items.level(x)
    k = len(cardinalities)
    noise, scale = items.normal((x.shape[1] - k,)), items.modality.scale
    mean, deviation = (torch.tensor(v, dtype=x.dtype, device=x.device) for v in (scale.mean, scale.deviation))
    numbers = (_add_or_replace(x[:, k:] * deviation + mean, noise, level / 4, 1.0, level) - mean) / deviation
    if not k:
        return numbers
    draws = items.uniform((2, k), 1)
    sizes = torch.tensor(cardinalities, dtype=torch.float64, device=x.device)
    other = (draws[:, 0] * sizes).ceil() - 1
    codes = torch.where(draws[:, 1] <= (level.double() - 1) / (WORST - 1), other.to(x.dtype), x[:, :k])
    return torch.cat([codes, numbers], dim=1)


def _salt_and_pepper(x: Tensor, items: _Items) -> Tensor:
    drawn = items.uniform((*x.shape[1:-3], 1, *x.shape[-2:]))
    share = items.share().reshape(-1, *[1] * (x.ndim - 1))
    black, white = (items.modality.scale.write(torch.full_like(x[:1], value)) for value in (0.0, 1.0))
    return torch.where(drawn <= share / 2, black, torch.where(drawn <= share, white, x))


def _motion_blur(x: Tensor, items: _Items) -> Tensor:
    b, (height, width) = len(x), x.shape[-2:]
    angle = items.uniform((1,)).to(torch.float32) * math.pi
    steps = torch.arange(WORST, device=x.device)
    along = steps - (items.levels[:, None] - 1) / 2  # (B, K) positions on the line of blur
    weights_along = (steps < items.levels[:, None]) / items.levels[:, None]
    half = WORST // 2
    cells = torch.arange(-half, half + 1, device=x.device)

    def tents(positions: Tensor) -> Tensor:
        """(B, K) positions -> (B, K, K) weights of the cells next to them."""
        return (1 - (cells - positions[:, :, None]).abs()).clamp(min=0)

    kernel = torch.einsum("bk,bky,bkx->byx", weights_along, tents(along * angle.sin()), tents(along * angle.cos()))
    planes = x.numel() // (b * height * width)
    padded = F.pad(x.reshape(1, b * planes, height, width), [half] * 4, mode="replicate")
    weights = kernel.to(x.dtype).repeat_interleave(planes, 0)[:, None]
    return F.conv2d(padded, weights, groups=b * planes).reshape(x.shape)


def _temporal_blur(x: Tensor, items: _Items) -> Tensor:
    axis = 1 + items.modality.scale.time
    frames = torch.arange(x.shape[axis], device=x.device)
    level, total = items.level(x), torch.zeros_like(x)
    for offset in range(-(WORST // 2), WORST // 2 + 1):
        shifted = x.index_select(axis, (frames + offset).clamp(0, x.shape[axis] - 1))
        # Of an even number of frames, one more follows the frame than precedes it, as in UDML's convolution.
        is_inside = (offset >= -((level - 1) // 2)) & (offset <= level // 2)
        total = total + torch.where(is_inside, shifted, 0)
    return total / level


def _stretch(size: int, share: Tensor, draws: Tensor) -> Tensor:
    """One stretch per item, a share (B,) of ``size`` positions, at a place drawn (B,) from (0, 1]: (B, size) bool."""
    length = (share * size).round().long()
    start = ((size - length + 1) * draws).ceil().long() - 1
    positions = torch.arange(size, device=share.device)
    return (positions >= start[:, None]) & (positions < (start + length)[:, None])


def _time_mask(x: Tensor, items: _Items) -> Tensor:
    if items.modality.kind == "series":
        hidden = _stretch(x.shape[1], items.share(), items.uniform((1,))[:, 0])
        return torch.where(hidden[:, :, None], 0, x)
    axis = 1 + items.modality.scale.time
    hidden = _stretch(x.shape[axis], items.share(), items.uniform((1,))[:, 0])
    hidden = hidden[:, None, :] if axis == 2 else hidden[:, :, None]
    return torch.where(hidden, items.modality.scale.write(torch.zeros_like(x[:1])), x)


def _occlusion(x: Tensor, items: _Items) -> Tensor:
    draws, share = items.uniform((2,)), items.share()
    rows, columns = (_stretch(x.shape[axis], share, draws[:, i]) for i, axis in enumerate((-2, -1)))
    hidden = rows[:, :, None] & columns[:, None, :]
    hidden = hidden.reshape(len(x), *[1] * (x.ndim - 3), *x.shape[-2:])
    return torch.where(hidden, items.modality.scale.write(torch.zeros_like(x[:1])), x)


@dataclass(frozen=True)
class Operator:
    """Function that corrupts content, and the kinds of modality that it supports."""

    apply: Callable[[Tensor, _Items], Tensor]
    kinds: tuple[str, ...]


OPERATORS: dict[str, Operator] = {
    "gaussian": Operator(_gaussian, ("image", "video", "audio", "table", "series")),
    "salt_and_pepper": Operator(_salt_and_pepper, PIXELS),
    "motion_blur": Operator(_motion_blur, PIXELS),
    "temporal_blur": Operator(_temporal_blur, ("audio",)),
    "time_mask": Operator(_time_mask, ("audio", "series")),
    "occlusion": Operator(_occlusion, (*PIXELS, "audio")),
}


def corrupt(x: Tensor, modality: Modality, operator: str, levels: Tensor, rows: Tensor, seed: int) -> Tensor:
    """Content of one modality with noise.

    Args:
        x: (B, *shape) as a model gets it, float.
        levels: (B,) int64, 1 = unchanged bit for bit.
        rows: (B,) int64 row numbers, by which the draws are keyed.

    Returns:
        (B, *shape). NaN stays NaN, or is overwritten.
    """
    key = hash_seed(seed, zlib.crc32(modality.name.encode()), zlib.crc32(operator.encode()))
    noisy = OPERATORS[operator].apply(x, _Items(modality, levels, rows, key))
    clean = (levels <= CLEAN).reshape(-1, *[1] * (x.ndim - 1))
    return torch.where(clean, x, noisy)


def check_operator(operator: str, where: str) -> None:
    """
    Args:
        where: the key or scenario, for messages.

    Raises:
        UserError: unknown operator.
    """
    if operator not in OPERATORS:
        nearest = difflib.get_close_matches(operator, OPERATORS, 1)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"known are {', '.join(OPERATORS)}"
        raise UserError(f"{where}: unknown noise '{operator}'; {hint}")


def check_fits(operator: str, name: str, kind: str, where: str) -> None:
    """
    Raises:
        UserError: the operator does not support the kind of the modality ``name``.
    """
    fitting = OPERATORS[operator].kinds
    if kind not in fitting:
        others = [other for other, candidate in OPERATORS.items() if kind in candidate.kinds]
        fix = f"{kind} takes {', '.join(others)}" if others else "leave that modality out, or hide it (whole_...)"
        raise UserError(
            f"{where}: noise '{operator}' is for {', '.join(fitting)}, and modality '{name}' is {kind}; {fix}"
        )

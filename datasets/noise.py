"""Noise as soft missingness: content that is there, and is worth less the higher its level.

Levels are whole numbers from 1 (clean: the content, bit for bit) to 11, as in UDML
(CVPR 2026; docs/reference/datasets.md §12.5). What a level l > 1 does:

===================  ======================  =========================================================================
operator             kinds of modality       level l
===================  ======================  =========================================================================
``gaussian``         image, video            + N(0, (l^2)^2) in grey levels of 0 to 255, one plane for all channels,
                                             limited to [0, 255]; 11: nothing but noise
                     audio                   + N(0, l^2) on the natural logarithm of the spectrogram, limited to
                                             [-255, 255]; 11: nothing but noise
                     table                   numbers: + N(0, (l / 4)^2) in standard deviations, 11: nothing but noise;
                                             categories: drawn anew with probability (l - 1) / 10
``salt_and_pepper``  image, video            a share f of the pixels is black or white, all channels alike
``motion_blur``      image, video            mean over l pixels in a random direction
``temporal_blur``    audio                   mean over l frames of the spectrogram (even l: one more after it)
``time_mask``        audio                   a share f of the frames, one after the other, is 0
``occlusion``        image, video, audio     a rectangle of a share f of each side is black (audio: 0)
===================  ======================  =========================================================================

f = (l - 1) / 20. Level 11 of ``gaussian`` destroys a modality: images are N(0, 121^2) and spectrograms N(0, 11^2),
25.5 times, limited as above. A video's frames have a noise plane each, but one direction of blur and one place of a
rectangle. Text has no operator.

Every draw is keyed by seed, row, modality and operator (:mod:`utils.noise`): the same row has the same noise in any
batch, on any device, at any level (louder), and nobody's random state changes. Operators work on batches as models get
them, after all transforms; :class:`Scale` says how to read the values.

What differs from UDML's code, on purpose: values are limited on both sides (there, pixels below 0 wrap around to white
and spectrograms have no lower limit), every item has its own noise (there, all have one pattern), and no global
generator is reset.
"""

from __future__ import annotations

import difflib
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.errors import UserError
from utils.noise import hash_seed, row_normal_16bit, row_uniform

if TYPE_CHECKING:
    from datasets.batch import Batch, Modality

CLEAN, WORST = 1, 11
WHITE = 255.0
PIXELS = ("image", "video")
# What level 11 multiplies its noise with in place of content, as the reference does: / 10 * 255.
REPLACING = WHITE / 10


@dataclass(frozen=True)
class _Items:
    """What an operator gets besides the content: levels (B,) int64, rows (B,) int64, and the key of its draws."""

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
        """The levels as floats that broadcast against ``x`` (B, ...)."""
        return self.levels.to(torch.float32).reshape(-1, *[1] * (x.ndim - 1))

    def share(self) -> Tensor:
        """f of each item, (B,) float64."""
        return (self.levels - 1).double() / 20


def _add_or_replace(content: Tensor, noise: Tensor, deviation: Tensor, replacing: float, levels: Tensor) -> Tensor:
    noise = noise * deviation
    return torch.where(levels >= WORST, noise * replacing, content + noise)


def _gaussian(x: Tensor, items: _Items) -> Tensor:
    kind, scale, level = items.modality.kind, items.modality.scale, items.level(x)
    if kind == "table":
        return _gaussian_table(x, items)
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
    along = steps - (items.levels[:, None] - 1) / 2
    there = (steps < items.levels[:, None]) / items.levels[:, None]
    half = WORST // 2
    cells = torch.arange(-half, half + 1, device=x.device)

    def tents(places: Tensor) -> Tensor:
        """(B, K) places -> (B, K, K) weights of the cells beside them."""
        return (1 - (cells - places[:, :, None]).abs()).clamp(min=0)

    kernel = torch.einsum("bk,bky,bkx->byx", there, tents(along * angle.sin()), tents(along * angle.cos()))
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
        inside = (offset >= -((level - 1) // 2)) & (offset <= level // 2)
        total = total + torch.where(inside, shifted, 0)
    return total / level


def _stretch(size: int, share: Tensor, draws: Tensor) -> Tensor:
    """A stretch of a share (B,) of ``size`` places, at a drawn place (B,): (B, size) bool."""
    length = (share * size).round().long()
    start = ((size - length + 1) * draws).ceil().long() - 1
    places = torch.arange(size, device=share.device)
    return (places >= start[:, None]) & (places < (start + length)[:, None])


def _time_mask(x: Tensor, items: _Items) -> Tensor:
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
    """A way of corrupting content, and the kinds of modality that it is for."""

    apply: Callable[[Tensor, _Items], Tensor]
    kinds: tuple[str, ...]


OPERATORS: dict[str, Operator] = {
    "gaussian": Operator(_gaussian, ("image", "video", "audio", "table")),
    "salt_and_pepper": Operator(_salt_and_pepper, PIXELS),
    "motion_blur": Operator(_motion_blur, PIXELS),
    "temporal_blur": Operator(_temporal_blur, ("audio",)),
    "time_mask": Operator(_time_mask, ("audio",)),
    "occlusion": Operator(_occlusion, (*PIXELS, "audio")),
}


def corrupt(x: Tensor, modality: Modality, operator: str, levels: Tensor, rows: Tensor, seed: int) -> Tensor:
    """Content of one modality with noise.

    Args:
        x: (B, *shape) as a model gets it, float.
        levels: (B,) int64, 1 = bit for bit as it is.
        rows: (B,) int64, what the draws are keyed by.

    Returns:
        (B, *shape). NaN stays NaN, or is overwritten.
    """
    key = hash_seed(seed, zlib.crc32(modality.name.encode()), zlib.crc32(operator.encode()))
    noisy = OPERATORS[operator].apply(x, _Items(modality, levels, rows, key))
    clean = (levels <= CLEAN).reshape(-1, *[1] * (x.ndim - 1))
    return torch.where(clean, x, noisy)


def check_operator(operator: str, where: str) -> None:
    """
    Raises:
        UserError: there is no such operator.
    """
    if operator not in OPERATORS:
        close = difflib.get_close_matches(operator, OPERATORS, 1)
        hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(OPERATORS)}"
        raise UserError(f"{where}: unknown noise '{operator}'; {hint}")


def check_fits(operator: str, name: str, kind: str, where: str) -> None:
    """
    Raises:
        UserError: the operator is for other kinds than that of the modality ``name``.
    """
    fitting = OPERATORS[operator].kinds
    if kind not in fitting:
        others = [other for other, it in OPERATORS.items() if kind in it.kinds]
        mend = f"{kind} takes {', '.join(others)}" if others else "leave that modality out, or hide it (whole_...)"
        raise UserError(
            f"{where}: noise '{operator}' is for {', '.join(fitting)}, and modality '{name}' is {kind}; {mend}"
        )


def check_level(level: object, where: str) -> int:
    """
    Raises:
        UserError: no whole number from 1 to 11.
    """
    if isinstance(level, bool) or not str(level).isdecimal() or not CLEAN <= int(str(level)) <= WORST:
        raise UserError(
            f"{where}: noise level '{level}' is no whole number from {CLEAN} (clean) to {WORST}, as in "
            "noise_gaussian_4_all"
        )
    return int(str(level))


@dataclass(frozen=True)
class Noise:
    """What a scenario does to content.

    Attributes:
        level: 1 to 11.
        where: ``all``; a name, a column, or several with a hyphen between; digits alone are a column each (``02``).
    """

    operator: str
    level: int
    where: str = "all"

    def __post_init__(self) -> None:
        check_operator(self.operator, f"missing scenario '{self.name}'")
        check_level(self.level, f"missing scenario '{self.name}'")

    @property
    def name(self) -> str:
        return f"noise_{self.operator}_{self.level}_{self.where}"

    @property
    def caption(self) -> str:
        """The noise in words: "Gaussian noise of level 4 on m0"."""
        return f"{self._operator_caption} of level {self.level} on {self._where_caption}"

    @property
    def family(self) -> str:
        """What other levels have in common with this one: "Gaussian noise on m0"."""
        return f"{self._operator_caption} on {self._where_caption}"

    @property
    def _operator_caption(self) -> str:
        return "Gaussian noise" if self.operator == "gaussian" else self.operator.replace("_", " ")

    @property
    def _where_caption(self) -> str:
        return "all modalities" if self.where == "all" else self.where

    def columns(self, names: Sequence[str]) -> list[int]:
        """Columns of the modalities that are hit.

        Raises:
            UserError: an unknown modality.
        """
        if self.where == "all":
            return list(range(len(names)))
        if self.where in names:
            return [list(names).index(self.where)]
        found = set()
        for part in list(self.where) if self.where.isdecimal() else self.where.split("-"):
            column = int(part) if part.isdecimal() else list(names).index(part) if part in names else -1
            if not 0 <= column < len(names):
                raise UserError(
                    f"missing scenario '{self.name}': there is no modality '{part}', the data set has "
                    f"{', '.join(f'{i} {name}' for i, name in enumerate(names))} (or write all)"
                )
            found.add(column)
        return sorted(found)

    def levels(self, kinds: Mapping[str, str]) -> tuple[int, ...]:
        """The level of each modality.

        Args:
            kinds: modality name -> kind, in the order of the columns.

        Raises:
            UserError: an unknown modality, or one of a kind that the operator is not for.
        """
        names = list(kinds)
        levels = [CLEAN] * len(names)
        for column in self.columns(names):
            check_fits(self.operator, names[column], kinds[names[column]], f"missing scenario '{self.name}'")
            levels[column] = self.level
        return tuple(levels)


def parse_noise(text: str) -> Noise:
    """``noise_<operator>_<level>_<where>``.

    Raises:
        UserError: it is not that.
    """
    match = re.fullmatch(r"noise_([a-z_]+?)_(-?[\d.]+)_(.+)", text)
    if not match:
        raise UserError(
            f"missing scenario '{text}': write noise_<operator>_<level>_<modality, column or all>, for example "
            f"noise_gaussian_4_all; operators are {', '.join(OPERATORS)}"
        )
    check_operator(match[1], f"missing scenario '{text}'")
    return Noise(match[1], check_level(match[2], f"missing scenario '{text}'"), match[3])


@dataclass(frozen=True)
class Corruption:
    """A batch at fixed levels.

    Attributes:
        modalities: in the order of the columns.
        levels: of each of them.
    """

    modalities: tuple[Modality, ...]
    operator: str
    levels: tuple[int, ...]
    seed: int

    def of_rows(self, n: int) -> np.ndarray:
        """(n, M) int64, the levels of a split's rows."""
        return np.tile(np.array(self.levels, dtype=np.int64), (n, 1))

    def __call__(self, batch: Batch, epoch: int = 0) -> Batch:
        levels = torch.tensor(self.levels, device=batch.index.device).expand(len(batch), -1)
        hit = [level > CLEAN for level in self.levels]
        return at_levels(batch, self.modalities, hit, self.operator, levels, self.seed)


def at_levels(
    batch: Batch, modalities: Sequence[Modality], hit: Sequence[bool], operator: str, levels: Tensor, seed: int
) -> Batch:
    """The batch with noise of ``levels`` (B, M) int64, which it also carries as ``noise_level``.

    Args:
        hit: of each modality, whether a level above 1 may be among them.
    """
    inputs = dict(batch.inputs)
    for column, m in enumerate(modalities):
        if hit[column]:
            inputs[m.name] = corrupt(inputs[m.name], m, operator, levels[:, column], batch.index, seed)
    return batch.replace(inputs=inputs, noise_level=levels.to(torch.float32))


class TrainingNoise:
    """Noise on training batches, as in UDML: a share of the rows is clean, the others have levels, drawn for each
    modality alike. The levels are in ``Batch.noise_level``, for methods that learn to tell them.

    Args:
        operator: see the module.
        modalities: names; None = all that the operator is for (text stays clean).
        clean_share: floor(n times this) rows, drawn at random, are clean in all modalities.
        levels: equally likely ones of the other rows; 1 is among them in UDML.
        start_epoch: training is clean before it.
        redraw: draw the levels of each row (and which are clean) anew in every epoch; without it, once and for all.
            The noise itself is another in every epoch either way.

    Raises:
        UserError: an impossible value.
    """

    def __init__(
        self,
        operator: str = "gaussian",
        modalities: Sequence[str] | None = None,
        clean_share: float = 0.5,
        levels: Sequence[int] = tuple(range(CLEAN, WORST + 1)),
        start_epoch: int = 0,
        redraw: bool = False,
    ) -> None:
        check_operator(operator, "model.noise")
        self.chosen = [check_level(level, "model.noise.levels") for level in levels]
        if not self.chosen:
            raise UserError("model.noise.levels is empty: give whole numbers from 1 to 11")
        if not 0 <= clean_share <= 1:
            raise UserError(f"model.noise.clean_share={clean_share} is outside [0, 1]")
        if start_epoch < 0:
            raise UserError(f"model.noise.start_epoch={start_epoch}: must be 0 or more")
        self.operator, self.modalities, self.clean_share = operator, modalities, clean_share
        self.start_epoch, self.redraw = start_epoch, redraw

    def hits(self, kinds: Mapping[str, str]) -> list[bool]:
        """Of each modality, whether it gets noise.

        Args:
            kinds: modality name -> kind, in the order of the columns.

        Raises:
            UserError: an unknown modality, one of a kind that the operator is not for, or none at all.
        """
        if self.modalities is None:
            hit = [kind in OPERATORS[self.operator].kinds for kind in kinds.values()]
            if not any(hit):
                raise UserError(
                    f"model.noise: '{self.operator}' is for {', '.join(OPERATORS[self.operator].kinds)}, the data set "
                    f"has {', '.join(kinds.values())}; choose another operator"
                )
            return hit
        for name in self.modalities:
            if name not in kinds:
                raise UserError(f"model.noise.modalities: there is no '{name}', only {', '.join(kinds)}")
            check_fits(self.operator, name, kinds[name], "model.noise.modalities")
        return [name in self.modalities for name in kinds]

    def levels(self, n: int, hit: Sequence[bool], seed: int, epoch: int = 0) -> Tensor:
        """Levels (n, M) int64 of a split's rows in an epoch: floor(n clean_share) rows are 1 throughout."""
        if epoch < self.start_epoch:
            return torch.full((n, len(hit)), CLEAN)
        rng = np.random.default_rng(hash_seed(seed, 6, epoch if self.redraw else 0))
        drawn = rng.choice(np.array(self.chosen), (n, len(hit)))
        drawn[rng.permutation(n)[: math.floor(n * self.clean_share)]] = CLEAN
        drawn[:, [not it for it in hit]] = CLEAN
        return torch.from_numpy(drawn)

    def bind(self, modalities: Sequence[Modality], n: int, seed: int) -> Callable[[Batch, int], Batch]:
        """What a loader of ``n`` rows applies: (batch, epoch) -> batch with noise. A row's noise depends on seed and
        epoch alone, so that a resumed run, and every number of processes, has the same."""
        hit = self.hits({m.name: m.kind for m in modalities})
        known: dict[int, Tensor] = {}

        def apply(batch: Batch, epoch: int) -> Batch:
            if epoch not in known:
                known.clear()
                known[epoch] = self.levels(n, hit, seed, epoch)
            known[epoch] = known[epoch].to(batch.index.device)
            levels = known[epoch].index_select(0, batch.index)
            noisy = hit if epoch >= self.start_epoch else [False] * len(hit)
            return at_levels(batch, modalities, noisy, self.operator, levels, hash_seed(seed, 5, epoch))

        return apply

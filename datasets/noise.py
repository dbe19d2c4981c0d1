"""Noise as soft missingness: the noise of a scenario, and noise on training batches.

:mod:`datasets.noise_operators` defines the operators and their levels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from datasets.noise_operators import CLEAN, OPERATORS, WORST, check_fits, check_operator, corrupt
from utils.errors import UserError
from utils.noise import hash_seed

if TYPE_CHECKING:
    from datasets.batch import Batch, Modality


def check_level(level: object, where: str) -> int:
    """
    Raises:
        UserError: not a whole number from 1 to 11.
    """
    if isinstance(level, bool) or not str(level).isdecimal() or not CLEAN <= int(str(level)) <= WORST:
        raise UserError(
            f"{where}: noise level '{level}' is no whole number from {CLEAN} (clean) to {WORST}, as in "
            "noise_gaussian_4_all"
        )
    return int(str(level))


@dataclass(frozen=True)
class Noise:
    """Noise of a scenario.

    Attributes:
        level: 1 to 11.
        where: ``all``; names or columns of modalities, joined by hyphens; digits alone are one column each (``02``).
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
        """Columns of the modalities that get noise.

        Raises:
            UserError: an unknown modality.
        """
        if self.where == "all":
            return list(range(len(names)))
        if self.where in names:
            return [list(names).index(self.where)]
        columns = set()
        for part in list(self.where) if self.where.isdecimal() else self.where.split("-"):
            column = int(part) if part.isdecimal() else list(names).index(part) if part in names else -1
            if not 0 <= column < len(names):
                raise UserError(
                    f"missing scenario '{self.name}': there is no modality '{part}', the data set has "
                    f"{', '.join(f'{i} {name}' for i, name in enumerate(names))} (or write all)"
                )
            columns.add(column)
        return sorted(columns)

    def levels(self, kinds: Mapping[str, str]) -> tuple[int, ...]:
        """Level per modality.

        Args:
            kinds: modality name -> kind, in the order of the columns.

        Raises:
            UserError: an unknown modality, or a kind that the operator does not support.
        """
        names = list(kinds)
        levels = [CLEAN] * len(names)
        for column in self.columns(names):
            check_fits(self.operator, names[column], kinds[names[column]], f"missing scenario '{self.name}'")
            levels[column] = self.level
        return tuple(levels)


def parse_noise(text: str) -> Noise:
    """Parse ``noise_<operator>_<level>_<where>``.

    Raises:
        UserError: the text has another form.
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
    """Corruption of batches at fixed levels.

    Attributes:
        modalities: in the order of the columns.
        levels: per modality.
    """

    modalities: tuple[Modality, ...]
    operator: str
    levels: tuple[int, ...]
    seed: int

    def of_rows(self, n: int) -> np.ndarray:
        """Levels of the rows of a split, (n, M) int64."""
        return np.tile(np.array(self.levels, dtype=np.int64), (n, 1))

    def __call__(self, batch: Batch, epoch: int = 0) -> Batch:
        levels = torch.tensor(self.levels, device=batch.index.device).expand(len(batch), -1)
        has_noise = [level > CLEAN for level in self.levels]
        return at_levels(batch, self.modalities, has_noise, self.operator, levels, self.seed)


def at_levels(
    batch: Batch, modalities: Sequence[Modality], has_noise: Sequence[bool], operator: str, levels: Tensor, seed: int
) -> Batch:
    """The batch with noise of ``levels`` (B, M) int64, which it also carries as ``noise_level``.

    Args:
        has_noise: per modality, whether any of its levels may be above 1.
    """
    inputs = dict(batch.inputs)
    for column, m in enumerate(modalities):
        if has_noise[column]:
            inputs[m.name] = corrupt(inputs[m.name], m, operator, levels[:, column], batch.index, seed)
    return batch.replace(inputs=inputs, noise_level=levels.to(torch.float32))


class TrainingNoise:
    """Noise on training batches, as in UDML: a share of the rows is clean, the others have a random level per modality.

    The levels are in ``Batch.noise_level``, for methods that learn to predict them.

    Args:
        operator: see :mod:`datasets.noise_operators`.
        modalities: names; None = all that the operator supports (text stays clean).
        clean_share: floor(n times this) rows, drawn at random, are clean in all modalities.
        levels: equally likely levels of the other rows; UDML's include 1.
        start_epoch: training is clean before this epoch.
        redraw: draw the levels of the rows (and which rows are clean) anew in every epoch instead of once. The noise
            itself differs between epochs either way.

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
        """Whether each modality gets noise.

        Args:
            kinds: modality name -> kind, in the order of the columns.

        Raises:
            UserError: an unknown modality, a kind that the operator does not support, or no modality that it supports.
        """
        if self.modalities is None:
            has_noise = [kind in OPERATORS[self.operator].kinds for kind in kinds.values()]
            if not any(has_noise):
                raise UserError(
                    f"model.noise: '{self.operator}' is for {', '.join(OPERATORS[self.operator].kinds)}, the data set "
                    f"has {', '.join(kinds.values())}; choose another operator"
                )
            return has_noise
        for name in self.modalities:
            if name not in kinds:
                raise UserError(f"model.noise.modalities: there is no '{name}', only {', '.join(kinds)}")
            check_fits(self.operator, name, kinds[name], "model.noise.modalities")
        return [name in self.modalities for name in kinds]

    def levels(self, n: int, has_noise: Sequence[bool], seed: int, epoch: int = 0) -> Tensor:
        """Levels (n, M) int64 of the rows of a split in an epoch; floor(n clean_share) rows are 1 in all modalities."""
        if epoch < self.start_epoch:
            return torch.full((n, len(has_noise)), CLEAN)
        rng = np.random.default_rng(hash_seed(seed, 6, epoch if self.redraw else 0))
        drawn = rng.choice(np.array(self.chosen), (n, len(has_noise)))
        drawn[rng.permutation(n)[: math.floor(n * self.clean_share)]] = CLEAN
        drawn[:, ~np.array(has_noise, dtype=bool)] = CLEAN
        return torch.from_numpy(drawn)

    def bind(self, modalities: Sequence[Modality], n: int, seed: int) -> Callable[[Batch, int], Batch]:
        """Function (batch, epoch) -> batch with noise for a loader of ``n`` rows.

        The noise of a row depends on seed and epoch alone: resumed runs, and any number of processes, have the same.
        """
        has_noise = self.hits({m.name: m.kind for m in modalities})
        levels_of: dict[int, Tensor] = {}  # of the current epoch

        def apply(batch: Batch, epoch: int) -> Batch:
            if epoch not in levels_of:
                levels_of.clear()
                levels_of[epoch] = self.levels(n, has_noise, seed, epoch)
            levels_of[epoch] = levels_of[epoch].to(batch.index.device)
            levels = levels_of[epoch].index_select(0, batch.index)
            noisy = has_noise if epoch >= self.start_epoch else [False] * len(has_noise)
            return at_levels(batch, modalities, noisy, self.operator, levels, hash_seed(seed, 5, epoch))

        return apply

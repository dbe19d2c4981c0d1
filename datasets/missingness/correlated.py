"""Modalities that fail together, with a given correlation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.missingness.base import Rows, ScenarioWithRate, modality_name, number_text, to_number
from datasets.missingness.chances import draw, independent_log_chances
from datasets.missingness.random import check_rate
from datasets.missingness.whole import Whole
from utils.errors import UserError

# Ways to draw a row of k modalities at one rate, from the least to the most correlated.
SPREAD, INDEPENDENT, TOGETHER = "spread", "independent", "together"


@dataclass(frozen=True)
class Correlated(ScenarioWithRate):
    """The modalities of a group are missing at one rate, and each two of them with one correlation.

    The rate is the fraction of (row, modality) pairs of the group; the correlation is Pearson's, of the two indicators
    of being missing. Rows are a mixture of two of three ways to draw a row: ``spread`` (as equal numbers of missing
    modalities as possible), ``independent``, and ``together`` (all of the group at once). Each way has the rate and one
    correlation for all pairs, and a mixture has the weighted mean of the correlations: it reaches every correlation
    from that of ``spread`` to that of ``together``, which are the bounds for exchangeable modalities.

    If the group is the complete data set, every row keeps one modality: ``independent`` draws a row again that would
    lose everything, and ``together`` is all but one. A group that leaves out a modality has no such restriction, and
    can fail with correlation 1.

    Attributes:
        correlation: of each two modalities of the group.
        group: numbers of the modalities; empty = all of the data set.
    """

    correlation: float
    group: tuple[int, ...] = ()
    kind = "correlated"
    examples = {
        "correlated_0.1_0.3": "30 % of the modalities; being missing has the correlation 0.1 between any two of them",
        "correlated_12_0.6_0.4": "modalities 1 and 2 in 40 % of the rows each; being missing has the correlation 0.6",
    }
    keys = ("modalities", "correlation", "rate")

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise UserError(f"the rate {self.rate:g} is outside (0, 1), correlations need both values")
        if not -1 <= self.correlation <= 1:
            raise UserError(f"the correlation {self.correlation:g} is outside [-1, 1]")
        if len(self.group) == 1:
            raise UserError("a correlation is between two modalities or more: write for example correlated_12_0.6_0.4")

    @classmethod
    def parse(cls, text: str) -> Correlated | None:
        if not text.startswith("correlated_"):
            return None
        numbers, _, rate = text.removeprefix("correlated_").rpartition("_")
        group, _, correlation = numbers.rpartition("_")
        columns: Sequence[int] = ()
        if group:
            if (scenario := Whole.parse(group)) is None:
                raise UserError(f"'{group}' are no numbers of modalities, write for example correlated_12_0.6_0.4")
            columns = scenario.modalities
        return cls.from_mapping({"modalities": columns, "correlation": correlation, "rate": rate})

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Correlated:
        columns = values.get("modalities") or ()
        scenario = Whole.from_mapping({"modalities": columns}) if columns else None
        correlation = to_number(values.get("correlation"), "correlation", next(iter(cls.examples)))
        group = scenario.modalities if isinstance(scenario, Whole) else ()
        return cls(cls.to_rate(values.get("rate")), correlation, group)

    @property
    def pattern_name(self) -> str:
        group = Whole(self.group).pattern_name.removeprefix("whole_") + "_" if self.group else ""
        return f"correlated_{group}{number_text(self.correlation)}_{self.rate_text}"

    @property
    def named_modalities(self) -> tuple[int, ...]:
        return self.group

    @property
    def protocol(self) -> str:
        return "mixture"

    def family(self, modalities: Sequence[str] = ()) -> str:
        names = " and ".join(modality_name(j, modalities) for j in self.group) or "modalities"
        return f"{names} missing, correlation {self.correlation:g}"

    def pattern_caption(self, modalities: Sequence[str] = ()) -> str:
        return f"{self.percent} of {self.family(modalities)}"

    def realised_rate(
        self, mask: np.ndarray, cells: Mapping[str, np.ndarray] | None = None, kinds: Sequence[str] | None = None
    ) -> float:
        """The fraction of (row, modality) pairs of the group."""
        return float((mask[:, list(self.group)] if self.group else mask).mean())

    def check(self, m: int, names: Sequence[str] | None = None) -> None:
        super().check(m, names)
        k, keeps_one = self._size(m)
        if k < 2:
            raise UserError(f"missing scenario '{self.name}' is for two modalities or more, the data set has {m}")
        if keeps_one:
            check_rate(self.rate, m, f"missing scenario '{self.name}'")
        low, _, high = correlations(k, self.rate, keeps_one).values()
        if not low - 1e-9 <= self.correlation <= high + 1e-9:
            reason = f", one of which must stay: a group that leaves one out reaches 1 ({self.kind}_12_1_0.4)"
            raise UserError(
                f"missing scenario '{self.name}': at rate {self.rate:g}, correlations lie between {low:.3g} and "
                f"{high:.3g} for {k} modalities{reason if keeps_one else ''}"
            )

    def _size(self, m: int) -> tuple[int, bool]:
        """Number of modalities of the group, and whether a row keeps one of them."""
        k = len(self.group) or m
        return k, k == m

    def generate(self, rows: Rows) -> np.ndarray:
        self.check(rows.columns)
        k, keeps_one = self._size(rows.columns)
        rng = np.random.default_rng(rows.seed)
        reached = correlations(k, self.rate, keeps_one)
        middle = reached[INDEPENDENT]
        other = TOGETHER if self.correlation > middle else SPREAD
        distance = reached[other] - middle
        share = (self.correlation - middle) / distance if distance else 0.0
        is_other = rng.random(rows.n) < share
        ways = [draw_way(way, rows.n, k, self.rate, keeps_one, rng) for way in (other, INDEPENDENT)]
        mask = np.zeros((rows.n, rows.columns), dtype=bool)
        mask[:, list(self.group) or list(range(k))] = np.where(is_other[:, None], *ways)
        return mask


def correlations(k: int, rate: float, keeps_one: bool) -> dict[str, float]:
    """Way -> correlation of each two of k modalities, in increasing order.

    It is (E[X Y] - r²) / (r (1 - r)), and E[X Y] = E[K (K - 1)] / (k (k - 1)) with the number K of missing modalities.
    With a given mean of K, the variance is least where K is one of two neighbouring integers, and largest where it is 0
    or its maximum.
    """
    whole_part = math.floor(k * rate + 1e-9)
    fraction = k * rate - whole_part
    spread = (whole_part * (whole_part - 1) + 2 * fraction * whole_part) / (k * (k - 1))
    if keeps_one:
        p = np.exp(independent_log_chances(np.full(k, rate)))
        q = p[0] ** k
        independent, together = (p[0] ** 2 - q) / (1 - q), (k - 2) / (k - 1) * rate
    else:
        independent, together = rate**2, rate
    pairs = {SPREAD: spread, INDEPENDENT: independent, TOGETHER: together}
    return {way: float((joint - rate**2) / (rate * (1 - rate))) for way, joint in pairs.items()}


def draw_way(way: str, n: int, k: int, rate: float, keeps_one: bool, rng: np.random.Generator) -> np.ndarray:
    """(n, k) bool, True = missing: rows drawn in one way, see :class:`Correlated`."""
    if way == INDEPENDENT:
        if keeps_one:
            return draw(np.tile(independent_log_chances(np.full(k, rate)), (n, 1)), rng)
        return rng.random((n, k)) < rate
    ranks = rng.permuted(np.tile(np.arange(k), (n, 1)), axis=1)
    if way == SPREAD:
        whole_part = math.floor(k * rate + 1e-9)
        return ranks < whole_part + (rng.random(n) < k * rate - whole_part)[:, None]
    largest = k - 1 if keeps_one else k
    return (ranks < largest) & (rng.random(n) < k * rate / largest)[:, None]

"""Modalities missing at random, at a rate (docs/reference/datasets.md §12.2.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.missingness.base import Rows, ScenarioWithRate
from utils.errors import UserError

# Generator -> its name in figures.
GENERATORS = {"exact": "exact", "global": "global", "bernoulli": "Bernoulli"}


@dataclass(frozen=True)
class Random(ScenarioWithRate):
    """Modalities of each row are missing at random.

    Attributes:
        rate: below 1, as every row keeps one modality.
        generator: exact | global | bernoulli, see :func:`random_mask`.
    """

    generator: str = "exact"
    kind = "random"
    examples = {
        "random_0.8": "80 % of the modalities: every row misses exactly round(0.8 M) of its M modalities, drawn at "
        "random",
        "random_global_0.8": "80 % of the modalities on average over all rows (within 0.005); every row keeps at least "
        "one",
        "random_bernoulli_0.8": "each modality of each row independently with probability 0.8; rows that would lose "
        "everything are drawn again, so the realised rate is lower (0.702 for five modalities)",
    }
    keys = ("rate", "generator")

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise UserError(f"the rate {self.rate:g} is outside [0, 1), one modality must stay")
        if self.generator not in GENERATORS:
            raise UserError(f"unknown generator '{self.generator}', known are {', '.join(GENERATORS)}")

    @classmethod
    def parse(cls, text: str) -> Random | None:
        if not text.startswith("random_"):
            return None
        generator, _, rate = text.removeprefix("random_").rpartition("_")
        return cls(cls.to_rate(rate), generator or "exact")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Random:
        return cls(cls.to_rate(values.get("rate")), str(values.get("generator", "exact")))

    @property
    def pattern_name(self) -> str:
        infix = "" if self.generator == "exact" else f"{self.generator}_"
        return f"random_{infix}{self.rate_text}"

    @property
    def protocol(self) -> str:
        return self.generator

    @property
    def dymo_name(self) -> str:
        return f"random_{self.rate:g}"

    def family(self, modalities: Sequence[str] = ()) -> str:
        return f"random ({GENERATORS[self.generator]})"

    def pattern_caption(self, modalities: Sequence[str] = ()) -> str:
        suffix = "" if self.generator == "exact" else f" ({GENERATORS[self.generator]})"
        return f"{self.percent} of modalities{suffix}"

    def expected_rate(self, m: int) -> float:
        if self.generator == "exact":
            return round(self.rate * m) / m
        if self.generator == "global":
            return min(self.rate, (m - 1) / m)
        empty = self.rate**m  # fraction of the rows that are drawn again
        return (self.rate - empty) / (1 - empty)

    def rate_reason(self, m: int, rate: float) -> str:
        if self.generator == "exact" and self.rate <= (m - 1) / m:
            return f"{round(rate * m)} of {m} modalities; random_global_{self.rate:g} comes nearer"
        return f"as every row keeps one of {m} modalities; tables and curves show that"

    def check(self, m: int, names: Sequence[str] | None = None) -> None:
        super().check(m, names)
        if self.generator == "exact":
            check_rate(self.rate, m, f"missing scenario '{self.name}'")

    def generate(self, rows: Rows) -> np.ndarray:
        return random_mask(rows.n, rows.columns, self.rate, self.generator, rows.seed)


def check_rate(rate: float, m: int, what: str) -> None:
    """
    Raises:
        UserError: a fraction ``rate`` of m modalities is more than all but one, so that no row can miss exactly that.
    """
    if rate * m > m - 1 + 1e-9:
        highest = f"{(m - 1) / m:.4g}"
        raise UserError(f"{what} would leave no modality of {m} in some rows: the highest rate is {highest}")


def random_mask(n: int, m: int, rate: float, generator: str, seed: int) -> np.ndarray:
    """(n, m) bool mask at a rate; True = missing, at least one False per row.

    ``exact``: k = round(rate m) per row, by the ranks of uniform draws, so that masks of increasing rates are nested.
    ``global``: one guaranteed modality per row plus Bernoulli extras, redrawn until the mean is within 0.005
    (within one cell for small n). ``bernoulli``: independent cells, empty rows redrawn.

    Raises:
        UserError: the rate is impossible with m modalities.
    """
    rng = np.random.default_rng(seed)
    if generator == "exact":
        check_rate(rate, m, f"rate {rate:g}")
        k = round(rate * m)
        draws = rng.random((n, m))
        return np.argsort(np.argsort(draws, axis=1, kind="stable"), axis=1, kind="stable") < k
    if generator == "global":
        if rate == 0:
            return np.zeros((n, m), dtype=bool)
        keep = 1 - rate
        extra = max(keep - 1 / m, 0.0) / (1 - 1 / m) if m > 1 else 0.0
        tolerance = max(0.005, 1 / (n * m))
        for _ in range(10_000):
            present = rng.random((n, m)) < extra
            present[np.arange(n), rng.integers(m, size=n)] = True
            # At or above (m-1)/m every row keeps exactly one modality: the nearest possible rate.
            if extra == 0 or abs(present.mean() - keep) <= tolerance:
                return ~present
        raise UserError(f"no mask of {n} rows comes within {tolerance:.3g} of rate {rate:g}: use random_{rate:g}")
    mask = rng.random((n, m)) < rate
    while (empty := mask.all(axis=1)).any():
        mask[empty] = rng.random((int(empty.sum()), m)) < rate
    return mask

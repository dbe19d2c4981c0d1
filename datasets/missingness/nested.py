"""One modality missing at nested rates, as in the stress tests of Resilient-VT (docs/reference/datasets.md §12.6.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.missingness.base import DEFAULT_SEED, Rows, ScenarioWithRate, modality_name
from utils.errors import UserError

SEED = 42  # of all splits


@dataclass(frozen=True)
class Nested(ScenarioWithRate):
    """One modality is missing in a fraction of the rows; rows that miss it at a lower rate miss it at a higher one.

    Attributes:
        column: of the modality.
    """

    column: int
    kind = "nested"
    examples = {"nested_1_0.25": "modality 1 in 25 % of the rows; these rows are among those of `nested_1_0.5`"}
    keys = ("modality", "rate")

    @classmethod
    def parse(cls, text: str) -> Nested | None:
        if not text.startswith("nested_"):
            return None
        column, _, rate = text.removeprefix("nested_").partition("_")
        return cls.from_mapping({"modality": column, "rate": rate})

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Nested:
        rate, column = cls.to_rate(values.get("rate")), str(values.get("modality"))
        if not column.isdecimal():
            raise UserError(f"'{column}' is no column number, write for example nested_0_0.25")
        return cls(rate, int(column))

    @property
    def pattern_name(self) -> str:
        return f"nested_{self.column}_{self.rate_text}"

    @property
    def named_modalities(self) -> tuple[int, ...]:
        return (self.column,)

    @property
    def protocol(self) -> str:
        return "Resilient-VT"

    def family(self, modalities: Sequence[str] = ()) -> str:
        return f"{modality_name(self.column, modalities)} missing"

    def pattern_caption(self, modalities: Sequence[str] = ()) -> str:
        return f"{self.family(modalities)} in {self.percent}"

    def seed(self, base: int, split: int) -> int:
        return (SEED + base - DEFAULT_SEED) % 2**32

    def realised_rate(
        self, mask: np.ndarray, cells: Mapping[str, np.ndarray] | None = None, kinds: Sequence[str] | None = None
    ) -> float:
        """The fraction of the rows without the modality."""
        return float(mask[:, self.column].mean())

    def check(self, m: int, names: Sequence[str] | None = None) -> None:
        super().check(m, names)
        if m == 1:
            raise UserError(f"missing scenario '{self.name}': the data set has one modality, which must stay")

    def generate(self, rows: Rows) -> np.ndarray:
        self.check(rows.columns)
        mask = np.zeros((rows.n, rows.columns), dtype=bool)
        absent = mask if rows.absent is None else rows.absent
        mask[nested_rows(absent, self.column, self.rate, rows.seed), self.column] = True
        return mask


def nested_rows(absent: np.ndarray, column: int, rate: float, seed: int) -> np.ndarray:
    """Rows that lose one modality, so that floor(rate N) rows lack it in total.

    k ones before N - k zeros are shuffled by NumPy's legacy generator, as in Resilient-VT. For every k, the shuffle
    sends the same places to the same places, which nests the rates. A row that never had the modality counts towards
    the rate; a row that has nothing else keeps it, and the next rows in the order take its place.

    Args:
        absent: (N, M) bool, what the source never had.
        column: of the modality.

    Returns:
        Row numbers, in the order in which increasing rates take them.
    """
    n = len(absent)
    wanted = math.floor(rate * n + 1e-9)  # 0.29 * 100 is a little less than 29
    origin = np.arange(n)
    np.random.RandomState(seed).shuffle(origin)  # legacy: the published masks come from it
    order = np.argsort(origin)
    never_there = absent[:, column]
    is_free = ~never_there & ~np.delete(absent, column, axis=1).all(axis=1)
    return order[is_free[order]][: max(wanted - int(never_there.sum()), 0)]

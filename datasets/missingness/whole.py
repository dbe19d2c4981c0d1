"""Fixed sets of missing modalities."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any

import numpy as np

from datasets.missingness.base import Rows, Scenario, modality_name
from datasets.missingness.none import Complete
from utils.errors import UserError

ORDER_SEED = 2025


@dataclass(frozen=True)
class Whole(Scenario):
    """The same modalities are missing in every row.

    Attributes:
        modalities: their columns, at least one.
    """

    modalities: tuple[int, ...]
    kind = "whole"
    examples = {
        "whole_12": "modalities 1 and 2, in every row; `whole_1_2` means the same, and `whole_1_12` modalities 1 and 12"
    }
    keys = ("modalities",)

    @classmethod
    def parse(cls, text: str) -> Whole | None:
        match = re.fullmatch(r"(?:whole_)?(\d+(?:_\d+)*_?)", text)
        if not match:
            return None
        numbers = match[1].split("_") if "_" in match[1] else match[1]
        return cls(tuple(sorted({int(number) for number in numbers if number})))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Scenario:
        columns = values.get("modalities")
        columns = [columns] if isinstance(columns, int) else columns
        if not isinstance(columns, Sequence) or not all(str(column).isdecimal() for column in columns):
            raise UserError("modalities is a list of column numbers, for example [0, 2]")
        return whole(columns)

    @property
    def pattern_name(self) -> str:
        separator = "" if max(self.modalities) < 10 else "_"
        name = separator.join(map(str, self.modalities))
        return f"whole_{name}" + ("_" if separator and len(self.modalities) == 1 else "")

    @property
    def named_modalities(self) -> tuple[int, ...]:
        return self.modalities

    @property
    def always_missing(self) -> tuple[int, ...]:
        return self.modalities

    @property
    def dymo_name(self) -> str:
        return "whole_" + "_".join(map(str, self.modalities))

    def pattern_caption(self, modalities: Sequence[str] = ()) -> str:
        """What is missing, or what is left where that is shorter."""
        observed = [i for i in range(len(modalities)) if i not in self.modalities]
        if 0 < len(observed) < len(self.modalities):
            return f"only {_enumerate([modalities[i] for i in observed])}"
        return f"{_enumerate([modality_name(i, modalities) for i in self.modalities])} missing"

    def check(self, m: int, names: Sequence[str] | None = None) -> None:
        super().check(m, names)
        if len(set(self.modalities)) == m:
            raise UserError(f"missing scenario '{self.name}' leaves nothing present: drop at least one digit")

    def generate(self, rows: Rows) -> np.ndarray:
        self.check(rows.columns)
        mask = np.zeros((rows.n, rows.columns), dtype=bool)
        mask[:, list(self.modalities)] = True
        return mask


def _enumerate(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def whole(columns: Sequence[int]) -> Scenario:
    """The scenario in which ``columns`` are missing in every row; without columns ``none``."""
    return Whole(tuple(sorted({int(column) for column in columns}))) if columns else Complete()


def subsets(m: int) -> list[Scenario]:
    """All 2^m - 1 patterns of m modalities of which at least one is observed, the most complete ones first."""
    observed_sets = [observed for size in range(m, 0, -1) for observed in combinations(range(m), size)]
    return [whole([i for i in range(m) if i not in observed]) for observed in observed_sets]


def modality_orders(m: int) -> Iterator[tuple[int, ...]]:
    """Random orders of m modalities without end, the same in every call."""
    rng = np.random.default_rng([ORDER_SEED, m])
    while True:
        yield tuple(int(column) for column in rng.permutation(m))


def visited_subsets(m: int, count: int) -> list[Scenario]:
    """Patterns in which the first modalities of an order are observed, for the first ``count`` of
    :func:`modality_orders`; the most complete ones first."""
    observed = {frozenset(order[:size]) for order in islice(modality_orders(m), count) for size in range(1, m + 1)}
    missing = [[i for i in range(m) if i not in columns] for columns in observed]
    return [whole(columns) for columns in sorted(missing, key=lambda columns: (len(columns), columns))]

"""Patterns of missing modalities with their frequencies: as given, or those of the training rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.missingness.base import Rows, Scenario, modality_name, number_text, to_number
from datasets.missingness.whole import Whole, whole
from utils.errors import UserError

LIKE_TRAIN = "like_train"
EXAMPLE = "patterns_none-0.5_12-0.3_0-0.2"


@dataclass(frozen=True)
class Patterns(Scenario):
    """Each row gets one pattern, drawn with a probability that is proportional to its weight.

    With ``like_train``, the patterns are those in which the source of the training rows lacks modalities, in their
    frequencies (a table with an observed cell is not lacking). Gaps of the rows themselves come on top, and a row whose
    pattern would leave it nothing keeps the only modality that it has. The rate is the fraction of (row, modality)
    pairs.

    Attributes:
        missing: numbers of the missing modalities of each pattern; empty = like_train.
        weights: of the patterns.
    """

    missing: tuple[tuple[int, ...], ...] = ()
    weights: tuple[float, ...] = ()
    kind = "patterns"
    examples = {
        EXAMPLE: "a pattern per row: nothing in 50 % of the rows, modalities 1 and 2 in 30 %, modality 0 in 20 %; the "
        "numbers are weights of any sum",
        "patterns_like_train": "a pattern per row, as often as the source of the training rows has this pattern of "
        "missing modalities (`like_train` means the same)",
    }
    keys = ("patterns",)

    def __post_init__(self) -> None:
        if len(set(self.missing)) < len(self.missing):
            raise UserError("a pattern is named twice: add up its weights")
        if any(not 0 < weight < np.inf for weight in self.weights):
            raise UserError(f"a weight is a positive number, write for example {EXAMPLE}")

    @classmethod
    def parse(cls, text: str) -> Patterns | None:
        if text in (LIKE_TRAIN, f"patterns_{LIKE_TRAIN}"):
            return cls()
        if not text.startswith("patterns_"):
            return None
        pairs = [part.rpartition("-") for part in text.removeprefix("patterns_").split("_")]
        return cls(
            tuple(columns_of(numbers) for numbers, _, _ in pairs),
            tuple(to_number(weight, "weight", EXAMPLE) for _, _, weight in pairs),
        )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Patterns:
        entries = values.get("patterns")
        if entries == LIKE_TRAIN:
            return cls()
        is_list = isinstance(entries, Sequence) and not isinstance(entries, str) and len(entries) > 0
        if not is_list or any(not isinstance(e, Mapping) or set(e) != {"missing", "weight"} for e in entries or ()):
            raise UserError("patterns is like_train, or a list such as [{missing: [1, 2], weight: 0.3}]")
        sets = []
        for entry in entries or ():
            scenario = Whole.from_mapping({"modalities": entry["missing"]})
            sets.append(scenario.modalities if isinstance(scenario, Whole) else ())
        return cls(tuple(sets), tuple(to_number(e["weight"], "weight", EXAMPLE) for e in entries or ()))

    @property
    def pattern_name(self) -> str:
        if not self.missing:
            return f"patterns_{LIKE_TRAIN}"
        parts = [f"{numbers_of(columns)}-{number_text(w)}" for columns, w in zip(self.missing, self.weights)]
        return "_".join(["patterns", *parts])

    @property
    def named_modalities(self) -> tuple[int, ...]:
        return tuple(sorted({column for columns in self.missing for column in columns}))

    @property
    def protocol(self) -> str:
        return "patterns of the training rows" if not self.missing else "patterns"

    def pattern_caption(self, modalities: Sequence[str] = ()) -> str:
        if not self.missing:
            return "patterns of the training rows"
        parts = []
        for columns, weight in zip(self.missing, self.weights):
            names = " and ".join(modality_name(j, modalities) for j in columns) or "nothing"
            parts.append(f"{names} {100 * weight / sum(self.weights):.3g} %")
        return f"missing: {', '.join(parts)}"

    def expected_rate(self, m: int) -> float | None:
        if not self.missing:
            return None
        sizes = np.array([len(columns) for columns in self.missing])
        return float(np.average(sizes, weights=self.weights) / m)

    def check(self, m: int, names: Sequence[str] | None = None) -> None:
        super().check(m, names)
        if any(len(columns) == m for columns in self.missing):
            raise UserError(f"missing scenario '{self.name}': a pattern leaves nothing present, one of {m} must stay")

    def generate(self, rows: Rows) -> np.ndarray:
        self.check(rows.columns)
        if self.missing:
            patterns = np.zeros((len(self.missing), rows.columns), dtype=bool)
            for pattern, columns in zip(patterns, self.missing):
                pattern[list(columns)] = True
            weights = np.array(self.weights)
        else:
            with rows.content_of(self) as content:
                patterns, weights = np.unique(content.training_gaps(), axis=0, return_counts=True)
            if not patterns.any():
                raise UserError(
                    f"missing scenario '{self.name}': the source of the training rows lacks no modality, so nothing "
                    f"would be missing: give the patterns, for example {EXAMPLE}"
                )
        drawn = np.random.default_rng(rows.seed).choice(len(weights), rows.n, p=weights / weights.sum())
        return np.asarray(patterns[drawn])


def columns_of(numbers: str) -> tuple[int, ...]:
    """``none`` -> (), ``12`` -> (1, 2), ``1+12`` -> (1, 12).

    Raises:
        UserError: no numbers of modalities.
    """
    if numbers == "none":
        return ()
    scenario = Whole.parse(numbers.replace("+", "_"))
    if scenario is None or "_" in numbers:
        raise UserError(f"'{numbers}' are no numbers of modalities, write for example {EXAMPLE}")
    return scenario.modalities


def numbers_of(columns: Sequence[int]) -> str:
    """The inverse of :func:`columns_of`."""
    return whole(columns).pattern_name.removeprefix("whole_").replace("_", "+")

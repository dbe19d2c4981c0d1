"""Rows of a data set that are loaded and ready to be packed, one loaded form per kind of modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np


@dataclass
class TableRows:
    """A loaded table.

    Attributes:
        columns: names of the F columns, the categorical ones first.
        cardinalities: levels of the categorical columns.
        values: (N, F) float32, codes first.
        gaps: (N, F) bool, cells without a value in the source; None = no gaps.
        about: what was fitted: ``levels``, ``scaling``, ``fill``, as far as the data set fits it.
        rescaled: columns that READING_RULES 1 divided by a rounding error.
    """

    columns: list[str]
    cardinalities: list[int]
    values: np.ndarray
    gaps: np.ndarray | None = None
    about: dict[str, Any] = field(default_factory=dict)
    rescaled: Sequence[str] = ()

    def take(self, rows: np.ndarray) -> TableRows:
        return replace(self, values=self.values[rows], gaps=None if self.gaps is None else self.gaps[rows])


@dataclass
class Texts:
    """Loaded texts: N strings, '' for a row without a text; ``masked`` counts words and texts with a masked word."""

    strings: list[str]
    masked: dict[str, int] = field(default_factory=dict)

    def take(self, rows: np.ndarray) -> Texts:
        return replace(self, strings=[self.strings[i] for i in rows])


@dataclass
class Content:
    """A data set, ready to be packed.

    Attributes:
        class_names: C names.
        target: (N,) int64, or (N, C) float32 with -1 for 'no label'.
        names: of the N rows in the source.
        splits: split -> numbers of its rows.
        inputs: modality -> :class:`TableRows`, :class:`Texts`, or a list of N files, None for a row without one.
        about: plain values for ``meta.json``.
        is_sample: whether rows were left out to estimate what packing takes.
    """

    class_names: list[str]
    target: np.ndarray
    names: Sequence[str] | np.ndarray
    splits: dict[str, np.ndarray]
    inputs: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)
    is_sample: bool = False

    def sample(self, splits: Mapping[str, np.ndarray]) -> Content:
        """Only the given rows of each split."""
        used = np.unique(np.concatenate(list(splits.values())))
        return replace(
            self,
            target=self.target[used],
            names=taken(self.names, used),
            splits={split: np.searchsorted(used, rows) for split, rows in splits.items()},
            inputs={name: taken(loaded, used) for name, loaded in self.inputs.items()},
            about=deepcopy(self.about),
            is_sample=True,
        )

    def without(self, rows: np.ndarray) -> Content:
        """Splits without some rows (N,) bool; splits that have no other rows are left out."""
        splits = {split: numbers[~rows[numbers]] for split, numbers in self.splits.items()}
        return replace(self, splits={split: numbers for split, numbers in splits.items() if len(numbers)})


def taken(loaded: Any, rows: np.ndarray) -> Any:
    """Some rows of the loaded form of a modality."""
    if isinstance(loaded, np.ndarray):
        return loaded[rows]
    return [loaded[i] for i in rows] if isinstance(loaded, list) else loaded.take(rows)


def rows_of_splits(counts: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Split -> numbers of its rows, where the rows of the splits follow each other."""
    ends = np.cumsum(list(counts.values()))
    return {split: np.arange(end - counts[split], end) for split, end in zip(counts, ends)}

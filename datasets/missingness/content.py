"""Content and labels of a split, for scenarios whose masks depend on them: the only place where masks read data.

A row enters a scenario as one *score* per modality, column or class: the normal score Φ⁻¹((r - 1/2) / N) of its rank r
among the N rows with content (ties share their mean rank). Scores have mean 0 and a standard deviation of about 1
whatever the scale of the content, and an outlier such as 1e30 is one rank like any other. Content that is missing in
the source never counts: its score is 0, that of the median row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from scipy.special import ndtri
from scipy.stats import rankdata

from datasets.batch import Modality
from datasets.readers.text import ALPHABET
from datasets.split_masks import SourceGaps
from datasets.storage import PackedSplit
from utils.errors import UserError

CHUNK = 1024  # items in memory at a time
SPACE = ALPHABET.index(" ")


class SplitContent:
    """Content and labels of the rows of a split.

    Args:
        split: packed arrays of N rows.
        modalities: of the data set.
        gaps: content that the source lacks.
        training_gaps: returns that of the training rows.
    """

    def __init__(
        self,
        split: PackedSplit,
        modalities: Sequence[Modality],
        gaps: SourceGaps,
        training_gaps: Callable[[], SourceGaps],
    ) -> None:
        self.split, self.modalities, self.cells = split, modalities, gaps.cells
        self.absent = gaps.unobservable()
        self._training_gaps = training_gaps
        self._scores: dict[tuple[int, str | None], np.ndarray] = {}

    def training_gaps(self) -> np.ndarray:
        """(N', M) bool, modalities without any content in the source of the training rows."""
        return self._training_gaps().unobservable()

    @cached_property
    def class_scores(self) -> np.ndarray:
        """(N,) scores of the class numbers; with several labels, of the number of positive labels.

        Raises:
            UserError: all rows have one class.
        """
        target = self.split.read("target").numpy()
        values = (target > 0).sum(1) if target.ndim == 2 else target
        if len(np.unique(values)) < 2:
            raise UserError("all rows have the same class, nothing can depend on it: use random_bernoulli_0.4")
        return normal_scores(values.astype(np.float64))

    def scores(self, modality: int, column: str | None = None) -> np.ndarray:
        """(N,) scores of the content of a modality.

        Of images, sounds, videos and series the mean value counts, of texts the length, of tables the mean of the
        scores of the columns.

        Args:
            modality: its number.
            column: of a table, counts alone.

        Raises:
            UserError: unknown column, content that is the same in all rows, or NaN in observed content.
        """
        key = (modality, column)
        if key not in self._scores:
            values = self._values(modality, column)
            if len(np.unique(values[~np.isnan(values)])) < 2:
                what = self.modalities[modality].name + (f", column '{column}'" if column else "")
                raise UserError(f"{what} is the same in all rows, nothing can depend on it: choose other content")
            self._scores[key] = normal_scores(values)
        return self._scores[key]

    def _values(self, number: int, column: str | None) -> np.ndarray:
        """(N,) float64, NaN = the source lacks the content."""
        modality = self.modalities[number]
        if modality.kind == "table":
            return self._table_values(number, modality, column)
        if column is not None:
            raise UserError(f"'{modality.name}' is of kind {modality.kind} and has no column '{column}': leave it out")
        if modality.name in self.cells:  # a series without some of its cells
            series, observed = self.split.read(modality.name).numpy(), ~self.cells[modality.name]
            sums = np.where(observed, series, 0).reshape(len(series), -1).sum(1, dtype=np.float64)
            values = sums / np.maximum(observed.reshape(len(series), -1).sum(1), 1)
            return self._without_gaps(values, self.absent[:, number], modality.name)
        items, pointers = self.split.pool(modality.name, in_memory=False)
        counts = self.split.counts(modality.name)
        chunks = (items[start : start + CHUNK].numpy() for start in range(0, len(items), CHUNK))
        values = np.concatenate([summarise(chunk, modality.kind, counts is not None) for chunk in chunks])
        values = values if pointers is None else values[pointers.numpy()]
        if counts is not None:  # means (N, K) of the parts of each row, of which the first ones are used
            is_used = np.arange(values.shape[1]) < counts.numpy()[:, None]
            values = np.where(is_used, values, 0).sum(1) / is_used.sum(1)
        return self._without_gaps(values, self.absent[:, number], modality.name)

    def _table_values(self, number: int, modality: Modality, column: str | None) -> np.ndarray:
        table = self.split.read(modality.name).numpy().astype(np.float64)
        names = list(modality.columns) or [str(i) for i in range(table.shape[1])]
        if column is not None and column not in names:
            raise UserError(f"table '{modality.name}' has no column '{column}', its columns are {', '.join(names)}")
        gaps = np.broadcast_to(self.absent[:, number, None], table.shape)
        gaps = gaps | self.cells.get(modality.name, False)
        if column is not None:
            i = names.index(column)
            return self._without_gaps(table[:, i], gaps[:, i], f"{modality.name}', column '{column}")
        columns = [self._without_gaps(*pair, modality.name) for pair in zip(table.T, gaps.T)]
        scores = np.stack([np.where(np.isnan(values), 0, normal_scores(values)) for values in columns], 1)
        observed = (~gaps).sum(1)
        return np.where(observed > 0, scores.sum(1) / np.maximum(observed, 1), np.nan)

    def _without_gaps(self, values: np.ndarray, gaps: np.ndarray, name: str) -> np.ndarray:
        if (broken := np.isnan(values) & ~gaps).any():
            raise UserError(
                f"row {int(broken.argmax())} of '{name}' holds NaN but is observed ({int(broken.sum())} such rows), "
                "and the chance to be missing depends on it: correct the source file and prepare again"
            )
        return np.where(gaps, np.nan, values)


def summarise(items: np.ndarray, kind: str, has_parts: bool = False) -> np.ndarray:
    """One number per item, (R,), or per part of an item, (R, K): the length of a text, else the mean value.

    Args:
        items: (R, ...) as stored.
        has_parts: items are (R, K, ...), the frames of clips.
    """
    if kind == "text":
        return (items != (SPACE if items.dtype == np.uint8 else 0)).sum(1).astype(np.float64)
    return np.asarray(items.reshape(*items.shape[: 1 + has_parts], -1).mean(-1, dtype=np.float64))


def normal_scores(values: np.ndarray) -> np.ndarray:
    """(N,) normal scores of the ranks; 0 where the value is NaN. Values that are equal in float32 are ties, so that the
    order of summation changes no rank."""
    scores = np.zeros(len(values))
    known = ~np.isnan(values)
    if known.any():
        with np.errstate(over="ignore"):
            ranks = rankdata(values[known].astype(np.float32))
        scores[known] = ndtri((ranks - 0.5) / known.sum())
    return scores

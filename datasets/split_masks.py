"""Masks of a split: content that a scenario hides, together with content that the source lacks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from utils.errors import UserError

log = logging.getLogger(__name__)


def all_cells(cells: np.ndarray) -> np.ndarray:
    """(N,) bool: rows in which all cells of a mask (N, ...) are True."""
    return np.asarray(cells.reshape(len(cells), -1).all(1))


def _rows_like(rows: np.ndarray, cells: np.ndarray | None) -> np.ndarray:
    """A mask of rows (N,) as (N, 1, ...), broadcastable to ``cells`` (N, ...)."""
    assert cells is not None
    return rows.reshape(-1, *[1] * (cells.ndim - 1))


@dataclass(frozen=True)
class SplitMask:
    """Missing content of a split.

    Attributes:
        names: of the M modalities, in the order of the columns.
        missing: (N, M) bool, True = missing; a table is also marked where only some of its cells are missing.
        cells: table -> (N, F) bool, series -> (N, T, channels) bool, image -> (N, 1, H, W) bool, sounds and videos ->
            (N, ...) bool, 1 long in every axis but time; True in at least one cell of exactly the rows in which the
            modality is marked. Without an entry, marked rows miss all cells.
    """

    names: Sequence[str]
    missing: np.ndarray
    cells: Mapping[str, np.ndarray] = field(default_factory=dict)

    def unobserved(self) -> np.ndarray:
        """(N, M) bool: modalities without any observed content."""
        unobserved = self.missing.copy()
        for name, cells in self.cells.items():
            unobserved[:, self.names.index(name)] &= all_cells(cells)
        return unobserved

    def empty_rows(self) -> np.ndarray:
        """(N,) bool: rows without any observed content."""
        return np.asarray(self.unobserved().all(1))

    def complete_in(self, rows: np.ndarray) -> SplitMask:
        """The mask with nothing missing in some rows (N,) bool."""
        cells = {name: hidden & ~_rows_like(rows, hidden) for name, hidden in self.cells.items()}
        return SplitMask(self.names, self.missing & ~rows[:, None], cells)


@dataclass(frozen=True)
class SourceGaps:
    """Content that the source of a split lacks; it is missing under every scenario.

    Attributes:
        names: of the M modalities, in the order of the columns.
        absent: (N, M) bool, rows without any content of a modality.
        cells: name of a table or series -> (N, ...) bool, cells without a value.
    """

    names: Sequence[str]
    absent: np.ndarray
    cells: Mapping[str, np.ndarray]

    def unobservable(self) -> np.ndarray:
        """(N, M) bool: modalities without any content in the source, including tables without a single value."""
        unobservable = self.absent.copy()
        for name, gaps in self.cells.items():
            unobservable[:, self.names.index(name)] |= all_cells(gaps)
        return unobservable

    def combine(self, hidden: SplitMask, scenario: str, split: str, spare: bool = False) -> SplitMask:
        """Combine a scenario with the gaps of the source.

        A row whose source lacks a modality keeps its other content where the scenario would leave it nothing: the
        scenario is not applied to it.

        Args:
            hidden: content that the scenario hides.
            scenario, split: names, for messages.
            spare: treat rows whose table has no value at all like those that lack a modality, instead of raising.

        Raises:
            UserError: rows are left with nothing.
        """
        mask = self._union(hidden)
        can_spare = self.unobservable() if spare else self.absent
        spared = mask.empty_rows() & can_spare.any(1) & ~hidden.empty_rows()
        if spared.any():
            log.info("%s, split %s: %d rows keep the only modality that they have", scenario, split, int(spared.sum()))
            mask = self._union(hidden.complete_in(spared))
        if (empty := mask.empty_rows()).any():
            raise UserError(
                f"missing scenario '{scenario}' leaves nothing in {int(empty.sum())} rows of split '{split}' (the "
                f"first is {int(empty.argmax())}): their table has no value at all; leave the scenario out, remove "
                "these rows from the source, or set dataset.natural_missing=fill"
            )
        return mask

    def _union(self, hidden: SplitMask) -> SplitMask:
        missing, cells = hidden.missing | self.absent, {}
        for name in {**self.cells, **hidden.cells}:
            column = self.names.index(name)
            like = hidden.cells.get(name, self.cells.get(name))
            hidden_cells = hidden.cells.get(name, _rows_like(hidden.missing[:, column], like))
            gaps = self.cells.get(name, np.zeros(1, dtype=bool))
            cells[name] = hidden_cells | _rows_like(self.absent[:, column], like) | gaps
            missing[:, column] = cells[name].reshape(len(missing), -1).any(1)
        return SplitMask(self.names, missing, cells)

"""Contiguous parts of a series missing, or of the columns of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.missingness.base import Rows, ScenarioWithRate, modality_name
from datasets.missingness.mar import to_modality


@dataclass(frozen=True)
class Segments(ScenarioWithRate):
    """Each row misses one contiguous part of a modality, at a random position.

    The part has round(rate T) of the T time steps of a series, with all channels, or of the T columns of a table in
    their order. All positions at which it fits are equally likely. The rate is the fraction of the cells of the
    modality. Masks of higher rates need not contain those of lower rates.

    Only kinds of modality that can be partly missing in a batch (``Batch.feature_missing``) are possible: tables and
    series. Of images, sounds and videos the noise operators ``occlusion`` and ``time_mask`` blank a part instead.

    Attributes:
        column: of the modality.
    """

    column: int
    kind = "segments"
    examples = {
        "segments_1_0.3": "one contiguous part of series 1 per row, 30 % of its time steps, or 30 % of the columns of "
        "table 1"
    }
    keys = ("modality", "rate")
    cell_kinds = ("table", "series")

    @classmethod
    def parse(cls, text: str) -> Segments | None:
        if not text.startswith("segments_"):
            return None
        column, _, rate = text.removeprefix("segments_").rpartition("_")
        return cls.from_mapping({"modality": column, "rate": rate})

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Segments:
        return cls(cls.to_rate(values.get("rate")), to_modality(values.get("modality"), next(iter(cls.examples))))

    @property
    def pattern_name(self) -> str:
        return f"segments_{self.column}_{self.rate_text}"

    @property
    def named_modalities(self) -> tuple[int, ...]:
        return (self.column,)

    @property
    def hides_cells(self) -> bool:
        return True

    @property
    def protocol(self) -> str:
        return "one segment per row"

    def family(self, modalities: Sequence[str] = ()) -> str:
        return f"part of {modality_name(self.column, modalities)} missing"

    def pattern_caption(self, modalities: Sequence[str] = ()) -> str:
        return f"{self.percent} of {modality_name(self.column, modalities)} in one piece"

    def generate(self, rows: Rows) -> np.ndarray:
        shape = rows.shape or (rows.columns,)
        length = round(self.rate * shape[0])
        starts = np.random.default_rng(rows.seed).integers(shape[0] - length + 1, size=rows.n)
        steps = np.arange(shape[0]) - starts[:, None]
        is_hidden = (steps >= 0) & (steps < length)  # (n, T)
        return np.broadcast_to(is_hidden.reshape(*is_hidden.shape, *[1] * (len(shape) - 1)), (rows.n, *shape)).copy()

"""Contiguous parts of a modality missing: time steps, frames, columns of a table, a block of an image."""

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

    The part has round(rate T) of the T time steps of a series (with all channels) or spectrogram (with all
    frequencies), of the T frames that a model gets of a clip, or of the T columns of a table in their order. Of an
    image H x W it is a block of round(H √rate) rows, and as many columns as come closest to the rate. All positions at
    which the part fits are equally likely. The rate is the fraction of the cells, pixels, or time of the modality.
    Masks of higher rates need not contain those of lower rates.

    Unlike content with noise (``occlusion``, ``time_mask``), the part is known to be missing
    (``Batch.feature_missing``): imputers fill it in. Texts are refused: they differ in their number of tokens, and what
    follows the last one is padding, so that a share of the positions is no share of the text.

    Attributes:
        column: of the modality.
    """

    column: int
    kind = "segments"
    examples = {
        "segments_1_0.3": "one contiguous part of modality 1 per row: 30 % of the time steps of a series, sound or "
        "clip, of the columns of a table, or a block with 30 % of the pixels of an image"
    }
    keys = ("modality", "rate")
    cell_kinds = ("table", "series", "image", "audio", "video")

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
        assert rows.modality is not None, "the data module passes the modality"
        rng, shape = np.random.default_rng(rows.seed), rows.modality.shape
        if rows.modality.kind == "image":
            height, width = shape[1:]
            block = round(height * self.rate**0.5)
            columns = min(width, round(self.rate * height * width / block)) if block else 0
            is_row = _segments(rng, rows.n, height, block)
            return (is_row[:, :, None] & _segments(rng, rows.n, width, columns)[:, None, :])[:, None]
        axis = len(shape) - 2 + rows.modality.scale.time if rows.modality.kind == "audio" else 0
        steps = shape[axis]
        is_hidden = _segments(rng, rows.n, steps, round(self.rate * steps))
        one_axis = is_hidden.reshape(rows.n, *(steps if i == axis else 1 for i in range(len(shape))))
        # Cells of tables and series are listed one by one, since a source may lack any of them.
        is_listed = rows.modality.kind in ("table", "series")
        return np.broadcast_to(one_axis, (rows.n, *shape)).copy() if is_listed else one_axis


def _segments(rng: np.random.Generator, n: int, steps: int, length: int) -> np.ndarray:
    """(n, steps) bool: a run of ``length`` steps per row, at a random position."""
    starts = rng.integers(steps - length + 1, size=n)
    offsets = np.arange(steps) - starts[:, None]
    return (offsets >= 0) & (offsets < length)

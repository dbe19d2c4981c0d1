"""Complete data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.missingness.base import Rows, Scenario


@dataclass(frozen=True)
class Complete(Scenario):
    """Nothing is missing but what the source never had."""

    kind = "none"
    examples = {"none": "nothing"}
    hides = False
    pattern_name = "none"

    @classmethod
    def parse(cls, text: str) -> Complete | None:
        return cls() if text in ("none", "whole_none") else None

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Complete:
        return cls()

    @property
    def dymo_name(self) -> str:
        return "whole_none"

    def pattern_caption(self, modalities: Sequence[str] = ()) -> str:
        return "complete"

    def generate(self, rows: Rows) -> np.ndarray:
        return np.zeros((rows.n, rows.columns), dtype=bool)

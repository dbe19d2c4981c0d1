"""Masks from files of the original works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.missingness.base import Rows, Scenario
from datasets.missingness.image_text import mask_of_codes
from datasets.missingness.mask_files import read_dymo_csv, read_map_pt, read_tip_npy
from utils.errors import UserError


@dataclass(frozen=True)
class File(Scenario):
    """The mask is read from a file.

    Attributes:
        path: ``.npy`` (cells, TIP and DyMo), ``.pt`` (MAP), else the CSV format of DyMo.
    """

    path: str
    kind = "file"
    examples = {
        "file:masks.csv": "the modalities that a mask file of the DyMo repository marks: no header, one row per "
        "sample, one `True` (missing) or `False` per modality",
        "file:masks.npy": "the table cells that a mask file of TIP or DyMo marks: booleans of shape (N, columns), "
        "True = missing",
        "file:table.pt": "the text or image that a file of MAP marks with one number per row: 0 complete, 1 text "
        "missing, 2 image missing",
    }
    keys = ("path",)

    def __post_init__(self) -> None:
        if not self.path:
            raise UserError("no file is named: write file:masks.csv")

    @classmethod
    def parse(cls, text: str) -> File | None:
        return cls(text.removeprefix("file:")) if text.startswith("file:") else None

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> File:
        return cls(str(values.get("path", "")))

    @property
    def pattern_name(self) -> str:
        return f"file:{Path(self.path).name}"

    def pattern_caption(self, modalities: Sequence[str] = ()) -> str:
        return f"mask file {Path(self.path).name}"

    @property
    def hides_cells(self) -> bool:
        return self.path.endswith(".npy")

    @property
    def files(self) -> tuple[Path, ...]:
        return (Path(self.path),)

    def is_same(self, other: Scenario) -> bool:
        """Whether both read the same file, however its path is spelled, and have the same noise."""
        same_file = isinstance(other, File) and Path(self.path).resolve() == Path(other.path).resolve()
        return same_file and self.noise == other.noise

    def generate(self, rows: Rows) -> np.ndarray:
        path = Path(self.path)
        if self.hides_cells:
            return read_tip_npy(path, rows.n, rows.columns)
        if self.path.endswith(".pt"):
            return mask_of_codes(read_map_pt(path, rows.n), rows.kinds, self.name)
        return read_dymo_csv(path, rows.n, rows.columns)

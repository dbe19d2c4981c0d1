"""The rows of ``gpu.csv``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch

from utils.files import replacing
from utils.run_directory import environment

PACKAGES = ("torch", "pytorch-lightning", "numpy")
COLUMNS = ("part", "what", "value", "unit", "ratio", "detail", "device", "versions", "commit")


class Rows:
    """Measurements, each with device, versions and commit.

    Args:
        path: of the CSV file.
        is_dry: nothing runs on a GPU, if there is one.

    Attributes:
        part: name of the part that adds rows.
    """

    def __init__(self, path: Path, is_dry: bool) -> None:
        self.path, self.part = path, ""
        about = environment()
        cuda = torch.version.cuda if torch.cuda.is_available() else None
        versions = [f"python {about['python']}", *(f"{name} {about['packages'][name]}" for name in PACKAGES)]
        self.about = {
            "device": f"dry run, {torch.get_num_threads()} threads" if is_dry else about["device"],
            "versions": ", ".join([*versions, *([f"cuda {cuda}"] if cuda else [])]),
            "commit": about["git_commit"],
        }
        self._rows: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self._rows, columns=list(COLUMNS))

    def add(self, what: str, value: float, unit: str, ratio: float | None = None, detail: str = "") -> None:
        """Add a row.

        Args:
            what: was measured.
            ratio: how many times as fast as, or as much as, what the detail names.
        """
        row = {"part": self.part, "what": what, "value": value, "unit": unit, "ratio": ratio, "detail": detail}
        self._rows.append(row | self.about)

    def write(self) -> None:
        with replacing(self.path) as file:
            self.frame.to_csv(file, index=False)

"""Six views of handwritten digits: vectors of 216, 76, 64, 6, 240 and 47 features of the same 2,000 images.

UCI "Multiple Features" (https://archive.ics.uci.edu/dataset/72/multiple+features, CC BY 4.0), 200 digits of each
class. It reads the files of the download (``mfeat-fac`` ..., numbers between blanks, class by class) or tables with a
header and the class in the last column (``mfeat-fac.csv`` ...). The six files list the digits in the same
order. A view is a table of continuous columns, standardised with the training split.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from datasets.batch import Modality
from datasets.readers.mnist import CLASSES
from datasets.scaling import is_constant, mean_and_deviation
from datasets.source import Arrays, Source, SourcedDataModule, file_stats, sha256
from datasets.splits import stratified_split
from utils.errors import UserError, first_line

# View -> number of features: profile correlations, Fourier coefficients, Karhunen-Loeve coefficients, morphology, pixel
# averages, Zernike moments.
VIEWS = {"fac": 216, "fou": 76, "kar": 64, "mor": 6, "pix": 240, "zer": 47}
SHARES = {"train": 0.6, "val": 0.1, "test": 0.3}
RECIPE_VERSION = 1


def read_view(path: Path, features: int) -> tuple[np.ndarray, np.ndarray]:
    """Values (N, ``features``) float32 and classes (N,) int64 of one file.

    Raises:
        UserError: the file is unreadable, or has another number of columns, a value that is no finite number, or a
            class outside 0 to 9.
    """
    has_header = path.suffix == ".csv"
    try:
        frame = pd.read_csv(path) if has_header else pd.read_csv(path, sep=r"\s+", header=None)
        values = frame.to_numpy(dtype=np.float64)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as numbers ({first_line(error)}): download it again") from None
    if values.shape[1] != features + has_header:
        raise UserError(f"{path} has {values.shape[1]} columns, expected {features + has_header}: download it again")
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0, 0])
        raise UserError(f"{path} holds no number in row {row + 1}: download it again")
    if has_header:
        labels, values = values[:, -1], values[:, :-1]
        bad = np.flatnonzero(~np.isin(labels, np.arange(CLASSES)))
        if len(bad):
            raise UserError(f"{path} holds the class {labels[bad[0]]:g} in row {bad[0] + 1}, expected 0 to 9")
    elif len(values) % CLASSES or not len(values):
        raise UserError(f"{path} has {len(values)} rows, not as many of each of {CLASSES} classes: download it again")
    else:
        labels = np.repeat(np.arange(CLASSES), len(values) // CLASSES)
    return values.astype(np.float32), labels.astype(np.int64)


class MultiFeatureDigits(SourcedDataModule):
    """Six vectors per digit: 1,200 / 200 / 600 digits.

    Args:
        store: folder of the packed store.
        root: folder with the six files.
        split_seed: of the division of the digits, stratified by class.
        demo: ``root`` holds demo data, whose counts differ from the published ones.
        **kwargs: see :class:`datasets.base.MultimodalDataModule`.
    """

    paths = ("root",)
    name = "MultiFeatureDigits"
    modalities = [
        Modality(view, "table", (n,), columns=tuple(f"{view}{i}" for i in range(n))) for view, n in VIEWS.items()
    ]
    class_names = [str(digit) for digit in range(CLASSES)]
    task = "multiclass"

    def __init__(
        self, *, store: str, root: str | None = None, split_seed: int = 2025, demo: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(store, **kwargs)
        self.root = None if root is None else Path(root)
        self.split_seed, self.demo = split_seed, demo
        self._rescaled = False  # whether READING_RULES 1 divided a constant column by a rounding error

    def find_source(self) -> Source:
        """
        Raises:
            UserError: a file is absent; names it.
        """
        root = self.root
        files = {}
        for view in VIEWS:
            candidates = [] if root is None else [root / f"mfeat-{view}", root / f"mfeat-{view}.csv"]
            existing = [file for file in candidates if file.is_file()]
            if not existing:
                file = candidates[0] if candidates else f"mfeat-{view}: dataset.root is null"
                raise UserError(
                    f"no {file} (.csv or without suffix): set dataset.root to the folder of UCI's Multiple Features, "
                    "or (to try it) dataset.demo=true"
                )
            files[view] = existing[0]
        about = {"split_seed": self.split_seed, "recipe_version": RECIPE_VERSION}
        return Source("folder", sha256([about, file_stats(files)]), about, lambda: self._read(files, about))

    def pack(self, source: Source) -> tuple[Mapping[str, Mapping[str, Any]], dict[str, Any]]:
        splits, about = super().pack(source)
        return splits, about | {"reading_changes": ["constant columns"] if self._rescaled else []}

    def may_read_differently(self) -> bool:
        """Whether a column is constant in training and not 0, as columns that were divided by a rounding error are."""
        training = [self.store.split("train").read(view).numpy() for view in VIEWS]
        return any(bool((is_constant(values) & (values[0] != 0)).any()) for values in training)

    def _read(self, files: dict[str, Path], about: dict[str, Any]) -> dict[str, Arrays]:
        """Read the splits; adds zero and unit of every column to ``about``."""
        content = {view: read_view(file, VIEWS[view]) for view, file in files.items()}
        first = next(iter(VIEWS))
        target = content[first][1]
        for view, (_, labels) in content.items():
            if len(labels) != len(target):
                raise UserError(f"{files[view]} has {len(labels)} rows, {files[first]} {len(target)}: download both")
            if (labels != target).any():
                row = int(np.argmax(labels != target))
                raise UserError(f"{files[view]} and {files[first]} differ in the class of row {row + 1}: download both")
        sizes = [round(share * len(target)) for share in SHARES.values()]
        parts = dict(zip(SHARES, stratified_split(target, tuple(sizes), self.split_seed)))
        splits: dict[str, Arrays] = {split: {"target": target[rows]} for split, rows in parts.items()}
        scaling: dict[str, list[float]] = {}
        for view, (values, _) in content.items():
            training = values[parts["train"]]
            mean, deviation = mean_and_deviation(training)
            scaled = (values - mean) / deviation
            self._rescaled |= bool((is_constant(training) & (training.std(0) > 0)).any())
            for split, rows in parts.items():
                splits[split][view] = scaled[rows].astype(np.float32)
            pairs = zip(mean.tolist(), deviation.tolist())
            scaling |= {f"{view}{i}": list(pair) for i, pair in enumerate(pairs)}
        about["scaling"] = scaling
        return splits

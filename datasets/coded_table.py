"""Tables that are ready to be packed: codes and numbers, labels, image files, and the checks that all sources share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError

log = logging.getLogger(__name__)


@dataclass
class Coded:
    """One split.

    Attributes:
        table: (N, F) float32, codes first.
        target: (N,) int64, or (N, C) float32 with -1 for 'no label'.
        images: N files, None for a row without an image.
        names: (N,) of the rows in the source.
        gaps: (N, F) bool, cells without a value in the source; None = no gaps.
    """

    table: np.ndarray
    target: np.ndarray
    images: Sequence[Path | None]
    names: np.ndarray
    gaps: np.ndarray | None = None

    def keep(self, rows: np.ndarray) -> Coded:
        """Only the given rows."""
        gaps = None if self.gaps is None else self.gaps[rows]
        images = [self.images[i] for i in rows]
        return Coded(self.table[rows], self.target[rows], images, self.names[rows], gaps)


@dataclass
class Content:
    """A complete data set; ``about`` holds plain values for ``meta.json``."""

    columns: list[str]
    cardinalities: list[int]
    class_names: list[str]
    splits: dict[str, Coded]
    about: dict[str, Any] = field(default_factory=dict)


def check_content(content: Content) -> None:
    """Check that rows pair, codes are within their cardinality, and all classes are in training.

    Raises:
        UserError: names split, column and count.
    """
    if "train" in content.splits:
        warn_of_constant_columns(content.columns, content.splits["train"].table)
    for split, coded in content.splits.items():
        _check_table(split, coded, content)
        if coded.target.ndim == 1:
            check_classes_of_rows(split, coded.target, content.class_names)
    if "train" not in content.splits:
        raise UserError(f"there is no training split (only {', '.join(content.splits)}): nothing can be learned")


def warn_of_constant_columns(names: Sequence[str], table: np.ndarray) -> None:
    """
    Args:
        names: of the F columns.
        table: (N, F) of the training rows.
    """
    constant = [name for name, values in zip(names, table.T) if len(values) and (values == values[0]).all()]
    if constant:
        log.warning(
            "%d of %d columns of the table are constant in training (%s%s): they carry no information",
            len(constant),
            len(names),
            ", ".join(constant[:3]),
            ", ..." if len(constant) > 3 else "",
        )


def _check_table(split: str, coded: Coded, content: Content) -> None:
    n = {"table": len(coded.table), "labels": len(coded.target), "images": len(coded.images)}
    if len(set(n.values())) > 1:
        raise UserError(
            f"split '{split}': {n['table']} table rows, {n['labels']} labels and {n['images']} images do not pair: "
            "give files of the same rows"
        )
    if coded.table.shape[1:] != (len(content.columns),):
        raise UserError(
            f"split '{split}': the table has {coded.table.shape[1]} columns, expected {len(content.columns)}"
        )
    for j, levels in enumerate(content.cardinalities):
        codes = coded.table[:, j]
        bad = (codes != np.floor(codes)) | (codes < 0) | (codes >= levels)
        if bad.any():
            raise UserError(
                f"split '{split}', column '{content.columns[j]}': {int(bad.sum())} values are no code from 0 to "
                f"{levels - 1} (row {int(bad.argmax())}: {codes[bad.argmax()]:g}): the file of cardinalities is "
                "not that of this table, or its columns are in another order"
            )
    if not np.isfinite(coded.table).all():
        row, column = np.argwhere(~np.isfinite(coded.table))[0]
        raise UserError(
            f"split '{split}', column '{content.columns[column]}': {int((~np.isfinite(coded.table)).sum())} cells "
            f"of the table are no finite number (the first in row {row}): impute or remove them"
        )


def check_classes_of_rows(split: str, target: np.ndarray, class_names: Sequence[str]) -> None:
    """Check that labels are classes, and that every class is in training; in other splits, absent classes are logged.

    Args:
        target: (N,) class numbers.

    Raises:
        UserError: names the class or the first row.
    """
    outside = (target < 0) | (target >= len(class_names))
    if outside.any():
        raise UserError(
            f"split '{split}': {int(outside.sum())} labels are outside 0 to {len(class_names) - 1} "
            f"(row {int(outside.argmax())}: {target[outside.argmax()]}): check dataset.num_classes and the file of "
            "labels"
        )
    absent = sorted(set(range(len(class_names))) - set(target.tolist()))
    if absent and split == "train":
        names = ", ".join(class_names[c] for c in absent[:5])
        raise UserError(
            f"no training row of {len(absent)} of {len(class_names)} classes ({names}"
            f"{', ...' if len(absent) > 5 else ''}): they cannot be learned, remove them from the classes or "
            "divide the rows anew"
        )
    if absent:
        log.warning("split '%s' has no row of %d classes: scores of this split leave them out", split, len(absent))

"""Tables that a data set codes itself, and the checks that all tables share."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.content import Content, TableRows, rows_of_splits
from utils.errors import UserError

log = logging.getLogger(__name__)


@dataclass
class Coded:
    """One split.

    Attributes:
        table: (N, F) float32, codes first.
        target: (N,) int64, or (N, C) float32 with -1 for 'no label'.
        images: N files.
        names: (N,) of the rows in the source.
    """

    table: np.ndarray
    target: np.ndarray
    images: Sequence[Path]
    names: np.ndarray


def content_of_coded(
    modalities: tuple[str, str],
    columns: Sequence[str],
    cardinalities: Sequence[int],
    class_names: list[str],
    splits: Mapping[str, Coded],
    about: dict[str, Any],
    fitted: Mapping[str, Any] | None = None,
    rescaled: Sequence[str] = (),
) -> Content:
    """Content of an image and a table from their splits.

    Args:
        modalities: names of image and table.
        about: plain values for ``meta.json``.
        fitted, rescaled: ``about`` and ``rescaled`` of :class:`TableRows`.

    Raises:
        UserError: the rows of a split do not pair, its table has other columns, or there are no training rows.
    """
    for split, coded in splits.items():
        n = {"table": len(coded.table), "labels": len(coded.target), "images": len(coded.images)}
        if len(set(n.values())) > 1:
            raise UserError(
                f"split '{split}': {n['table']} table rows, {n['labels']} labels and {n['images']} images do not pair: "
                "give files of the same rows"
            )
        if coded.table.shape[1:] != (len(columns),):
            raise UserError(f"split '{split}': the table has {coded.table.shape[1]} columns, expected {len(columns)}")
    if "train" not in splits:
        raise UserError(f"there is no training split (only {', '.join(splits)}): nothing can be learned")
    parts = list(splits.values())
    table = TableRows(
        columns=list(columns),
        cardinalities=list(cardinalities),
        values=np.concatenate([coded.table for coded in parts]).astype(np.float32),
        about=dict(fitted or {}),
        rescaled=list(rescaled),
    )
    image_name, table_name = modalities
    return Content(
        class_names=class_names,
        target=np.concatenate([coded.target for coded in parts]),
        names=[str(name) for coded in parts for name in coded.names],
        splits=rows_of_splits({split: len(coded.target) for split, coded in splits.items()}),
        inputs={image_name: [path for coded in parts for path in coded.images], table_name: table},
        about=about,
    )


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


def check_table(split: str, values: np.ndarray, columns: Sequence[str], cardinalities: Sequence[int]) -> None:
    """Check that codes are within their cardinality, and numbers finite.

    Args:
        values: (N, F), codes first.

    Raises:
        UserError: names split, column and count.
    """
    for j, levels in enumerate(cardinalities):
        codes = values[:, j]
        bad = (codes != np.floor(codes)) | (codes < 0) | (codes >= levels)
        if bad.any():
            raise UserError(
                f"split '{split}', column '{columns[j]}': {int(bad.sum())} values are no code from 0 to "
                f"{levels - 1} (row {int(bad.argmax())}: {codes[bad.argmax()]:g}): the file of cardinalities is "
                "not that of this table, or its columns are in another order"
            )
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise UserError(
            f"split '{split}', column '{columns[column]}': {int((~np.isfinite(values)).sum())} cells "
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

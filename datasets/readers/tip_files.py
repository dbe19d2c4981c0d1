"""Reader of the files that TIP prepares: one table, labels and paths per split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from datasets.coded_table import Coded
from utils.errors import UserError, first_line


def read_list(path: Path) -> list[Any]:
    """Read a ``.pt`` file with a list of numbers or strings, without executing anything in it.

    Raises:
        UserError: the file is absent or damaged, or holds something else.
    """
    import torch

    if not path.is_file():
        raise UserError(f"there is no {path}: copy the folder of prepared files completely")
    scalar = np.float64(0).__reduce__()[0]  # NumPy numbers in a list are stored with it
    safe: list[Any] = [
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),
        np.dtype,
        *(type(np.dtype(t)) for t in ("i4", "i8", "f8")),
    ]
    try:
        with torch.serialization.safe_globals(safe):
            content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a file can be broken in any way
        raise UserError(f"{path} cannot be read ({first_line(error)}): copy or write it again") from None
    if isinstance(content, torch.Tensor | np.ndarray):
        content = content.tolist()
    if not isinstance(content, list | tuple):
        raise UserError(f"{path} holds no list: give the file of the prepared layout")
    return list(content)


def read_cardinalities(path: Path, columns: Sequence[str]) -> list[int]:
    """Read the levels of the leading categorical columns from TIP's list of lengths (1 = a continuous column).

    Raises:
        UserError: the list does not fit the columns.
    """
    lengths = read_list(path)
    if any(not isinstance(v, int | np.integer) or v < 1 for v in lengths):
        raise UserError(f"{path} does not hold whole numbers from 1 on: give the file of cardinalities")
    lengths = [int(v) for v in lengths]
    if len(lengths) != len(columns):
        raise UserError(
            f"{path} has {len(lengths)} cardinalities, the table has {len(columns)} columns: give the file of this one"
        )
    categorical = [v for v in lengths if v > 1]
    if lengths[: len(categorical)] != categorical:
        raise UserError(f"{path}: a categorical column follows a continuous one: give the 'reordered' files")
    return categorical


def read_prepared(
    table: Path,
    labels: Path,
    images: Path,
    columns: Sequence[str],
    anchor: str,
    root: Path,
) -> Coded:
    """Read one split in TIP's layout: numbers without a header, lists of labels and of image files.

    Args:
        columns: names of all columns.
        anchor: name of the folder in the stored paths below which they are the same on any machine.
        root: folder that contains ``anchor``, for stored paths that do not exist.

    Raises:
        UserError: names the file and the problem.
    """
    if not table.is_file():
        raise UserError(f"there is no {table}: copy the folder of prepared files completely")
    try:
        values = pd.read_csv(table, header=None).to_numpy()
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{table} cannot be read as CSV ({first_line(error)})") from None
    if values.shape[1] != len(columns):
        raise UserError(
            f"{table} has {values.shape[1]} columns, expected {len(columns)} ({', '.join(columns[:3])}, ...): give the "
            "'reordered' table without an index"
        )
    try:
        values = values.astype(np.float32)
    except ValueError as error:
        raise UserError(f"{table} holds a cell that is no number ({error}): it has no header and no text") from None
    target = np.array(read_list(labels))
    if target.ndim != 1 or not np.issubdtype(target.dtype, np.number) or (target != np.floor(target)).any():
        raise UserError(f"{labels} holds no list of class numbers: give the file of labels")
    paths = [str(p) for p in read_list(images)]
    stored = [Path(p).with_suffix(".npy") for p in paths]
    moved = [_moved(p, anchor, root) for p in stored]
    if paths and not moved[0].is_file() and moved[0].with_suffix(Path(paths[0]).suffix).is_file():
        moved = [p.with_suffix(Path(original).suffix) for p, original in zip(moved, paths)]
    names = np.array([_tail(Path(p), anchor) for p in paths])
    return Coded(values, target.astype(np.int64), moved, names)


def _tail(path: Path, anchor: str) -> str:
    """The part of a path below the folder ``anchor``, or its name without that folder."""
    parts = path.parts
    return str(Path(*parts[parts.index(anchor) + 1 :])) if anchor in parts else path.name


def _moved(path: Path, anchor: str, root: Path) -> Path:
    """``path``, or its place under ``root`` if it does not exist on this machine."""
    if anchor not in path.parts or path.is_file():
        return path
    return root / anchor / _tail(path, anchor)

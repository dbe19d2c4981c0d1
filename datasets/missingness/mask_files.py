"""Mask files of the original works: CSV of DyMo, NumPy arrays of TIP and DyMo, missing tables of MAP."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import load_arrays

_BOOLEANS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def check_exists(path: Path) -> None:
    """
    Raises:
        UserError: no such file.
    """
    if not path.is_file():
        raise UserError(f"mask file {path} does not exist: give an existing file after file:")


def read_dymo_csv(path: Path, n: int, m: int) -> np.ndarray:
    """A mask file of the original DyMo repository: no header, ``n`` rows of ``m`` booleans, True = missing.

    Raises:
        UserError: absent file, wrong shape, another word than a boolean, or a row with nothing present.
    """
    check_exists(path)
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise UserError(f"mask file {path} is no text: give a CSV file of True and False") from None
    if len(lines) != n:
        raise UserError(f"mask file {path} has {len(lines)} rows but the split has {n}: use the mask of this split")
    mask = np.zeros((n, m), dtype=bool)
    for row, line in enumerate(lines):
        cells = [cell.strip().lower() for cell in line.split(",")]
        if len(cells) != m:
            raise UserError(f"mask file {path}, row {row + 1}: {len(cells)} columns, the data set has {m} modalities")
        try:
            mask[row] = [_BOOLEANS[cell] for cell in cells]
        except KeyError as error:
            raise UserError(f"mask file {path}, row {row + 1}: {error} is not True or False (no header)") from None
    if (empty := mask.all(axis=1)).any():
        raise UserError(
            f"mask file {path}, row {int(empty.argmax()) + 1}: every modality is missing "
            f"({int(empty.sum())} such rows); at least one must be False"
        )
    return mask


def write_dymo_csv(path: Path, mask: np.ndarray) -> None:
    """Write a mask as the original DyMo repository stores it."""
    path.write_text("".join(",".join(str(bool(v)) for v in row) + "\n" for row in mask))


def read_tip_npy(path: Path, n: int, features: int) -> np.ndarray:
    """A mask file of TIP or DyMo: bool (n, features), True = missing.

    Raises:
        UserError: absent file, another type, or another shape.
    """
    check_exists(path)
    try:
        mask = load_arrays(path)
    except (OSError, ValueError):
        raise UserError(f"mask file {path} is no NumPy array: give a .npy file of booleans") from None
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or not np.isin(mask, (0, 1)).all():
        raise UserError(
            f"mask file {path} holds no matrix of booleans: True = missing, one row per sample, one column per cell"
        )
    if mask.shape != (n, features):
        raise UserError(
            f"mask file {path} has {mask.shape[0]} rows and {mask.shape[1]} columns, the split has {n} and the table "
            f"{features}: use the mask of this split and table"
        )
    return mask.astype(bool)


def read_map_pt(path: Path, n: int) -> np.ndarray:
    """A missing table of MAP, read without executing anything in it: (n,) int64 with 0, 1 and 2.

    Raises:
        UserError: absent file, other content, or another number of rows.
    """
    import torch

    check_exists(path)
    try:
        table = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file can be broken in any way
        raise UserError(
            f"mask file {path} cannot be read ({type(error).__name__}): give a missing table of MAP"
        ) from None
    if not isinstance(table, torch.Tensor) or table.ndim != 1 or not ((table == 0) | (table == 1) | (table == 2)).all():
        raise UserError(
            f"mask file {path} holds no missing table of MAP: a tensor of 0 (complete), 1 (text missing) and 2 (image "
            "missing), one per row"
        )
    if len(table) != n:
        raise UserError(f"mask file {path} has {len(table)} rows but the split has {n}: use the table of this split")
    return table.numpy().astype(np.int64)

"""From arrays and data frames of a user to the arrays of :class:`datasets.arrays.Arrays`, for training and new rows."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from datasets.readers.images import ImageReader
from datasets.readers.pictures import UNREADABLE
from utils.errors import UserError, first_line

log = logging.getLogger(__name__)
TABLE = "table"  # name of the table that the columns of a data frame are
CHANNELS = (1, 3)
RESERVED = ("target", "name")  # arrays of the file that are no inputs


@dataclass(frozen=True)
class ImageFiles:
    """Columns of a data frame that hold image paths.

    Attributes:
        columns: their names.
        folder: that the paths start from.
        side: of the images in pixels; files are resized to it.
    """

    columns: Sequence[str] = ()
    folder: Path = Path()
    side: int = 28

    def read(self, paths: pd.Series) -> dict[str, np.ndarray]:
        """Images (N, 3, side, side) uint8, and ``absent`` (N,): rows without a path.

        Raises:
            UserError: files that do not exist or cannot be read; names their number and the first.
        """
        reader = ImageReader(self.side)
        absent = (paths.isna() | (paths == "")).to_numpy(dtype=bool)
        content = np.zeros((len(paths), 3, self.side, self.side), dtype=np.uint8)
        problems = []
        for row in np.flatnonzero(~absent):
            try:
                content[row] = reader(self.folder / str(paths.iloc[row]))
            except (*UNREADABLE, OSError) as error:
                problems.append(f"{paths.iloc[row]} ({first_line(error)})")
        if problems:
            raise UserError(
                f"column '{paths.name}': {len(problems)} of {int((~absent).sum())} images cannot be read, the first is "
                f"{problems[0]}: correct the paths or image_folder, or set them to None (missing)"
            )
        return {"content": content, "absent": absent}


class ArrayRows(Mapping[str, Any]):
    """Inputs by name whose rows can be selected, as cross-validation does: ``ArrayRows(image=images, table=table)``.

    Args:
        inputs: arrays (N, ...), lists of N items, or data frames.

    Attributes:
        shape: (N,).
    """

    def __init__(self, **inputs: Any) -> None:
        self.inputs = inputs
        self.shape = (len(next(iter(inputs.values()))),)

    def __iter__(self) -> Iterator[str]:
        return iter(self.inputs)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, key: Any) -> Any:
        """An input by its name; or some rows of all inputs, by their numbers or a mask."""
        if isinstance(key, str):
            return self.inputs[key]
        rows = np.arange(self.shape[0])[key[0] if isinstance(key, tuple) else key]
        return ArrayRows(**{name: _take(value, rows) for name, value in self.inputs.items()})


def _take(value: Any, rows: np.ndarray) -> Any:
    if isinstance(value, pd.DataFrame | pd.Series):
        return value.iloc[rows]
    return value[rows] if isinstance(value, np.ndarray) else [value[i] for i in rows]


class ArrayInputs:
    """Inputs of a model, learned from training data.

    Attributes:
        specs: name -> ``dataset.inputs`` of :class:`datasets.arrays.Arrays`.
    """

    def __init__(self, x: Any, files: ImageFiles) -> None:
        """
        Args:
            x: a data frame, or a mapping name -> array (N, ...), list of N arrays or None, or data frame.
            files: image paths, of a data frame.

        Raises:
            UserError: an array that is neither a table nor images; all at once.
        """
        self.files = files
        self.specs: dict[str, dict[str, Any]] = {}
        parts = self._parts(x)
        if bad := [name for name in parts if not name.isidentifier() or name in RESERVED]:
            raise UserError(
                f"input '{bad[0]}': rename it, a name has letters, digits and underscores and is not "
                f"{' or '.join(RESERVED)}"
            )
        for name, value in parts.items():
            if isinstance(value, pd.DataFrame):
                numbers = [str(column) for column in value if is_number(value[column])]
                others = [str(column) for column in value if str(column) not in numbers]
                value.columns = value.columns.map(str)
                levels = {column: sorted(set(value[column].dropna().astype(str))) for column in others}
                for column, listed in levels.items():
                    if len(listed) > max(20, len(value) / 2):
                        log.warning(
                            "column '%s' has %d levels in %d rows: leave identifiers and free texts out, and name "
                            "columns of image paths in image_columns",
                            column,
                            len(listed),
                            len(value),
                        )
                self.specs[name] = {"kind": "table", "levels": levels, "numbers": numbers}
            else:
                self.specs[name] = {"kind": "image", "shape": list(value["content"].shape[1:])}

    def arrays(self, x: Any) -> dict[str, np.ndarray]:
        """Content as :class:`datasets.arrays.Arrays` takes it: ``name`` and, for images, ``<name>_absent``.

        Raises:
            UserError: inputs of other names, columns or shapes than in training, or of unequal lengths; all at once.
        """
        parts = self._parts(x)
        problems = []
        if unknown := [name for name in parts if name not in self.specs]:
            problems.append(f"unknown input '{unknown[0]}': the model takes {', '.join(self.specs)}")
        arrays: dict[str, np.ndarray] = {}
        for name, spec in self.specs.items():
            if (value := parts.get(name)) is None:
                continue
            if isinstance(value, pd.DataFrame) != (spec["kind"] == "table"):
                problems.append(f"input '{name}' was of kind {spec['kind']} in training: give the same")
            elif isinstance(value, pd.DataFrame):
                value.columns = value.columns.map(str)
                wanted = [*spec["levels"], *spec["numbers"]]
                if absent := [column for column in wanted if column not in value]:
                    problems.append(f"input '{name}' lacks column '{absent[0]}': add it, with NaN where it is missing")
                else:
                    arrays[name] = _codes_and_numbers(value, spec)
            elif list(value["content"].shape[1:]) != spec["shape"]:
                shape = value["content"].shape[1:]
                problems.append(
                    f"images '{name}' have the shape {shape}, in training {tuple(spec['shape'])}: resize them"
                )
            else:
                arrays |= {name: value["content"], f"{name}_absent": value["absent"]}
        lengths = {name: len(array) for name, array in arrays.items() if name in self.specs}
        if len(set(lengths.values())) > 1:
            problems.append(f"inputs differ in their number of rows ({lengths}): give as many of each")
        if not arrays and not problems:
            problems.append(f"no input: give at least one of {', '.join(self.specs)}")
        if problems:
            raise UserError("\n".join(problems))
        return arrays

    def _parts(self, x: Any) -> dict[str, Any]:
        """Name -> data frame of a table, or ``content`` and ``absent`` of images."""
        if isinstance(x, pd.DataFrame):
            columns = list(self.files.columns)
            if unknown := [column for column in columns if column not in x]:
                raise UserError(f"image_columns names '{unknown[0]}', the data frame has no such column: correct it")
            table = x.drop(columns=columns)
            images = {str(column): self.files.read(x[column]) for column in columns}
            return images | ({TABLE: table.reset_index(drop=True)} if table.shape[1] else {})
        return {str(name): _part(str(name), value) for name, value in x.items()}


def _part(name: str, value: Any) -> Any:
    """A table as a data frame, or images as ``content`` (N, C, H, W) and ``absent`` (N,)."""
    if isinstance(value, pd.DataFrame | pd.Series):
        return pd.DataFrame(value).reset_index(drop=True)
    array, absent = _stacked(name, value)
    if array.ndim <= 2:
        array = array.reshape(len(array), -1)
        frame = pd.DataFrame(array, columns=[f"{name}_{j}" for j in range(array.shape[1])])
        return frame.mask(np.broadcast_to(absent.reshape(len(array), -1), array.shape))
    if array.ndim == 3:
        array, absent = array[:, None], absent[:, None]
    elif array.ndim == 4 and array.shape[1] not in CHANNELS and array.shape[3] in CHANNELS:
        array, absent = array.transpose(0, 3, 1, 2), absent.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in CHANNELS:
        raise UserError(
            f"input '{name}' has the shape {array.shape}: give a table (N, F), or images (N, H, W), (N, C, H, W) or "
            "(N, H, W, C) of 1 or 3 channels"
        )
    is_absent = absent.reshape(len(array), -1).any(1)
    if array.dtype != np.uint8:
        array = array.astype(np.float32)
        is_absent |= np.isnan(array).reshape(len(array), -1).any(1)
        array = np.where(is_absent[:, None, None, None], 0, array)
        if len(array) and not (array.min() >= 0 and array.max() <= 1):
            raise UserError(
                f"images '{name}' have values from {array.min():g} to {array.max():g}: give uint8, or numbers in [0, 1]"
            )
    return {"content": array, "absent": is_absent}


def _stacked(name: str, value: Any) -> tuple[np.ndarray, np.ndarray]:
    """An array, and what is masked in it; a list may have None for rows without content."""
    if isinstance(value, np.ma.MaskedArray):
        return value.filled(0) if value.dtype != object else value.filled(np.nan), np.ma.getmaskarray(value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value, np.zeros(value.shape, dtype=bool)
    items = list(value)
    shapes = {np.shape(item) for item in items if item is not None}
    if len(shapes) != 1:
        raise UserError(f"input '{name}' has items of {len(shapes)} shapes: give arrays of one shape, or None")
    (shape,) = shapes
    if not shape:  # a column of cells
        return np.array(items, dtype=object), np.array([item is None for item in items])
    example = np.asarray(next(item for item in items if item is not None))
    array = np.stack([np.zeros_like(example) if item is None else np.asarray(item) for item in items])
    absent = np.array([item is None for item in items])
    return array, np.broadcast_to(absent.reshape(-1, *[1] * len(shape)), array.shape)


def is_number(column: pd.Series) -> bool:
    """Whether all cells of a column are numbers or missing; text that looks like a number is none."""
    if pd.api.types.is_numeric_dtype(column):
        return True
    if isinstance(column.dtype, pd.CategoricalDtype) or column.map(lambda cell: isinstance(cell, str)).any():
        return False
    return not pd.to_numeric(column, errors="coerce").isna().gt(column.isna()).any()


def _codes_and_numbers(frame: pd.DataFrame, spec: Mapping[str, Any]) -> np.ndarray:
    """(N, F) float64: codes of levels, then numbers; NaN where a cell is missing or of an unknown level."""
    columns = []
    for column, levels in spec["levels"].items():
        code_of = {level: float(code) for code, level in enumerate(levels)}
        is_given = frame[column].notna().to_numpy()
        codes = frame[column].astype(str).map(code_of).to_numpy(dtype=np.float64)
        codes = np.where(is_given, codes, np.nan)
        if unseen := int((np.isnan(codes) & is_given).sum()):
            log.warning("column '%s': %d cells are none of the levels of the training data: missing", column, unseen)
        columns.append(codes)
    for column in spec["numbers"]:
        numbers = pd.to_numeric(frame[column], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        if np.isinf(numbers).any():
            raise UserError(f"column '{column}' holds infinity: correct it, or set it to NaN (missing)")
        columns.append(numbers)
    return np.stack(columns, axis=1)

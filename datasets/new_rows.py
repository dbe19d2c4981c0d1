"""New rows in the form of a packed store: what predictions are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datasets.batch import Modality
from utils.errors import UserError, first_line
from utils.files import load_arrays


@dataclass
class NewRows:
    """Rows without a split, packed like those of a store.

    Attributes:
        names: N identifiers.
        arrays: modality name -> (N, ...) content; ``<modality>_absent`` (N,) bool where rows lack the modality;
            ``<table>_missing`` (N, F) bool where they lack cells, of a series (N, T, channels).
        target: (N,) class numbers or (N, C) labels, -1 = not known; None = no row has one.
        remarks: what was read otherwise than it is written, with counts.
    """

    names: list[str]
    arrays: dict[str, np.ndarray]
    target: np.ndarray | None = None
    remarks: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def observed(self, modalities: Sequence[Modality]) -> np.ndarray:
        """(N, M) bool: modalities of which something is observed."""
        seen: np.ndarray = np.ones((len(self), len(modalities)), dtype=bool)
        for i, m in enumerate(modalities):
            if (absent := self.arrays.get(f"{m.name}_absent")) is not None:
                seen[:, i] &= ~absent
            if (cells := self.arrays.get(f"{m.name}_missing")) is not None:
                seen[:, i] &= ~cells.reshape(len(self), -1).all(1)
        return seen

    def take(self, rows: np.ndarray) -> NewRows:
        """Some rows, by their numbers or a mask (N,)."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        target = None if self.target is None else self.target[rows]
        return NewRows([self.names[i] for i in rows], {k: v[rows] for k, v in self.arrays.items()}, target)


def rows_of_arrays(content: Mapping[str, np.ndarray], modalities: Sequence[Modality], where: str) -> NewRows:
    """Rows given as arrays, by modality.

    Args:
        content: modality name -> (N, ...) as the packed store has it, images also (N, C, H, W) uint8; a modality that
            is left out is missing in all rows. ``<modality>_absent``, ``<table>_missing``, ``target`` and ``name`` are
            optional. NaN anywhere in a row of a modality other than a table or series means that the row lacks it; in
            these it is a missing cell.
        where: the source, for messages.

    Raises:
        UserError: an array of unknown name, of another shape, or of another number of rows; all at once.
    """
    if problems := _array_problems(content, modalities, where):
        raise UserError("\n".join(problems))
    n = len(next(iter(content.values())))
    arrays: dict[str, np.ndarray] = {}
    for m in modalities:
        arrays |= _packed(content, m, n)
    target = content.get("target")
    stems = content.get("name", np.arange(1, n + 1))
    return NewRows([str(name) for name in stems], arrays, None if target is None else np.asarray(target))


def _array_problems(content: Mapping[str, np.ndarray], modalities: Sequence[Modality], where: str) -> list[str]:
    """Problems of the arrays of :func:`rows_of_arrays`."""
    names = [m.name for m in modalities]
    known = {*names, *(f"{n}_absent" for n in names), *(f"{n}_missing" for n in names), "target", "name"}
    problems = [
        f"{where} has an array '{key}': known are {', '.join(names)}, <modality>_absent, <table>_missing, target, name"
        for key in content
        if key not in known
    ]
    lengths = {key: len(value) for key, value in content.items() if key in known}
    if not problems and not any(name in content for name in names):
        problems.append(f"{where} has no array of a modality: give at least one of {', '.join(names)}")
    if len(set(lengths.values())) > 1:
        problems.append(
            f"{where} has arrays of {', '.join(f'{n} rows ({k})' for k, n in lengths.items())}: give as many of each"
        )
    for m in modalities:
        if m.name in content and content[m.name].shape[1:] != m.shape and m.kind != "text":
            problems.append(
                f"{where}: '{m.name}' has rows of shape {content[m.name].shape[1:]}, the model takes {m.shape}"
            )
        elif m.name in content and np.issubdtype(content[m.name].dtype, np.floating):
            is_infinite = np.isinf(content[m.name])
            if is_infinite.any():
                first = int(is_infinite.reshape(len(is_infinite), -1).any(1).argmax()) + 1
                problems.append(
                    f"{where}: '{m.name}' has {int(is_infinite.sum())} values that are infinite, the first in row "
                    f"{first}: correct them, NaN means missing"
                )
    return problems


def _packed(content: Mapping[str, np.ndarray], modality: Modality, n: int) -> dict[str, np.ndarray]:
    """Arrays of one modality as the packed store has them."""
    name = modality.name
    values = content.get(name)
    if values is None:
        return {name: np.zeros((n, *modality.shape), dtype=np.float32), f"{name}_absent": np.ones(n, dtype=bool)}
    absent = np.asarray(content.get(f"{name}_absent", np.zeros(n, dtype=bool)), dtype=bool)
    arrays: dict[str, np.ndarray] = {}
    if np.issubdtype(values.dtype, np.floating):
        unknown = np.isnan(values)
        if modality.kind in ("table", "series"):
            cells = unknown | np.asarray(content.get(f"{name}_missing", False), dtype=bool)
            absent = absent | cells.reshape(n, -1).all(1)
            arrays |= {f"{name}_missing": cells} if cells.any() else {}
        else:
            absent = absent | unknown.reshape(n, -1).any(1)
        values = np.where(unknown, 0, values).astype(np.float32)
    return arrays | {name: values} | ({f"{name}_absent": absent} if absent.any() else {})


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays of an ``.npz`` file; no pickles are read.

    Raises:
        UserError: it cannot be read.
    """
    try:
        arrays = load_arrays(path)
        if not isinstance(arrays, dict):
            raise ValueError("it is one array without a name")
        return arrays
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as .npz ({first_line(error)}): write it with numpy.savez") from None

"""Arrays as they are: images and tables from one ``.npz`` file, without any Python (docs/predictions.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.batch import Modality
from datasets.new_rows import NewRows, read_arrays, rows_of_arrays
from datasets.scaling import mean_and_deviation
from datasets.source import Arrays as SplitArrays
from datasets.source import Source, SourcedDataModule, check_classes, file_digest, sha256
from utils.errors import UserError

RECIPE_VERSION = 1


class Arrays(SourcedDataModule):
    """Images and tables of an ``.npz`` file, with a validation split drawn by class; there is no test split.

    The file holds an array per input and ``target`` (N,), class numbers. A table (N, F) has the codes of its levels
    first, then numbers, which are standardised with the training split; NaN is a missing cell. Images are (N, C, H, W)
    uint8, or floats in [0, 1]. ``<input>_absent`` (N,) bool marks rows without this input.

    Args:
        store: folder of the packed store.
        arrays: the file.
        inputs: name -> ``{kind: image, shape: [C, H, W]}`` or ``{kind: table, levels: {column: [level, ...]}, numbers:
            [column, ...]}``.
        classes: names, in the order of the class numbers.
        validation: share of the rows in the validation split.
        split_seed: of the draw.
        **kwargs: see :class:`datasets.base.MultimodalDataModule`.
    """

    paths = ("arrays",)
    name = "Arrays"

    def __init__(
        self,
        *,
        store: str,
        arrays: str | None,
        inputs: Mapping[str, Mapping[str, Any]],
        classes: Sequence[str] = (),
        validation: float = 0.1,
        split_seed: int = 2025,
        **kwargs: Any,
    ) -> None:
        self.inputs = {str(name): dict(spec) for name, spec in inputs.items()}
        self.modalities = [modality_of(name, spec) for name, spec in self.inputs.items()]
        columns = [column for m in self.modalities for column in m.columns]
        if len(set(columns)) < len(columns):
            raise UserError("dataset.inputs: two columns have the same name, rename one")
        self.class_names = [str(name) for name in classes]
        if not 0 <= validation < 1:
            raise UserError(f"dataset.validation={validation}: must be a share from 0 to below 1")
        super().__init__(store, **kwargs)
        self.arrays = None if arrays is None else Path(arrays)
        self.validation, self.split_seed = validation, split_seed

    def find_source(self) -> Source:
        """
        Raises:
            UserError: there is no such file.
        """
        if self.arrays is None or not self.arrays.is_file():
            raise UserError(f"dataset.arrays={self.arrays}: there is no such file, write it with numpy.savez")
        settings = [self.inputs, self.class_names, self.validation, self.split_seed, RECIPE_VERSION]
        signature = sha256([file_digest(self.arrays), settings])
        about = {"levels": {name: list(levels) for s in self.inputs.values() for name, levels in levels_of(s).items()}}
        return Source("arrays", signature, about, lambda: self._read(about))

    def _read(self, about: dict[str, Any]) -> dict[str, SplitArrays]:
        """Read the splits; adds zero and unit of every number to ``about``."""
        assert self.arrays is not None
        rows = rows_of_arrays(read_arrays(self.arrays), self.modalities, str(self.arrays))
        if rows.target is None:
            raise UserError(f"{self.arrays} has no array 'target': add the class number of every row")
        check_classes("train", rows.target, self.num_classes, self.arrays)
        parts = draw_validation(rows.target, self.validation, self.split_seed)
        about["scaling"] = self._fit_scaling(rows.take(parts["train"]))
        arrays = self._scaled(rows, about["scaling"]).arrays | {"target": rows.target.astype(np.int64)}
        return {split: {key: values[numbers] for key, values in arrays.items()} for split, numbers in parts.items()}

    def _fit_scaling(self, rows: NewRows) -> dict[str, list[float]]:
        """Column -> zero and unit: mean and deviation of its observed numbers."""
        scaling: dict[str, list[float]] = {}
        for m in self.modalities:
            for j in range(len(m.cardinalities), m.shape[0]) if m.kind == "table" else ():
                gaps = rows.arrays.get(f"{m.name}_missing", np.zeros((len(rows), m.shape[0]), dtype=bool))[:, j]
                values = rows.arrays[m.name][~gaps, j].astype(np.float64)
                mean, deviation = mean_and_deviation(values) if len(values) else (np.array(0.0), np.array(1.0))
                scaling[m.columns[j]] = [float(mean), float(deviation)]
        return scaling

    def _scaled(self, rows: NewRows, scaling: Mapping[str, Sequence[float]]) -> NewRows:
        """Rows with standardised numbers, 0 in missing cells."""
        arrays = dict(rows.arrays)
        for m in self.modalities:
            if m.kind != "table":
                continue
            units = [(0.0, 1.0)] * len(m.cardinalities) + [scaling[c] for c in m.columns[len(m.cardinalities) :]]
            zero, unit = np.array(units).T
            scaled = (arrays[m.name].astype(np.float64) - zero) / unit
            gaps = arrays.get(f"{m.name}_missing", np.zeros_like(scaled, dtype=bool))
            arrays[m.name] = np.where(gaps, 0, scaled).astype(np.float32)
        return NewRows(rows.names, arrays, rows.target, rows.remarks)

    def encode_arrays(self, content: Mapping[str, np.ndarray], where: str) -> NewRows:
        """New rows in the units of the file, see :func:`datasets.new_rows.rows_of_arrays`."""
        rows = rows_of_arrays(content, self.modalities, where)
        return self._scaled(rows, self.packed_meta()["source"]["scaling"])


def levels_of(spec: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
    """Levels of the categorical columns of an input."""
    return spec.get("levels") or {}


def modality_of(name: str, spec: Mapping[str, Any]) -> Modality:
    """
    Raises:
        UserError: an unknown kind, or neither a shape nor columns.
    """
    kind = spec.get("kind")
    if kind == "image" and len(spec.get("shape") or ()) == 3:
        return Modality(name, "image", tuple(int(n) for n in spec["shape"]))
    columns = (*map(str, levels_of(spec)), *map(str, spec.get("numbers") or ()))
    if kind != "table" or not columns:
        raise UserError(
            f"dataset.inputs.{name}={dict(spec)}: must be {{kind: image, shape: [C, H, W]}}, or {{kind: table}} with "
            "levels, numbers, or both"
        )
    cardinalities = tuple(len(levels) for levels in levels_of(spec).values())
    return Modality(name, "table", (len(columns),), cardinalities=cardinalities, columns=columns)


def draw_validation(target: np.ndarray, share: float, seed: int) -> dict[str, np.ndarray]:
    """Sorted rows of the splits ``train`` and ``val``, which has this share of every class, rounded.

    A class keeps a row for training. If no class can spare one for validation, the largest one does; if none has two
    rows, the training rows are the validation rows, too.

    Args:
        target: (N,) class numbers.
    """
    rng = np.random.default_rng(seed)
    counts = np.bincount(target)
    sizes = np.minimum(np.floor(share * counts + 0.5).astype(int), np.maximum(counts - 1, 0))
    if not sizes.any():
        sizes[counts.argmax()] = min(1, counts.max() - 1)
    parts = [rng.permutation(np.flatnonzero(target == c))[:size] for c, size in enumerate(sizes)]
    validation = np.sort(np.concatenate(parts))
    train = np.setdiff1d(np.arange(len(target)), validation)
    return {"train": train, "val": validation if len(validation) else train}

"""Series and vectors of a data set from one CSV file: one array file per row, in which numbers may be missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from datasets.batch import Modality
from datasets.loader import Transform
from datasets.modality_parts.base import About, Packed, positive
from datasets.modality_parts.files import (
    FilePart,
    Spec,
    chunks_of,
    fitted_normalisation,
    normalisation_problems,
)
from datasets.row_encoder import RowEncoder
from utils.files import load_arrays


def read_numbers(path: Path) -> np.ndarray:
    """The array of a ``.npy`` file, of an ``.npz`` file with one array, or of a ``.csv`` file with a header; NaN and
    empty cells are kept as NaN.

    Raises:
        ValueError: no numbers, infinite ones, or several arrays.
    """
    if path.suffix == ".csv":
        values = pd.read_csv(path).to_numpy(dtype=np.float64)
    else:
        content = load_arrays(path)
        if isinstance(content, dict):
            if len(content) != 1:
                raise ValueError(f"{len(content)} arrays, expected one")
            (content,) = content.values()
        values = np.asarray(content, dtype=np.float64)
    if np.isinf(values).any():
        raise ValueError("infinite numbers")
    return values


def with_gaps(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values with 0 in place of NaN, float32, and where these were."""
    missing = np.isnan(values)
    if missing.all():
        raise ValueError("no number in it")
    return np.where(missing, 0, values).astype(np.float32), missing


class SeriesPart(FilePart):
    """Time series of one array (time steps, channels) per row; NaN is a missing cell.

    Args:
        channels: of every series.
        length: time steps; of longer series the first are used, shorter ones lack their last time steps.
        normalisation: of each channel, see :class:`datasets.modality_parts.image.ImagePart`; fitted on the observed
            cells of the training series.
        **files: see :class:`FilePart`.
    """

    kind = modality_kind = "series"
    noun = "series"

    def __init__(
        self,
        name: str,
        keys: Mapping[str, str] | None = None,
        *,
        channels: int,
        length: int,
        normalisation: str | Mapping[str, Sequence[float]] = "train",
        **files: Any,
    ) -> None:
        super().__init__(name, keys, **files)
        self.channels, self.length, self.normalisation = channels, length, normalisation
        problems = self.file_problems() + positive("channels", channels) + positive("length", length)
        self.refuse(problems + normalisation_problems(normalisation, channels))

    def reading_settings(self) -> Any:
        return [self.channels, self.length, self.normalisation]

    @property
    def spec(self) -> Spec:
        shape = (self.length, self.channels)
        return {"": (shape, np.float32), "_missing": (shape, np.bool_)}

    def read(self, path: Path) -> Sequence[Any]:
        values = read_numbers(path)
        if values.ndim == 1:
            values = values[:, None]
        if values.ndim != 2 or values.shape[1] != self.channels:
            raise ValueError(f"shape {values.shape}, expected (time steps, {self.channels})")
        padded = np.full((self.length, self.channels), np.nan)
        used = values[: self.length]
        padded[: len(used)] = used
        return with_gaps(padded)

    def fit(self, items: Mapping[str, np.ndarray], train: np.ndarray) -> dict[str, Any]:
        return fitted_normalisation(self.normalisation, _observed(items, train), self.channels)

    def packed(
        self,
        decoded: Mapping[str, Path],
        opened: Mapping[str, np.ndarray],
        items: np.ndarray,
        absent: np.ndarray,
        about: dict[str, Any],
    ) -> Packed:
        has_gaps = any(chunk.any() for chunk in chunks_of(opened["_missing"], np.unique(items)))
        arrays = {"_missing": opened["_missing"][items]} if has_gaps else {}
        return Packed(arrays, absent, about, files={"": decoded[""]}, items=items)

    def modality(self, about: About) -> Modality:
        return Modality(self.name, "series", (self.length, self.channels))

    def input_settings(self, about: About) -> dict[str, Any]:
        return {"scaling": {key: list(about[key]) for key in ("mean", "deviation")}}

    def transform(self, about: About, train: bool) -> Transform:
        mean, deviation = torch.tensor(about["mean"]), torch.tensor(about["deviation"])

        def standardise(inputs: dict[str, Tensor], generator: torch.Generator | None) -> dict[str, Tensor]:
            x = inputs[self.name]
            return {**inputs, self.name: (x - mean.to(x)) / deviation.to(x)}

        return standardise

    def pixels(self, images: Tensor, about: About) -> Tensor:
        """Line plots (B, 3, H, W) of series (B, T, channels), all with one axis; NaN leaves a gap."""
        return torch.from_numpy(plots_of(images.detach().cpu().numpy())).to(images.device)


def plots_of(series: np.ndarray, limit: float = 4.0) -> np.ndarray:
    """Line plots (B, 3, 96, 160) float32 in [0, 1] of series (B, T, channels), from ``-limit`` to ``limit``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pictures = []
    for values in series:
        figure = Figure(figsize=(1.6, 0.96), dpi=100)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, max(len(values) - 1, 1)), ylim=(-limit, limit))
        axes.set_axis_off()
        axes.plot(values, linewidth=0.8)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pictures.append(np.asarray(canvas.buffer_rgba())[..., :3].transpose(2, 0, 1) / np.float32(255))
    return np.stack(pictures).astype(np.float32)


class VectorPart(FilePart):
    """Feature vectors, one array (features,) per row: a table of continuous columns, NaN is a missing cell.

    Args:
        features: of every vector.
        normalisation: of each feature, see :class:`datasets.modality_parts.image.ImagePart`.
        **files: see :class:`FilePart`.
    """

    kind, modality_kind = "vector", "table"
    noun = "vector"

    def __init__(
        self,
        name: str,
        keys: Mapping[str, str] | None = None,
        *,
        features: int,
        normalisation: str | Mapping[str, Sequence[float]] = "train",
        **files: Any,
    ) -> None:
        super().__init__(name, keys, **files)
        self.features, self.normalisation = features, normalisation
        problems = self.file_problems() + positive("features", features)
        self.refuse(problems + normalisation_problems(normalisation, features))

    def reading_settings(self) -> Any:
        return [self.features, self.normalisation]

    @property
    def spec(self) -> Spec:
        return {"": ((self.features,), np.float32), "_missing": ((self.features,), np.bool_)}

    def read(self, path: Path) -> Sequence[Any]:
        values = read_numbers(path).squeeze()
        if values.shape != (self.features,) and not (self.features == 1 and values.ndim == 0):
            raise ValueError(f"shape {values.shape}, expected ({self.features},)")
        return with_gaps(values.reshape(self.features))

    def fit(self, items: Mapping[str, np.ndarray], train: np.ndarray) -> dict[str, Any]:
        about = fitted_normalisation(self.normalisation, _observed(items, train), self.features)
        names = [f"{self.name}{i}" for i in range(self.features)]
        scaling = {name: list(pair) for name, pair in zip(names, zip(about["mean"], about["deviation"]))}
        return {**about, "scaling": scaling}

    def standardised(self, values: np.ndarray, missing: np.ndarray, about: About) -> np.ndarray:
        """Vectors (N, features) as z-scores, 0 in missing cells."""
        mean, deviation = (np.asarray(about[key]) for key in ("mean", "deviation"))
        return np.where(missing, 0, (values - mean) / deviation).astype(np.float32)

    def packed(
        self,
        decoded: Mapping[str, Path],
        opened: Mapping[str, np.ndarray],
        items: np.ndarray,
        absent: np.ndarray,
        about: dict[str, Any],
    ) -> Packed:
        missing = opened["_missing"][items]
        arrays = {"": self.standardised(opened[""][items], missing, about)}
        if missing[~absent].any():
            arrays["_missing"] = missing
        return Packed(arrays, absent, about)

    def modality(self, about: About) -> Modality:
        return Modality(self.name, "table", (self.features,), columns=tuple(about["scaling"]))

    def encode(self, encoder: RowEncoder, folder: Path, about: About) -> dict[str, np.ndarray]:
        arrays = super().encode(encoder, folder, about)
        missing = arrays[f"{self.name}_missing"]
        return arrays | {self.name: self.standardised(arrays[self.name], missing, about)}


def _observed(items: Mapping[str, np.ndarray], train: np.ndarray) -> Any:
    """Values of training items, NaN where they are missing, in chunks."""
    for values, missing in zip(chunks_of(items[""], train), chunks_of(items["_missing"], train)):
        yield np.where(missing, np.nan, values)

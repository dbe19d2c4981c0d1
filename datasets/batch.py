"""Modalities and batches, and how missing content is hidden.

Tensor legend used everywhere: ``B`` batch, ``M`` modalities, ``N`` tokens of one modality, ``P`` tokens of all,
``D`` width, ``C`` classes, ``S`` subsets. A mask is boolean and **True = missing**.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from datasets.scale import AS_IT_IS, Scale

Kind = Literal["image", "text", "table", "audio", "video", "series"]


@dataclass(frozen=True)
class Modality:
    """One input of a data set. Its position in the data set's list is its column in ``missing``.

    A series has the shape (T, channels), T time steps. Like a table, it may be partly missing.

    A text of characters has the shape (L, symbols): stored as uint8 codes (N, L), one-hot rows in a batch. A text of
    tokens has the shape (L,): stored as int32 ids (N, L), int64 in a batch, only padding is 0
    (``datasets/readers/tokens.py``).

    Attributes:
        cardinalities: levels of the leading, categorical columns of a table; the other columns are continuous.
        columns: names of the columns of a table.
        vocabulary: number of ids of a text of tokens.
        scale: meaning of the values, for noise.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    cardinalities: tuple[int, ...] = ()
    columns: tuple[str, ...] = ()
    vocabulary: int | None = None
    scale: Scale = AS_IT_IS


@dataclass
class Batch:
    """A mini-batch.

    Attributes:
        inputs: name -> float tensor (B, *modality.shape), int64 of a text of tokens. The content of a missing modality
            is arbitrary.
        missing: (B, M) bool, True = missing. A modality is also marked where only some of its cells are missing: a row
            with all modalities marked may still have observed cells.
        target: (B,) int64, or (B, C) float for multi-label tasks.
        index: (B,) int64, the row in the split's sorted order.
        feature_missing: table -> (B, F) bool, series -> (B, T, channels) bool, True = this cell is missing; of an
            image, sound or video a mask that broadcasts against its content, such as (B, 1, H, W). Applies where the
            modality is marked in ``missing``; without an entry, a marked modality misses all its cells.
        noise_level: (B, M) float, 1 = clean to 11 = destroyed (:mod:`datasets.noise`); None = all clean.
        complete: nothing is missing, known on the host (saves a device synchronisation).
        sources: (B, M) int64, the row from which each modality's content was taken, where pairs are drawn anew; None =
            ``index`` for all modalities.
        is_filler: the rows do not count: they are another process's, in a step for which this one has none left.
    """

    inputs: dict[str, Tensor]
    missing: Tensor
    target: Tensor
    index: Tensor
    feature_missing: dict[str, Tensor] = field(default_factory=dict)
    noise_level: Tensor | None = None
    complete: bool = False
    sources: Tensor | None = None
    is_filler: bool = False

    def __len__(self) -> int:
        return len(self.index)

    @property
    def counted(self) -> int:
        """Number of rows that count in losses and metrics."""
        return 0 if self.is_filler else len(self)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return Batch(
            {k: move(v) for k, v in self.inputs.items()},
            move(self.missing),
            move(self.target),
            move(self.index),
            {k: move(v) for k, v in self.feature_missing.items()},
            None if self.noise_level is None else move(self.noise_level),
            self.complete,
            None if self.sources is None else move(self.sources),
            self.is_filler,
        )

    def replace(self, **changes: Any) -> Batch:
        """A shallow copy with some fields replaced; new masks reset ``complete`` unless it is given."""
        if "missing" in changes or "feature_missing" in changes:
            changes.setdefault("complete", False)
        return replace(self, **changes)

    def observed(self) -> dict[str, Tensor]:
        """Inputs with every missing modality and cell overwritten by zeros (never multiplied: NaN * 0 is NaN)."""
        return hide(self.inputs, self.missing, self.feature_missing)


def rows_like(rows: Tensor, x: Tensor) -> Tensor:
    """A mask of rows (B,) as (B, 1, ...), broadcastable to ``x`` (B, ...)."""
    return rows.reshape(-1, *[1] * (x.ndim - 1))


def unobserved(batch: Batch, names: Sequence[str]) -> Tensor:
    """Modalities without observed content, (B, M) bool. A table with an observed cell is not among them.

    Args:
        names: of the M modalities, in the column order of ``batch.missing``.
    """
    absent = batch.missing.clone()
    for name, cells in batch.feature_missing.items():
        absent[:, names.index(name)] &= cells.flatten(1).all(1)
    return absent


def hide(
    inputs: Mapping[str, Tensor], missing: Tensor, feature_missing: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Overwrite missing content by zeros.

    Args:
        inputs: name -> (B, ...), in the column order of ``missing``.
        missing: (B, M) bool, True = missing.
        feature_missing: table name -> (B, F) bool, see :class:`Batch`.
    """
    hidden = {}
    for column, (name, x) in enumerate(inputs.items()):
        zero = torch.zeros((), dtype=x.dtype, device=x.device)
        hidden[name] = torch.where(missing_content(x, name, missing[:, column], feature_missing), zero, x)
    return hidden


def missing_content(
    x: Tensor, name: str, missing: Tensor, feature_missing: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Missing-content mask of one modality, broadcastable to its tensor.

    Args:
        x: (B, ...) of the modality ``name``.
        missing: (B,) bool, the column of this modality.
        feature_missing: name of a table or series -> cells, see :class:`Batch`.

    Returns:
        (B, 1, ...) bool, or the shape of the modality's entry in ``feature_missing``.
    """
    is_missing = rows_like(missing, x)
    if feature_missing and name in feature_missing:
        is_missing = is_missing & feature_missing[name]
    return is_missing

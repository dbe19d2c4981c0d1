"""Select and repeat rows of a batch."""

from __future__ import annotations

from torch import Tensor

from datasets.batch import Batch


def take_rows(batch: Batch, rows: Tensor) -> Batch:
    """Select rows of a batch by index or a mask (B,)."""
    return Batch(
        {name: x[rows] for name, x in batch.inputs.items()},
        batch.missing[rows],
        batch.target[rows],
        batch.index[rows],
        {name: cells[rows] for name, cells in batch.feature_missing.items()},
        None if batch.noise_level is None else batch.noise_level[rows],
        batch.complete,
        None if batch.sources is None else batch.sources[rows],
        batch.is_filler,
    )


def repeat_rows(batch: Batch, k: int) -> Batch:
    """Concatenate k copies of a batch, without ``inputs`` if k > 1."""
    if k == 1:
        return batch

    def copies(x: Tensor) -> Tensor:
        return x.repeat(k, *[1] * (x.ndim - 1))

    return Batch(
        {},
        copies(batch.missing),
        copies(batch.target),
        copies(batch.index),
        {name: copies(cells) for name, cells in batch.feature_missing.items()},
        None if batch.noise_level is None else copies(batch.noise_level),
        batch.complete,
        None if batch.sources is None else copies(batch.sources),
        batch.is_filler,
    )

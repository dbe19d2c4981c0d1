"""What every recovery method offers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from datasets.base import Batch, Modality


class Imputer:
    """Interface of a recovery method: fills what is missing, passes what is there through unchanged.

    ``needs_oracle`` marks methods that read the content of missing modalities; they are refused outside evaluation
    studies. ``recovers`` names the kinds of modality that a method can fill, None = all.
    """

    needs_oracle = False
    recovers: tuple[str, ...] | None = None

    def recoverable(self, modalities: Sequence[Modality]) -> list[str]:
        """Names of the modalities that may be missing."""
        return [m.name for m in modalities if self.recovers is None or m.kind in self.recovers]

    def impute(
        self,
        inputs: Mapping[str, Tensor],
        missing: Tensor,
        index: Tensor | None = None,
        feature_missing: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Completed inputs.

        Args:
            inputs: modality name -> (B, ...), in the column order of ``missing``; the content of missing rows is never
                read.
            missing: (B, M) bool, True = missing, any mix of patterns. A row without a False has some cells of a table.
            index: (B,) row numbers in the data set; methods that draw at random draw the same for the same row,
                whatever the batch. None = 0 .. B-1.
            feature_missing: table name -> (B, F) bool, the cells that are missing of a masked table; None, or no entry
                = all of them.

        Returns:
            name -> (B, ...): observed rows and cells are the given ones bit for bit, missing ones are recoveries.
        """
        raise AssertionError("a recovery method implements impute()")


class FittedImputer(Imputer):
    """A method that is fitted in one pass over the complete training batches instead of trained."""

    def fit(self, batches: Iterable[Batch]) -> None:
        raise AssertionError("a fitted recovery method implements fit()")

    def state_dict(self) -> dict[str, Tensor]:
        """What :meth:`fit` found."""
        raise AssertionError("a fitted recovery method implements state_dict()")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        Raises:
            ValueError: the state is that of something else; the message goes on from the name of its file.
        """
        raise AssertionError("a fitted recovery method implements load_state_dict()")


def recover(imputer: Imputer, batch: Batch) -> dict[str, Tensor]:
    """The inputs of a batch with everything filled that its masks hide; as they are where the loader knows of none."""
    if batch.complete:
        return batch.inputs
    if not batch.feature_missing:
        return imputer.impute(batch.inputs, batch.missing, batch.index)
    return imputer.impute(batch.inputs, batch.missing, batch.index, feature_missing=batch.feature_missing)


def merge(x: Tensor, missing: Tensor, recovered: Tensor) -> Tensor:
    """``recovered`` where ``missing``, ``x`` elsewhere; ``missing`` is (B,), or a mask that broadcasts against x."""
    return torch.where(missing.reshape(-1, *[1] * (x.ndim - 1)) if missing.ndim == 1 else missing, recovered, x)

"""What every recovery method offers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.batch import Batch, Modality, missing_content


class Imputer:
    """Interface of a recovery method: fills what is missing, passes what is there through unchanged.

    ``needs_oracle`` marks methods that read the content of missing modalities; they are refused outside evaluation
    studies. ``recovers`` names the kinds of modality that a method can fill, None = all; ``reads_others`` says that it
    fills them only in rows that have all others. ``needs_networks`` marks methods with a network for each modality.
    """

    needs_oracle = False
    recovers: tuple[str, ...] | None = None
    reads_others = False
    needs_networks = False

    @classmethod
    def fits(cls, kinds: Sequence[str]) -> bool:
        """Whether the method is made for a data set with modalities of these kinds."""
        return True

    def recoverable(self, modalities: Sequence[Modality]) -> list[str]:
        """Names of the modalities that may be missing."""
        return [m.name for m in modalities if self.recovers is None or m.kind in self.recovers]

    def unrecoverable(self, modalities: Sequence[Modality], missing: Tensor) -> Tensor | None:
        """What stays missing behind this method.

        Args:
            modalities: of the data set, in the column order of ``missing``.
            missing: (B, M) bool, True = missing.

        Returns:
            (B, M) bool, True = missing and not recoverable in this row; None where the method can fill everything.
        """
        names = self.recoverable(modalities)
        if len(names) == len(modalities):
            return None
        is_fixed = torch.tensor([m.name not in names for m in modalities], device=missing.device)
        unrecoverable = missing & is_fixed
        return unrecoverable | (missing & unrecoverable.any(1, keepdim=True)) if self.reads_others else unrecoverable

    def check_training_rows(self, missing: np.ndarray) -> None:
        """Check that training rows (N, M), True = missing, leave something to learn from.

        Raises:
            UserError: they do not.
        """

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


def recover_possible(
    imputer: Imputer, modalities: Sequence[Modality], batch: Batch
) -> tuple[dict[str, Tensor], Tensor | None]:
    """:func:`recover`, except that what the method cannot recover in a row stays missing.

    Args:
        modalities: of the data set, in the column order of ``batch.missing``.

    Returns:
        name -> (B, ...) inputs, zeros where content stays missing (of a partly missing table, in its missing cells);
        and (B, M) bool, True = stays missing, None where the method can fill everything.
    """
    if batch.complete:
        return batch.inputs, None
    unrecoverable = imputer.unrecoverable(modalities, batch.missing)
    if unrecoverable is None:
        return recover(imputer, batch), None
    completed = recover(imputer, batch.replace(missing=batch.missing & ~unrecoverable))
    for i, (name, x) in enumerate(completed.items()):
        is_missing = missing_content(x, name, unrecoverable[:, i], batch.feature_missing)
        completed[name] = torch.where(is_missing, torch.zeros_like(x), x)
    return completed, unrecoverable


def merge(x: Tensor, missing: Tensor, recovered: Tensor) -> Tensor:
    """``recovered`` where ``missing``, ``x`` elsewhere; ``missing`` is (B,), or a mask that broadcasts against x."""
    return torch.where(missing.reshape(-1, *[1] * (x.ndim - 1)) if missing.ndim == 1 else missing, recovered, x)

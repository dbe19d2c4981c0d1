"""What every recovery method offers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Imputer:
    """Interface of a recovery method: fills what is missing, passes what is there through unchanged.

    ``needs_oracle`` marks methods that read the content of missing modalities; they are refused outside evaluation
    studies.
    """

    needs_oracle = False

    def impute(self, inputs: Mapping[str, Tensor], missing: Tensor, index: Tensor | None = None) -> dict[str, Tensor]:
        """Completed inputs.

        Args:
            inputs: modality name -> (B, ...), in the column order of ``missing``; the content of missing rows is never
                read.
            missing: (B, M) bool, True = missing, any mix of patterns, at least one False a row.
            index: (B,) row numbers in the data set; methods that draw at random draw the same for the same row,
                whatever the batch. None = 0 .. B-1.

        Returns:
            name -> (B, ...): observed rows are the given ones bit for bit, missing rows are recoveries.
        """
        raise AssertionError("a recovery method implements impute()")


def merge(x: Tensor, missing: Tensor, recovered: Tensor) -> Tensor:
    """Rows of ``recovered`` where ``missing`` (B,), rows of ``x`` elsewhere."""
    return torch.where(missing.reshape(-1, *[1] * (x.ndim - 1)), recovered, x)

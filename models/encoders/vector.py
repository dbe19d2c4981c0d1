"""Encoder of tables with continuous columns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class VectorEncoder(nn.Module):
    """Perceptron on a table of continuous columns: (B, n) -> (B, 1, width), one hidden layer.

    A missing cell is set to 0, the training mean of a standardised column.

    Args:
        cardinalities: empty; use :class:`models.encoders.table.TableEncoder` for categorical columns.
        n_continuous: number of columns (n).
        hidden: number of hidden units.
    """

    tokens = 1

    def __init__(
        self,
        cardinalities: Sequence[int],
        n_continuous: int,
        width: int = 64,
        hidden: int = 128,
        vector_width: int | None = None,
    ) -> None:
        super().__init__()
        if cardinalities:
            raise ValueError(f"{len(cardinalities)} categorical columns: choose models.encoders.table.TableEncoder")
        self.width = vector_width or width
        self.layers = nn.Sequential(nn.Linear(n_continuous, hidden), nn.ReLU(), nn.Linear(hidden, self.width))

    def forward(self, x: Tensor, missing: Tensor | None = None) -> Tensor:
        """Encode rows (B, n), with missing cells ``missing`` (B, n) bool, True = missing."""
        if missing is not None:
            x = torch.where(missing, torch.zeros((), dtype=x.dtype, device=x.device), x)
        return self.layers(x)[:, None]

"""Encoder of a vector of numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class VectorEncoder(nn.Module):
    """A table of continuous columns as one vector: (B, n) -> (B, 1, width), one hidden layer. A missing cell counts as
    0, the training mean of a standardised column.

    Args:
        cardinalities: none; for categorical columns take :class:`models.encoders.table.TableEncoder`.
        n_continuous: columns (n).
        hidden: units of the hidden layer.
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
        """
        Args:
            missing: (B, n) bool, True = this cell is missing.
        """
        if missing is not None:
            x = torch.where(missing, torch.zeros((), dtype=x.dtype, device=x.device), x)
        return self.layers(x)[:, None]

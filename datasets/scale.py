"""Meaning of the values of a modality, for noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scale:
    """Affine map from values as a model gets them to their meaning.

    x * deviation + mean is a pixel in [0, 1], the natural logarithm of a spectrogram, or a z-score.

    Attributes:
        mean, deviation: one value, or one per channel (of a table: per continuous column).
        time: the axis of a spectrogram, 0 or 1, that is time.
    """

    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (1.0,)
    time: int = 1

    def _as(self, values: tuple[float, ...], x: Tensor) -> Tensor:
        tensor = torch.tensor(values, dtype=x.dtype, device=x.device)
        return tensor[0] if len(values) == 1 else tensor[:, None, None]

    def read(self, x: Tensor) -> Tensor:
        """Convert values of a batch to their meaning; the channel is the third axis from the end."""
        return x * self._as(self.deviation, x) + self._as(self.mean, x)

    def write(self, meaning: Tensor) -> Tensor:
        """Inverse of :meth:`read`."""
        return (meaning - self._as(self.mean, meaning)) / self._as(self.deviation, meaning)


AS_IT_IS = Scale()

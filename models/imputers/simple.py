"""Recovery methods without a network: zeros, the training mean, and the true content."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from datasets.base import Batch, Modality
from models.imputers.base import Imputer, merge


class Zero(Imputer):
    """Missing content becomes zeros."""

    def impute(self, inputs: Mapping[str, Tensor], missing: Tensor, index: Tensor | None = None) -> dict[str, Tensor]:
        return {n: merge(x, missing[:, i], torch.zeros_like(x)) for i, (n, x) in enumerate(inputs.items())}


class Mean(Imputer):
    """Missing content becomes the mean of the training split (per pixel or cell).

    Args:
        modalities: of the data set.
    """

    def __init__(self, modalities: Sequence[Modality]) -> None:
        self.means = {m.name: torch.full(m.shape, float("nan")) for m in modalities}

    def fit(self, batches: Iterable[Batch]) -> None:
        """One pass over complete training batches."""
        sums = {n: torch.zeros(v.shape, dtype=torch.float64) for n, v in self.means.items()}
        rows = 0
        for batch in batches:
            rows += len(batch)
            for name, x in batch.inputs.items():
                sums[name] += x.double().sum(0).cpu()
        self.means = {n: (v / rows).float() for n, v in sums.items()}

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.means)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.means = {n: state[n] for n in self.means}

    def impute(self, inputs: Mapping[str, Tensor], missing: Tensor, index: Tensor | None = None) -> dict[str, Tensor]:
        return {n: merge(x, missing[:, i], self.means[n].to(x)) for i, (n, x) in enumerate(inputs.items())}


class Oracle(Imputer):
    """The true content: an upper reference for studies of the selection rule, never a method."""

    needs_oracle = True

    def impute(self, inputs: Mapping[str, Tensor], missing: Tensor, index: Tensor | None = None) -> dict[str, Tensor]:
        return dict(inputs)

"""A trained method combined with an imputer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from datasets.batch import Batch, rows_like
from models.base import IncompleteClassifier, Method, Prediction
from models.imputers.base import Imputer, recover_possible


class Completed(Method):
    """Predict on inputs completed by an imputer; modalities that it cannot recover stay missing.

    Args:
        method: trained.
        imputer: fills in missing modalities.
    """

    def __init__(self, method: IncompleteClassifier, imputer: Imputer) -> None:
        super().__init__()
        self.method = method.eval()
        self._imputer = [imputer]  # not registered as a submodule, since it need not be a module

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Prediction:
        inputs, unrecoverable = recover_possible(self._imputer[0], self.method.modalities, batch)
        is_complete = unrecoverable is None or not unrecoverable.any()
        return self.method(self.completed(batch, inputs, None if is_complete else unrecoverable))

    def forward_fixed(self, batch: Batch) -> Prediction:
        inputs, unrecoverable = recover_possible(self._imputer[0], self.method.modalities, batch, is_fixed=True)
        return self.method.forward_fixed(self.completed(batch, inputs, unrecoverable))

    def completed(self, batch: Batch, inputs: dict[str, Tensor], unrecoverable: Tensor | None) -> Batch:
        """The batch with completed inputs, of which ``unrecoverable`` (B, M) bool stay missing; None = none."""
        if unrecoverable is None:
            nothing = torch.zeros_like(batch.missing)
            return batch.replace(inputs=inputs, missing=nothing, feature_missing={}, complete=True)
        names = self.method.modality_names
        cells = {
            name: hidden & rows_like(unrecoverable[:, names.index(name)], hidden)
            for name, hidden in batch.feature_missing.items()
        }
        return batch.replace(inputs=inputs, missing=unrecoverable, feature_missing=cells)

    def networks(self) -> list[nn.Module]:
        return [self, *self._imputer[0].networks()]

    def why_not_exported(self) -> str | None:
        return self.method.why_not_exported() or self._imputer[0].why_not_exported()

    def predict_scenarios(self, batch: Batch, scenarios: Mapping[str, Batch]) -> dict[str, dict[str, Prediction]]:
        return self.method.by_label({name: self(masked) for name, masked in scenarios.items()})

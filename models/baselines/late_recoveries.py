"""Late fusion of observed and recovered modalities, the control of DyMo's selection (docs/reference/rules.md §7)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor

from datasets.batch import Batch
from models.base import Prediction
from models.completed import Completed
from models.dymo.pool import PoolWeights
from models.dymo.selection import groups_by_missing
from models.imputers.base import Imputer, recover_possible

COMPARATORS = ("discard", "weighted")
MEMBERS = ("observed", "recovered")


class LateRecoveries(Completed):
    """:class:`models.completed.Completed` of a late fusion, with comparators.

    ``discard``: the mean over the observed modalities alone. ``weighted``: a log-linear pool of this mean and of the
    mean over the recovered modalities, with one weight per number of missing modalities from validation data.

    Args:
        method: trained; ``encode`` returns logits (B, M, C) of the single modalities.
        imputer: fills in missing modalities.
        comparators: names out of :data:`COMPARATORS`.
    """

    needs_calibration: ClassVar[bool] = True

    def __init__(self, method: Any, imputer: Imputer, comparators: Sequence[str]) -> None:
        super().__init__(method, imputer)
        self.comparators = tuple(comparators)
        self.weights = PoolWeights("weighted")
        self._choices = pd.DataFrame()

    @property
    def choices(self) -> pd.DataFrame:
        return self._choices

    @torch.inference_mode()
    def members(self, batch: Batch) -> Tensor:
        """Logits (B, 2, C): means over the observed and over the recovered modalities; rows without a recovery have the
        first one twice."""
        method: Any = self.method
        inputs, unrecoverable = recover_possible(self._imputer[0], method.modalities, batch)
        recovered = batch.missing if unrecoverable is None else batch.missing & ~unrecoverable
        observed = method(batch).logits
        of_recovered = method.combine(method.encode(inputs), recovered)
        return torch.stack([observed, torch.where(recovered.any(1, keepdim=True), of_recovered, observed)], dim=1)

    def calibrate(self, batches: Iterable[tuple[Batch, Mapping[str, Batch]]]) -> pd.DataFrame:
        right: dict[str, Tensor] = {}
        rows = 0
        for batch, scenarios in batches:
            rows += len(batch)
            for scenario, masked in scenarios.items():
                logits, missing = self.members(masked), masked.missing.sum(1)
                for k in range(1, masked.missing.shape[1] + 1):
                    self.weights.observe(k, logits[missing == k], batch.target[missing == k])
                count = (logits.argmax(-1) == batch.target[:, None]).sum(0)
                right[scenario] = right.get(scenario, torch.zeros_like(count)) + count
        self._choices = pd.DataFrame([{"rule": "weighted", **values} for values in self.weights.fit(MEMBERS)])
        table = [(scenario, *(count / rows).tolist()) for scenario, count in right.items()]
        return pd.DataFrame(table, columns=["scenario", *MEMBERS])

    @torch.inference_mode()
    def predict_scenarios(self, batch: Batch, scenarios: Mapping[str, Batch]) -> dict[str, dict[str, Prediction]]:
        results = super().predict_scenarios(batch, scenarios)
        for scenario, masked in scenarios.items():
            logits = self.members(masked)
            if "discard" in self.comparators:
                results.setdefault("discard", {})[scenario] = Prediction(logits[:, 0])
            if "weighted" in self.comparators and self.weights.weights is not None:
                pooled = torch.empty_like(logits[:, 0])
                for k, rows in groups_by_missing(masked.missing):
                    pooled[rows] = self.weights.pool(k, logits[rows])
                results.setdefault("weighted", {})[scenario] = Prediction(pooled)
        return results

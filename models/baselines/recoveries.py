"""Methods on observed and recovered modalities, with comparators that are fitted on validation data (ours;
docs/reference/rules.md §7 and §8)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor

from datasets.batch import Batch
from datasets.rows import take_rows
from models.base import Prediction
from models.completed import Completed
from models.dymo.lattice import supersets
from models.dymo.pool import PoolWeights, log_mean
from models.dymo.rule import RuleSettings
from models.dymo.selection import groups_by_missing
from models.imputers.base import Imputer, recover_possible


class RecoveryComparators(Completed):
    """:class:`models.completed.Completed` with the comparators ``discard``, which is the method without recoveries, and
    :attr:`pooled`, a log-linear pool with weights per number of missing modalities.

    Args:
        method: trained, with ``encode`` and ``fuse``.
        imputer: fills in missing modalities.
        comparators: names of those that are reported.

    Attributes:
        pooled: name of the pool.
        names: of its members; the first one discards.
    """

    needs_calibration: ClassVar[bool] = True
    pooled: ClassVar[str]
    names: tuple[str, ...]

    def __init__(self, method: Any, imputer: Imputer, comparators: Sequence[str]) -> None:
        super().__init__(method, imputer)
        self.comparators = tuple(comparators)
        self.weights = PoolWeights(self.pooled)
        self._choices = pd.DataFrame()

    @property
    def validated_comparators(self) -> tuple[str, ...]:
        return tuple(name for name in self.comparators if name == self.pooled)

    @property
    def choices(self) -> pd.DataFrame:
        return self._choices

    @abstractmethod
    def members(self, batch: Batch) -> Tensor:
        """Log-probabilities, up to a constant, of the members (B, J, C); rows without a recovery have the first one J
        times."""

    def recoveries(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Completed inputs, and what stays missing (B, M) bool."""
        inputs, unrecoverable = recover_possible(self._imputer[0], self.method.modalities, batch)
        return inputs, torch.zeros_like(batch.missing) if unrecoverable is None else unrecoverable

    def calibrate(self, batches: Iterable[tuple[Batch, Mapping[str, Batch]]]) -> pd.DataFrame:
        right: dict[str, Tensor] = {}
        rows = 0
        for batch, scenarios in batches:
            rows += len(batch)
            for scenario, masked in scenarios.items():
                logits = self.members(masked)
                for k, group in groups_by_missing(masked.missing):
                    if k:
                        self.weights.observe(k, logits[group], batch.target[group], batch.index[group])
                count = (logits.argmax(-1) == batch.target[:, None]).sum(0)
                right[scenario] = right.get(scenario, torch.zeros_like(count)) + count
        self._choices = pd.DataFrame([{"rule": self.pooled, **values} for values in self.weights.fit(self.names)])
        table = [(scenario, *(count / rows).tolist()) for scenario, count in right.items()]
        return pd.DataFrame(table, columns=["scenario", *self.names])

    @torch.inference_mode()
    def predict_scenarios(self, batch: Batch, scenarios: Mapping[str, Batch]) -> dict[str, dict[str, Prediction]]:
        results = super().predict_scenarios(batch, scenarios)
        for scenario, masked in scenarios.items():
            logits = self.members(masked)
            if "discard" in self.comparators:
                results.setdefault("discard", {})[scenario] = Prediction(logits[:, 0])
            if self.pooled in self.comparators and self.weights.weights is not None:
                pooled = torch.empty_like(logits[:, 0])
                for k, rows in groups_by_missing(masked.missing):
                    pooled[rows] = self.weights.pool(k, logits[rows])
                results.setdefault(self.pooled, {})[scenario] = Prediction(pooled)
        return results


class LateRecoveries(RecoveryComparators):
    """Late fusion: means of the logits over the observed and over the recovered modalities.

    ``method.encode`` returns logits (B, M, C) of the single modalities, ``method.combine`` their mean over some.
    """

    pooled = "weighted"
    names = ("observed", "recovered")

    @torch.inference_mode()
    def members(self, batch: Batch) -> Tensor:
        method: Any = self.method
        inputs, unrecoverable = self.recoveries(batch)
        recovered = batch.missing & ~unrecoverable
        observed = method(batch).logits
        of_recovered = method.combine(method.encode(inputs), recovered)
        return torch.stack([observed, torch.where(recovered.any(1, keepdim=True), of_recovered, observed)], dim=1)


class PooledRecoveries(RecoveryComparators):
    """The pool of :class:`models.dymo.pool.Pool` for a method of which no selection is known: what is observed alone,
    every recovery, the mean over posterior draws, and the mean over all supersets of what is observed.

    Contents are encoded once per recovery and fused under every mask. A partly missing table with observed cells is
    hidden completely in the supersets without its recovery, except in the first one.
    """

    pooled = "pool"

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("discard", "impute_all", *(("draws",) if self._imputer[0].has_draws else ()), "lattice")

    @torch.inference_mode()
    def members(self, batch: Batch) -> Tensor:
        method: Any = self.method
        inputs, unrecoverable = self.recoveries(batch)
        discard = method(batch).logits
        encoded = method.encode(inputs)
        parts = [discard, self._fuse(encoded, batch, unrecoverable)]
        if self._imputer[0].has_draws:
            draws = []
            for number in range(RuleSettings().draws):
                with self._imputer[0].drawing(number):
                    drawn = method.encode(self.recoveries(batch)[0])
                draws.append(self._fuse(drawn, batch, unrecoverable))
            parts.append(log_mean(torch.stack(draws, dim=1)))
        parts.append(self._lattice(encoded, batch, unrecoverable, discard))
        is_recovered = (batch.missing & ~unrecoverable).any(1)
        return torch.where(is_recovered[:, None, None], torch.stack(parts, dim=1), discard[:, None])

    def _fuse(self, encoded: Tensor, batch: Batch, missing: Tensor) -> Tensor:
        """Logits of the rows of a batch under masks (B, M)."""
        method: Any = self.method
        return method.fuse(encoded, batch.replace(missing=missing, feature_missing={})).logits

    def _lattice(self, encoded: Tensor, batch: Batch, unrecoverable: Tensor, discard: Tensor) -> Tensor:
        """Log of the mean probability (B, C) over the supersets that show no modality without a recovery."""
        result = torch.empty_like(discard)
        for k, rows in groups_by_missing(batch.missing):
            masks, _ = supersets(batch.missing[rows], k)  # (R, A, M)
            part, content = take_rows(batch, rows), encoded[rows]
            logits = [self._fuse(content, part, masks[:, a]) for a in range(1, masks.shape[1])]
            allowed = ~(unrecoverable[rows][:, None] & ~masks).any(-1)
            result[rows] = log_mean(torch.stack([discard[rows], *logits], dim=1), allowed)
        return result

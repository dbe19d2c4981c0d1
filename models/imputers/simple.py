"""Recovery methods without a network: zeros, the training mean, and the true content."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from datasets.batch import Batch, Modality, missing_content
from models.imputers.base import FittedImputer, Imputer, merge
from utils.errors import UserError


class Zero(Imputer):
    """Fill in zeros."""

    def impute(
        self,
        inputs: Mapping[str, Tensor],
        missing: Tensor,
        index: Tensor | None = None,
        feature_missing: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        return {
            n: merge(x, missing_content(x, n, missing[:, i], feature_missing), torch.zeros_like(x))
            for i, (n, x) in enumerate(inputs.items())
        }


class Mean(FittedImputer):
    """Fill in the mean of the training split per pixel or cell; for categorical cells of a table the most frequent
    level.

    Args:
        modalities: of the data set.

    Raises:
        UserError: a text of token ids among them.
    """

    @classmethod
    def fits(cls, kinds: Sequence[str]) -> bool:
        return "text" not in kinds  # of token ids, that is

    def __init__(self, modalities: Sequence[Modality]) -> None:
        if tokens := [m.name for m in modalities if m.vocabulary]:
            raise UserError(f"imputer Mean: the ids of text '{tokens[0]}' have no mean, choose imputer=Zero")
        self.means = {m.name: torch.full(m.shape, float("nan")) for m in modalities}
        self.levels = {m.name: m.cardinalities for m in modalities if m.cardinalities}

    def fit(self, batches: Iterable[Batch]) -> None:
        """Learn from training batches in one pass, without their missing content."""
        sums = {n: torch.zeros(v.shape, dtype=torch.float64) for n, v in self.means.items()}
        known = {n: torch.zeros(v.shape, dtype=torch.long) for n, v in self.means.items()}
        counts = {n: [torch.zeros(k, dtype=torch.long) for k in levels] for n, levels in self.levels.items()}
        for batch in batches:
            for i, (name, x) in enumerate(batch.inputs.items()):
                is_missing = missing_content(x, name, batch.missing[:, i], batch.feature_missing).expand(x.shape)
                sums[name] += torch.where(is_missing, 0, x.double()).sum(0).cpu()
                known[name] += (~is_missing).sum(0).cpu()
                for j, count in enumerate(counts.get(name, ())):
                    count += torch.bincount(x[~is_missing[:, j], j].long().cpu(), minlength=len(count))
        if without_mean := [n for n, count in known.items() if not count.all()]:
            raise UserError(f"imputer Mean: no training row has all of '{without_mean[0]}', so that it has no mean")
        self.means = {n: (v / known[n]).float() for n, v in sums.items()}
        for name, columns in counts.items():
            self.means[name][: len(columns)] = torch.tensor([float(c.argmax()) for c in columns])

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.means)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        wanted = {n: tuple(v.shape) for n, v in self.means.items()}
        if {n: tuple(getattr(v, "shape", ())) for n, v in state.items()} != wanted:
            raise ValueError(f"does not hold the means of {', '.join(wanted)}")
        self.means = {n: state[n] for n in self.means}

    def impute(
        self,
        inputs: Mapping[str, Tensor],
        missing: Tensor,
        index: Tensor | None = None,
        feature_missing: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        return {
            n: merge(x, missing_content(x, n, missing[:, i], feature_missing), self.means[n].to(x))
            for i, (n, x) in enumerate(inputs.items())
        }


class Oracle(Imputer):
    """Keep the true content: an upper reference for studies of the selection rule, never a method."""

    needs: ClassVar[tuple[str, ...]] = ("oracle",)

    def why_not_exported(self) -> str | None:
        return "imputer Oracle reads the content that is missing"

    def impute(
        self,
        inputs: Mapping[str, Tensor],
        missing: Tensor,
        index: Tensor | None = None,
        feature_missing: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        return dict(inputs)

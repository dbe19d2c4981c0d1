"""`Rule`: the interface of the rules beyond the paper (ours; docs/reference/rules.md).

A rule reads predictions on the lattice of subsets and on posterior draws. It sees labels in :meth:`Rule.observe` alone,
those of validation data.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from models.base import Prediction
from models.dymo.draws import Draws
from models.dymo.selection import Lattice

log = logging.getLogger(__name__)
NOT_SIMULATED = "no scenario of model.validation hides as many, add one that does"


@dataclass
class RuleSettings:
    """
    Attributes:
        draws: S, posterior draws per row.
    """

    draws: int = 8


@dataclass
class Candidates:
    """Predictions that the rules combine, of a batch under one scenario.

    Attributes:
        missing: (B, M) bool.
        index: (B,) row numbers.
        lattices: every superset of the observed modalities.
        draws: predictions on posterior draws; None without them.
    """

    missing: Tensor
    index: Tensor
    lattices: list[Lattice]
    draws: Draws | None = None

    def empty_logits(self) -> Tensor:
        return self.lattices[0].logits.new_empty(len(self.missing), self.lattices[0].logits.shape[2])


class Rule(ABC):
    """A rule with one set of parameters per number of missing modalities.

    Attributes:
        name: of the comparator.
        needs_draws: it reads posterior draws, where the imputer has them.
    """

    name: ClassVar[str]
    needs_draws: ClassVar[bool] = False

    def __init__(self, settings: RuleSettings) -> None:
        self.settings = settings
        self._announced: set[int] = set()

    def announce_discarding(self, k: int, reason: str) -> None:
        """Log once that rows with ``k`` missing modalities are classified from what is observed alone."""
        if k not in self._announced:
            log.warning("%s discards every recovery of rows that miss %d modalities: %s", self.name, k, reason)
        self._announced.add(k)

    @property
    @abstractmethod
    def is_ready(self) -> bool:
        """Whether everything is fitted that :meth:`predict` reads."""

    @abstractmethod
    def observe(self, candidates: Candidates, target: Tensor) -> None:
        """Collect validation rows."""

    @abstractmethod
    def fit(self) -> list[dict[str, Any]]:
        """Fit on the collected rows and forget them.

        Returns:
            What was chosen, for a CSV file: keys missing (number of missing modalities), parameter, value, rows.
        """

    @abstractmethod
    def predict(self, candidates: Candidates) -> Prediction:
        """Classify the rows of a batch."""

"""`Rule`: the interface of the rules beyond the paper (ours; docs/reference/rules.md).

A rule reads predictions on the lattice of subsets and on posterior draws. It sees labels in :meth:`Rule.observe` alone,
those of validation data.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from models.base import Prediction
from models.dymo.lattice import Lattice
from models.dymo.selection import Selection
from utils.checks import check_number

log = logging.getLogger(__name__)
NOT_SIMULATED = "no scenario of model.validation hides as many, add one that does"


@dataclass
class RuleSettings:
    """
    Attributes:
        draws: S, posterior draws per row.
        delta: probability that a certificate is wrong.
        margin: by which the certified risk may exceed that of discarding, > 0.
        minimum_rows: distinct validation rows that a certificate needs.
        critic_width, critic_epochs: of the critic's network.
    """

    draws: int = 8
    delta: float = 0.1
    margin: float = 0.01
    minimum_rows: int = 500
    critic_width: int = 64
    critic_epochs: int = 20


# Setting -> smallest and greatest value.
BOUNDS = {
    "draws": (1, math.inf),
    "delta": (1e-4, 0.5),
    "margin": (1e-4, 1),
    "minimum_rows": (1, math.inf),
    "critic_width": (1, math.inf),
    "critic_epochs": (1, math.inf),
}


def check_settings(cfg: DictConfig, node: str) -> Iterator[str]:
    """Problems of the settings at key ``node``, one message each; a configuration without them has none."""
    settings = OmegaConf.select(cfg, node)
    for name, (low, high) in BOUNDS.items() if settings else ():
        if settings.get(name) is None:
            yield f"{node}.{name}=null: must be a number"
        yield from check_number(cfg, f"{node}.{name}", low, high, whole=isinstance(low, int) and high == math.inf)


@dataclass
class Draws:
    """Predictions on S recoveries of every row.

    Attributes:
        logits: (S, B, C), of everything observed and recovered.
        features: (S, B, D_p).
    """

    logits: Tensor
    features: Tensor


@dataclass
class Candidates:
    """Predictions that the rules combine, of a batch under one scenario.

    Attributes:
        missing: (B, M) bool.
        index: (B,) row numbers.
        lattices: every superset of the observed modalities.
        unrecoverable: (B, M) bool, missing modalities without a recovery; None without any.
        recovered: predictions on S posterior draws, or on the only recovery; None if no rule reads it.
        is_drawn: whether ``recovered`` are posterior draws.
        observed: features (B, D_p) of what is observed; None if no rule reads them.
    """

    missing: Tensor
    index: Tensor
    lattices: list[Lattice]
    unrecoverable: Tensor | None = None
    recovered: Draws | None = None
    is_drawn: bool = False
    observed: Tensor | None = None

    @property
    def draws(self) -> Draws | None:
        """Predictions on posterior draws; None without a posterior."""
        return self.recovered if self.is_drawn else None

    @property
    def nothing_recovered(self) -> Tensor:
        """(B,) bool, rows without a recovery."""
        recovered = self.missing if self.unrecoverable is None else self.missing & ~self.unrecoverable
        return ~recovered.any(1)

    def empty_logits(self) -> Tensor:
        return self.lattices[0].logits.new_empty(len(self.missing), self.lattices[0].logits.shape[2])


@dataclass
class Examples:
    """Training rows with simulated masks, for rules that learn from them; labels are not among them.

    Attributes:
        real, recovered: (N, D_p) features of all content: the true one, and with recoveries where ``missing``.
        observed: (N, D_p) features of what is observed.
        missing: (N, M) bool.
        index: (N,) row numbers.
    """

    real: Tensor
    recovered: Tensor
    observed: Tensor
    missing: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Tensor) -> Examples:
        return Examples(*(part[rows] for part in vars(self).values()))


class DiscardLog:
    """Warns once per number of missing modalities that a rule classifies from what is observed alone.

    Args:
        name: of the rule.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._announced: set[int] = set()

    def __call__(self, k: int, reason: str) -> None:
        """Rows that miss ``k`` modalities are the case."""
        if k not in self._announced:
            noun = "modality" if k == 1 else "modalities"
            log.warning("%s discards every recovery of rows that miss %d %s: %s", self.name, k, noun, reason)
        self._announced.add(k)


class Rule(ABC):
    """A rule with one set of parameters per number of missing modalities.

    Attributes:
        name: of the comparator.
        needs_draws: it reads posterior draws, where the imputer has them.
        needs_features: it reads features of what is observed and of the draws, or of the only recovery.
    """

    name: ClassVar[str]
    needs_draws: ClassVar[bool] = False
    needs_features: ClassVar[bool] = False
    needs_validation: ClassVar[bool] = True

    def __init__(self, settings: RuleSettings) -> None:
        self.settings = settings
        self.announce_discarding = DiscardLog(self.name)

    @property
    @abstractmethod
    def is_ready(self) -> bool:
        """Whether everything is fitted that :meth:`predict` reads."""

    def observe(self, candidates: Candidates, target: Tensor) -> None:  # noqa: B027 (not every rule has to)
        """Collect validation rows; nothing by default."""

    def fit(self) -> list[dict[str, Any]]:
        """Fit on the collected rows and forget them; nothing by default.

        Returns:
            What was chosen, for a CSV file: keys missing (number of missing modalities), parameter, value, rows
            (distinct ones).
        """
        return []

    @abstractmethod
    def predict(self, candidates: Candidates) -> Prediction | Selection:
        """Classify the rows of a batch; a selection where one subset is chosen per row."""

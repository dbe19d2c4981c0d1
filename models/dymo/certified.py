"""Certified acceptance: recoveries are accepted where a test on validation data shows that the risk is at most that of
discarding plus a margin (docs/reference/rules.md §4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.dymo.lattice import Lattice
from models.dymo.rule import NOT_SIMULATED, Candidates, Rule, RuleSettings
from models.dymo.selection import THRESHOLDS, Selection
from utils.certificate import fixed_sequence, margin_p_value
from utils.noise import hash_seed, row_uniform

SEED = 1986  # of the draw of the rows that count as gains for the margin


@dataclass
class Rows:
    """Validation rows that miss equally many modalities, each once.

    Attributes:
        index: (N,) row numbers.
        reward: (N,) of the best subset.
        is_wrong, is_wrong_discarding: (N,) bool, with the best subset and without recoveries.
    """

    index: np.ndarray
    reward: np.ndarray
    is_wrong: np.ndarray
    is_wrong_discarding: np.ndarray

    def without(self, index: np.ndarray) -> Rows:
        """The rows that are not among ``index``."""
        is_new = ~np.isin(self.index, index)
        return Rows(*(part[is_new] for part in vars(self).values()))

    def joined(self, other: Rows) -> Rows:
        return Rows(*(np.concatenate(pair) for pair in zip(vars(self).values(), vars(other).values(), strict=True)))

    def is_wrong_at(self, threshold: float) -> np.ndarray:
        """(N,) bool, with the best subset where its reward is above a threshold."""
        return np.where(self.reward > threshold, self.is_wrong, self.is_wrong_discarding)


def certify(rows: Rows, delta: float, margin: float, uniform: np.ndarray) -> tuple[float, list[float]]:
    """Test the thresholds from the highest to the lowest.

    Args:
        delta: probability of a wrong certificate.
        margin: by which the risk may exceed that of discarding.
        uniform: see :func:`utils.certificate.margin_p_value`.

    Returns:
        the certified threshold with the smallest error on these rows, the highest of equals, inf without any; and the
        p-values in the order of the tests.
    """
    order = sorted(THRESHOLDS, reverse=True)
    wrong = [rows.is_wrong_at(threshold) for threshold in order]
    p_values = [margin_p_value(w, rows.is_wrong_discarding, margin, uniform) for w in wrong]
    count = fixed_sequence(p_values, delta)
    errors = [int(w.sum()) for w in wrong[:count]]
    return (order[int(np.argmin(errors))] if count else math.inf), p_values


def best_subset(lattice: Lattice) -> tuple[Tensor, Tensor]:
    """Reward (R,) and entry (R,) of the best subset, the comparator ``best_subset``."""
    reward = lattice.reward
    if lattice.allowed is not None:
        reward = torch.where(lattice.allowed, reward, -torch.inf)
    return reward.max(1)


class Certified(Rule):
    """The best subset where its reward is above a certified threshold, nothing elsewhere.

    Attributes:
        thresholds: number of missing modalities -> threshold; a number that is not there discards.
    """

    name = "certified"

    def __init__(self, settings: RuleSettings) -> None:
        super().__init__(settings)
        self.thresholds: dict[int, float] | None = None
        self._rows: dict[int, Rows] = {}

    @property
    def is_ready(self) -> bool:
        return self.thresholds is not None

    def observe(self, candidates: Candidates, target: Tensor) -> None:
        for lattice in filter(lambda lattice: lattice.size, candidates.lattices):
            reward, entry = best_subset(lattice)
            every, truth = torch.arange(len(reward), device=reward.device), target[lattice.rows]
            is_wrong = [lattice.logits[every, e].argmax(1) != truth for e in (entry, torch.zeros_like(entry))]
            parts = (candidates.index[lattice.rows], reward, *is_wrong)
            rows = Rows(*(part.cpu().numpy() for part in parts))
            known = self._rows.get(lattice.size)
            self._rows[lattice.size] = rows if known is None else known.joined(rows.without(known.index))

    def fit(self) -> list[dict[str, Any]]:
        self.thresholds, chosen, s = {}, [], self.settings
        for k, rows in sorted(self._rows.items()):
            n = len(rows.index)
            if n < s.minimum_rows:
                reason = f"a certificate needs {s.minimum_rows} distinct validation rows (model.rules.minimum_rows)"
                self.announce_discarding(k, f"{reason}, there are {n}")
                continue
            uniform = row_uniform(torch.from_numpy(rows.index), 1, hash_seed(SEED, k))[:, 0].numpy()
            threshold, p_values = certify(rows, s.delta, s.margin, uniform)
            self.thresholds[k] = threshold
            values = {"threshold": threshold, "risk": rows.is_wrong_at(threshold).mean()}
            values |= {"risk_discard": rows.is_wrong_discarding.mean()}
            values |= {f"p_{t:g}": p for t, p in zip(sorted(THRESHOLDS, reverse=True), p_values, strict=True)}
            chosen += [{"missing": k, "parameter": p, "value": v, "rows": n} for p, v in values.items()]
            if math.isinf(threshold):
                self.announce_discarding(k, f"no threshold is certified at delta={s.delta:g}, margin={s.margin:g}")
        self._rows = {}
        return chosen

    def predict(self, candidates: Candidates) -> Selection:
        assert self.thresholds is not None
        logits, final = candidates.empty_logits(), candidates.missing.clone()
        for lattice in candidates.lattices:
            threshold = self.thresholds.get(lattice.size)
            if threshold is None and lattice.size:
                self.announce_discarding(lattice.size, NOT_SIMULATED)
            reward, entry = best_subset(lattice)
            entry = torch.where(reward > (math.inf if threshold is None else threshold), entry, 0)
            every = torch.arange(len(entry), device=entry.device)
            logits[lattice.rows] = lattice.logits[every, entry]
            final[lattice.rows] = lattice.missing[every, entry]
        return Selection.unordered(logits, final)

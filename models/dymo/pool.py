"""Log-linear pool of predictions on the lattice and on posterior draws (docs/reference/rules.md §3)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.base import Prediction
from models.dymo.lattice import Lattice
from models.dymo.rule import NOT_SIMULATED, Candidates, DiscardLog, Draws, Rule, RuleSettings
from utils.log_pool import fit_log_pool, pool_nll

# With fewer validation rows of one number of missing modalities, weights would be mostly noise.
MIN_ROWS = 30
MEMBERS = ("discard", "impute_all", "draws", "lattice")
DISCARD = [1.0]  # the weights of a pool of its first member alone


class PoolWeights:
    """Weights of a log-linear pool, one set per number of missing modalities; the first member discards.

    Args:
        name: of the rule, for messages.

    Attributes:
        weights: number of missing modalities -> (J,), >= 0, with sum 1; None before :meth:`fit`.
    """

    def __init__(self, name: str) -> None:
        self.announce_discarding = DiscardLog(name)
        self.weights: dict[int, list[float]] | None = None
        self._rows: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)

    def observe(self, k: int, logits: Tensor, target: Tensor, index: Tensor) -> None:
        """Collect validation rows that miss ``k`` modalities: logits (R, J, C) of the members, labels (R,), row numbers
        (R,). A row occurs once per scenario in which it misses as many."""
        if len(target):
            self._rows[k].append((logits.cpu(), target.cpu(), index.cpu()))

    def fit(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Choose the weights of members with these names; returns what :meth:`models.dymo.rule.Rule.fit` returns."""
        self.weights, chosen = {}, []
        for k, pieces in sorted(self._rows.items()):
            logits, target, index = (torch.cat(part).numpy() for part in zip(*pieces, strict=True))
            n = len(np.unique(index))
            if n < MIN_ROWS:
                reason = f"its weights need {MIN_ROWS} distinct validation rows, there are {n}"
                self.announce_discarding(k, reason)
                continue
            weights = fit_log_pool(logits, target)
            self.weights[k] = weights.tolist()
            values = dict(zip(names, weights, strict=True))
            values["nll"] = pool_nll(weights, logits.astype(np.float64), target)[0]
            values["nll_discard"] = pool_nll(np.eye(len(weights))[0], logits.astype(np.float64), target)[0]
            chosen += [{"missing": k, "parameter": p, "value": v, "rows": n} for p, v in values.items()]
        self._rows.clear()
        return chosen

    def pool(self, k: int, logits: Tensor) -> Tensor:
        """Pooled logits (R, C) of members (R, J, C) in rows that miss ``k`` modalities; those of the first member where
        there are no weights for ``k``."""
        assert self.weights is not None, "fit() comes first"
        if k and k not in self.weights:
            self.announce_discarding(k, NOT_SIMULATED)
        return log_pool(logits, self.weights.get(k, DISCARD))


class Pool(Rule):
    """Log-linear pool of up to four predictions: what is observed alone, every recovery, the mean over posterior draws
    of all recoveries, and the mean over the lattice. Without posterior draws it has the other three members."""

    name = "pool"
    needs_draws = True

    def __init__(self, settings: RuleSettings) -> None:
        super().__init__(settings)
        self.members: tuple[str, ...] = MEMBERS
        self.weights = PoolWeights(self.name)

    @property
    def is_ready(self) -> bool:
        return self.weights.weights is not None

    def observe(self, candidates: Candidates, target: Tensor) -> None:
        for lattice in candidates.lattices:
            if lattice.size:
                self.members = tuple(m for m in MEMBERS if m != "draws" or candidates.draws is not None)
                rows = lattice.rows
                logits = members(lattice, candidates.draws)
                self.weights.observe(lattice.size, logits, target[rows], candidates.index[rows])

    def fit(self) -> list[dict[str, Any]]:
        return self.weights.fit(self.members)

    def predict(self, candidates: Candidates) -> Prediction:
        logits = candidates.empty_logits()
        for lattice in candidates.lattices:
            logits[lattice.rows] = self.weights.pool(lattice.size, members(lattice, candidates.draws))
        return Prediction(logits)


def members(lattice: Lattice, draws: Draws | None) -> Tensor:
    """Log-probabilities, up to a constant per row and member, of the members of the pool: (R, J, C), J = 4 or, without
    draws, 3. The first two are the logits of the comparators ``discard`` and ``impute_all``."""
    every = torch.arange(len(lattice.rows), device=lattice.rows.device)
    result = [lattice.logits[:, 0], lattice.logits[every, lattice.fullest]]
    if draws is not None:
        result.append(log_mean(draws.logits[:, lattice.rows].transpose(0, 1)))
    return torch.stack([*result, log_mean(lattice.logits, lattice.allowed)], dim=1)


def log_mean(logits: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Log of the mean probability (R, C) of A predictions (R, A, C), of those in ``allowed`` (R, A) bool."""
    log_p = logits.log_softmax(-1)
    if allowed is None:
        return log_p.logsumexp(1) - np.log(logits.shape[1])
    log_p = torch.where(allowed[..., None], log_p, -torch.inf)
    return log_p.logsumexp(1) - allowed.sum(1, keepdim=True).log()


def log_pool(logits: Tensor, weights: Sequence[float]) -> Tensor:
    """Sum of w_j times the logits (R, J, C) of member j; members with weight 0 have no influence at all, and a single
    one with weight 1 is returned bit for bit."""
    pooled: Tensor | None = None
    for j, weight in enumerate(weights):
        if weight:
            term = weight * logits[:, j]
            pooled = term if pooled is None else pooled + term
    assert pooled is not None, "weights sum to 1"
    return pooled

"""DyMo's dynamic modality selection (ICLR 2026, Algorithm 1; docs/reference/dymo.md §4).

A missing modality is recovered once, from what is observed. Then, greedily: every recovery that is still a candidate is
scored by the reward it brings; those with a negative reward are rejected for good; the best one with a reward above the
threshold is accepted; repeat until none is left.

What we do differently: the caller's mask is not changed (the original writes into it); ICS is exact in the far tail
(``tail='float32'`` restores the original); a NaN reward rejects (the original accepts it); encoders run once per
sample (those of tables that are partly there twice: on the observed cells, which stay visible while the table is
masked, and on the recovered table), the score of the current set is carried over from the round that accepted it, and
rows that are finished leave the batch. A partly missing table with observed cells counts as present where Gaussian
parameters are looked up (``partial_tables='missing'`` restores the original). Beyond the paper, off by default:
``threshold`` > 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.dymo.backbone import Backbone, Partial
from models.dymo.gaussian import GaussianParameters
from models.dymo.prototypes import COSINE
from models.dymo.similarity import Score, reward, score
from utils.subsets import mask_code, subset_lookup
from utils.transfer import on_host, to_device

NO_ACTION = -1
PARTIAL_TABLES = ("observed", "missing")
# Of the reward, among which validation data choose.
THRESHOLDS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass
class SelectionRule:
    """
    Attributes:
        calibration: auto (log_ratio for cosine, ratio for Euclidean) | log_ratio | ratio | none.
        reward: posterior | log.
        temperature: of the prototype posterior.
        tail: robust | float32, see ``intra_class_similarity``.
        threshold: accept only a reward above it; 0 = the paper's rule.
        partial_tables: subset whose Gaussian parameters judge a masked table of which some cells are observed:
            ``observed``, with the table; ``missing``, without it, as in the original; None: missing with
            ``tail='float32'``, which reproduces the original, else observed.
    """

    calibration: str = "auto"
    reward: str = "posterior"
    temperature: float = 0.1
    tail: str = "robust"
    threshold: float = 0.0
    partial_tables: str | None = None

    def __post_init__(self) -> None:
        if self.partial_tables not in (None, *PARTIAL_TABLES):
            raise ValueError(f"partial_tables={self.partial_tables}: must be one of {', '.join(PARTIAL_TABLES)}")

    @property
    def counts_partial_tables(self) -> bool:
        """Whether a table with an observed cell is part of the subset whose parameters are looked up."""
        if self.partial_tables is None:
            return self.tail != "float32"
        return self.partial_tables == "observed"

    def calibration_for(self, metric: str) -> str:
        if self.calibration != "auto":
            return self.calibration
        return "log_ratio" if metric == COSINE else "ratio"


@dataclass
class Selection:
    """Decisions for B rows with at most T missing modalities.

    Attributes:
        logits: (B, C) under the final mask.
        final_missing: (B, M) bool.
        accepted: (B, M) int8, modalities in the order of acceptance, padded with -1.
        rewards: (B, T, M) float32 reward of each candidate in each round, NaN where it was not evaluated.
        path: (B, T + 1, C) logits before each round and after the last one, where :func:`select` was asked for them.
    """

    logits: Tensor
    final_missing: Tensor
    accepted: Tensor
    rewards: Tensor
    path: Tensor | None = None

    @classmethod
    def unordered(cls, logits: Tensor, final_missing: Tensor) -> Selection:
        """Decisions that were made at once, without rounds."""
        b, m = final_missing.shape
        accepted = torch.full((b, m), NO_ACTION, dtype=torch.int8, device=logits.device)
        return cls(logits, final_missing, accepted, logits.new_empty(b, 0, m))

    @property
    def iterations(self) -> Tensor:
        """(B,) rounds in which at least one candidate was evaluated."""
        return (~self.rewards.isnan()).any(-1).sum(-1)

    def at(self, threshold: float) -> Selection:
        """Decisions under a threshold that is not below the one of this selection.

        A threshold decides only where the greedy path stops, so that every higher one accepts the first recoveries of
        the same path.

        Raises:
            ValueError: the selection has no path.
        """
        if self.path is None:
            raise ValueError("decisions under another threshold need a selection with is_path_kept=True")
        rounds = self.rewards.shape[1]
        best = self.rewards.nan_to_num(nan=-torch.inf).amax(-1) if rounds else self.rewards[..., 0]
        length = (best > threshold).long().cumprod(1).sum(1)  # (B,) recoveries that are accepted
        order = torch.arange(self.accepted.shape[1], device=length.device)
        accepted = self.accepted.masked_fill(order >= length[:, None], NO_ACTION)
        dropped = torch.where(accepted == NO_ACTION, self.accepted, NO_ACTION).long()
        # One more column for the padding.
        is_dropped = torch.zeros_like(self.final_missing[:, :1]).expand(-1, len(order) + 1).clone()
        is_dropped.scatter_(1, torch.where(dropped == NO_ACTION, len(order), dropped), True)
        return Selection(
            self.path[torch.arange(len(length), device=length.device), length],
            self.final_missing | is_dropped[:, :-1],
            accepted,
            self.rewards.masked_fill((order[:rounds] > length[:, None])[..., None], float("nan")),
        )


class Scorer:
    """Scores rows of prepared samples under masks.

    Args:
        model: the backbone, in eval mode.
        parameters: on the same device.
        lookup: :func:`utils.subsets.subset_lookup` of the modalities, if the caller has it already.
    """

    def __init__(
        self, model: Backbone, parameters: GaussianParameters, rule: SelectionRule, lookup: Tensor | None = None
    ) -> None:
        self.model, self.parameters, self.rule = model, parameters, rule
        self.calibration = rule.calibration_for(model.distance_metric)
        lookup = subset_lookup(len(model.modalities)) if lookup is None else lookup
        self.lookup = lookup.to(parameters.sigma.device)

    def __call__(self, sequences: Any, rows: Tensor, missing: Tensor, n_visible: int) -> Score:
        """Score ``rows`` (R,) of prepared samples under masks (R, M) that leave ``n_visible`` modalities each.

        The rule says whether a masked table with observed cells counts as present in the look-up of parameters. It
        always does in a row with nothing else, since the empty subset has no parameters.
        """
        logits, features = self.model.fuse_rows(sequences, rows, missing, n_visible)
        partial: Partial | None = getattr(sequences, "partial", None)
        if partial is not None and (self.rule.counts_partial_tables or not n_visible):
            missing = missing & partial.absent(rows, missing.shape[1])
        return self._score(logits, features, missing)

    def under_masks(self, sequences: Any, missing: Tensor) -> Score:
        """Score all rows under K masks (K, B, M) -> (K B,), in operations without shapes that depend on values."""
        logits, features = self.model.fuse_masked(sequences, missing)
        partial: Partial | None = getattr(sequences, "partial", None)
        if partial is not None:
            rows = torch.arange(missing.shape[1], device=missing.device)
            counted = missing & partial.absent(rows, missing.shape[2])
            has_nothing_else = missing.all(-1, keepdim=True)
            missing = counted if self.rule.counts_partial_tables else torch.where(has_nothing_else, counted, missing)
        return self._score(logits, features, missing.flatten(0, 1))

    def _score(self, logits: Tensor, features: Tensor, missing: Tensor) -> Score:
        """``missing`` (R, M): the subsets whose parameters judge."""
        p = self.parameters
        return score(
            logits,
            features,
            self.lookup[mask_code(missing)],
            p.prototypes,
            p.sigma,
            p.overall,
            self.model.distance_metric,
            self.rule.temperature,
            self.rule.tail,
        )

    def reward(self, before: Score, after: Score) -> Tensor:
        """(R,) reward; NaN counts as a rejection."""
        value = reward(before, after, self.calibration, self.rule.reward, self.rule.tail)
        return torch.where(value.isnan(), float("-inf"), value)


def groups_by_missing(missing: Tensor) -> list[tuple[int, Tensor]]:
    """(number of missing modalities, rows) of each number that occurs. The host reads the mask, see
    :func:`utils.transfer.on_host`."""
    counts = on_host(missing).sum(1)
    present = torch.bincount(counts, minlength=missing.shape[1] + 1).tolist()
    order = to_device(counts.argsort(stable=True), missing.device)
    return [(k, rows) for k, rows in enumerate(order.split(present)) if len(rows)]


@torch.inference_mode()
def select(
    scorer: Scorer,
    tokens: Tensor,
    missing: Tensor,
    partial: Partial | None = None,
    unrecoverable: Tensor | None = None,
    is_path_kept: bool = False,
    is_counted: bool | None = None,
) -> Selection:
    """Greedy selection.

    Args:
        tokens: (B, P, D) of the completed inputs (observed content, recoveries where missing).
        missing: (B, M) bool, True = missing; not changed.
        partial: observed cells of masked tables, which stay visible until the recovered table takes their place. The
            recovery of such a table is a candidate; parameters are looked up as ``SelectionRule.partial_tables`` says.
        unrecoverable: (B, M) bool, missing modalities without a recovery, which are no candidates; None = none.
        is_path_kept: keep the logits of every round, for :meth:`Selection.at`.
        is_counted: see :func:`_pairs`; None = on the CPU, since a GPU would have to wait in every round.
    """
    b, m = missing.shape
    device = missing.device
    is_counted = device.type == "cpu" if is_counted is None else is_counted
    sequences = scorer.model.prepare(tokens, partial)
    groups = groups_by_missing(missing)
    rounds = max((k for k, _ in groups), default=0)
    selection = Selection(
        torch.empty(b, scorer.model.num_classes, device=device),
        missing.clone(),
        torch.full((b, m), NO_ACTION, dtype=torch.int8, device=device),
        torch.full((b, rounds, m), float("nan"), device=device),
        torch.empty(b, rounds + 1, scorer.model.num_classes, device=device) if is_path_kept else None,
    )
    # Rows that miss equally many modalities see equally many tokens in every round, so no padding and no mask.
    for k, rows in groups:
        _select_group(scorer, sequences, rows, m - k, k, selection, unrecoverable, is_counted)
    return selection


def _select_group(
    scorer: Scorer,
    sequences: Any,
    rows: Tensor,
    n_visible: int,
    k: int,
    selection: Selection,
    unrecoverable: Tensor | None,
    is_counted: bool,
) -> None:
    """Rows that all miss ``k`` modalities. Arrays keep the group's size; only the list of (row, candidate) pairs
    shrinks."""
    missing = selection.final_missing[rows]
    candidate = missing if unrecoverable is None else missing & ~unrecoverable[rows]
    current = scorer(sequences, rows, missing, n_visible)
    every = torch.arange(len(rows), device=rows.device)
    if selection.path is not None:
        selection.path[rows] = current.logits[:, None]
    for t in range(k):
        owner, u, is_real = _pairs(candidate, k - t, is_counted)
        if not len(owner):
            break
        hidden = missing[owner].scatter(1, u[:, None], False)
        after = scorer(sequences, rows[owner], hidden, n_visible + t + 1)
        value = scorer.reward(current[owner], after)
        value = value if is_real is None else torch.where(is_real, value, float("nan"))
        evaluated = value.new_full(candidate.shape, float("nan")).index_put((owner, u), value)
        pair = torch.zeros_like(missing, dtype=torch.long).index_put((owner, u), torch.arange(len(u), device=u.device))
        gain, best = evaluated.nan_to_num(nan=float("-inf")).max(1)
        accepts = gain > scorer.rule.threshold
        accepted = torch.zeros_like(missing).scatter(1, best[:, None], accepts[:, None])
        current = current.updated(accepts, after[pair[every, best]])
        missing = missing & ~accepted
        # Rejected once, rejected for good; rows that accepted nothing are finished.
        candidate = candidate & (evaluated >= 0) & ~accepted & accepts[:, None]
        selection.rewards[rows, t] = evaluated
        selection.accepted[rows, t] = torch.where(accepts, best, NO_ACTION).to(torch.int8)
        if selection.path is not None:
            selection.path[rows, t + 1] = current.logits
    selection.final_missing[rows] = missing
    selection.logits[rows] = current.logits


def _pairs(candidate: Tensor, width: int, is_counted: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """(row, candidate) pairs of a round.

    Args:
        candidate: (G, M) bool, at most ``width`` True in a row.
        is_counted: only pairs that are left, whose number the host has to know; else as many as there can be.

    Returns:
        rows (P,), their candidates (P,), and which pairs are left (P,), None = all.
    """
    if is_counted:
        owner, u = candidate.nonzero(as_tuple=True)
        return owner, u, None
    u = candidate.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :width].flatten()
    owner = torch.arange(len(candidate), device=candidate.device).repeat_interleave(width)
    return owner, u, candidate[owner, u]

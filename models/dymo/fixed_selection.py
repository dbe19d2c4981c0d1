"""DyMo's greedy selection for export: as :func:`models.dymo.selection.select`, without shapes that depend on values.

Every round evaluates all M candidates of all rows, whether or not they are still candidates, and masks the rewards; no
token is dropped. M rounds suffice, since each one accepts at most one recovery.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.dymo.backbone import Partial
from models.dymo.selection import NO_ACTION, Scorer, Selection
from models.dymo.similarity import Score


def select_fixed(
    scorer: Scorer,
    tokens: Tensor,
    missing: Tensor,
    partial: Partial | None = None,
    unrecoverable: Tensor | None = None,
) -> Selection:
    """Select greedily.

    Args:
        tokens, missing, partial, unrecoverable: see :func:`models.dymo.selection.select`.

    Returns:
        ``rewards`` always has M rounds; those after a row is finished are NaN.
    """
    m = missing.shape[1]
    sequences = scorer.model.prepare(tokens, partial)
    candidate = missing if unrecoverable is None else missing & ~unrecoverable
    current = scorer.under_masks(sequences, missing[None])
    shown = torch.eye(m, dtype=torch.bool, device=missing.device)[:, None]  # (M, 1, M): what each candidate adds
    rewards, actions = [], []
    for _ in range(m):
        after = scorer.under_masks(sequences, missing & ~shown)
        before = Score(current.quality.repeat(m), current.log_ics.repeat(m), current.logits.repeat(m, 1))
        value = scorer.reward(before, after).unflatten(0, (m, -1)).T
        evaluated = torch.where(candidate, value, torch.nan)
        gain, best = evaluated.nan_to_num(nan=float("-inf")).max(1)
        accepts = gain > scorer.rule.threshold
        accepted = torch.zeros_like(missing).scatter(1, best[:, None], accepts[:, None])
        current = current.updated(accepts, _candidate(after, best, m))
        missing = missing & ~accepted
        candidate = candidate & (evaluated >= 0) & ~accepted & accepts[:, None]
        rewards.append(evaluated)
        actions.append(torch.where(accepts, best, NO_ACTION).to(torch.int8))
    return Selection(current.logits, missing, torch.stack(actions, dim=1), torch.stack(rewards, dim=1))


def _candidate(after: Score, best: Tensor, m: int) -> Score:
    """Scores of the candidate ``best`` (B,) of each row, out of those of all candidates (M B,)."""

    def pick(values: Tensor) -> Tensor:
        return values.unflatten(0, (m, -1)).gather(0, best[None])[0]

    logits = after.logits.unflatten(0, (m, -1))
    index = best[None, :, None].expand(1, -1, logits.shape[2])
    return Score(pick(after.quality), pick(after.log_ics), logits.gather(0, index)[0])

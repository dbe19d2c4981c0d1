"""All supersets of the observed modalities at once, and the comparators of DyMo that are read off them
(docs/reference/dymo.md §4)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import comb
from zlib import crc32

import torch
from torch import Tensor

from models.dymo.backbone import Partial
from models.dymo.selection import NO_ACTION, Scorer, Selection, groups_by_missing
from models.dymo.similarity import Score
from utils.noise import hash_seed, row_uniform


@dataclass
class Lattice:
    """Every superset of the observed modalities, for all rows that miss ``k`` of them.

    Attributes:
        rows: (R,) of the batch.
        missing: (R, A, M) masks, A = 2^k; entry 0 is the observed set, the last one everything.
        score: of (R * A,) rows.
        reward: (R, A) of going from the observed set straight to this one; 0 for entry 0.
        allowed: (R, A) bool, masks that show no modality without a recovery; entry 0 is one of them. None = all.
    """

    rows: Tensor
    missing: Tensor
    score: Score
    reward: Tensor
    allowed: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        return self.score.logits.unflatten(0, self.missing.shape[:2])

    @property
    def size(self) -> int:
        """k, the number of missing modalities."""
        return self.missing.shape[1].bit_length() - 1

    @property
    def sizes(self) -> Tensor:
        """(R, A) number of recoveries that each mask shows."""
        return self.missing[:, :1].sum(-1) - self.missing.sum(-1)

    @property
    def fullest(self) -> Tensor:
        """(R,) entry that shows every recovery there is."""
        sizes = self.sizes
        return (sizes if self.allowed is None else torch.where(self.allowed, sizes, -1)).argmax(1)


def supersets(missing: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Masks of all supersets of the observed modalities, by their number.

    Args:
        missing: (R, M) bool, ``k`` True in every row.

    Returns:
        masks (R, A, M) bool, A = 2^k, the first one ``missing`` and the last one without a True; and which of a row's k
        missing modalities they show, (A, k) of 0 and 1.
    """
    device = missing.device
    columns = missing.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :k]
    codes = torch.arange(2**k, device=device)
    sizes = sum((codes >> i) & 1 for i in range(k)) if k else torch.zeros_like(codes)
    codes = codes[torch.as_tensor(sizes).argsort(stable=True)]
    added = (codes[:, None] >> torch.arange(k, device=device)) & 1
    masks = missing[:, None].expand(-1, len(codes), -1).clone()
    masks.scatter_(2, columns[:, None].expand(-1, len(codes), -1), added.expand(len(missing), -1, -1) == 0)
    return masks, added


@torch.inference_mode()
def exhaustive(
    scorer: Scorer,
    tokens: Tensor,
    missing: Tensor,
    partial: Partial | None = None,
    unrecoverable: Tensor | None = None,
) -> list[Lattice]:
    """All 2^k candidate subsets of every row; one :class:`Lattice` per number k of missing modalities.

    Args:
        tokens: (B, P, D) of the completed inputs. missing: (B, M) bool. partial, unrecoverable: as for
            :func:`models.dymo.selection.select`.
    """
    m = missing.shape[1]
    sequences = scorer.model.prepare(tokens, partial)
    lattices = []
    for k, rows in groups_by_missing(missing):
        base = missing[rows]
        masks, added = supersets(base, k)
        pieces: list[Score] = []
        # Entries are sorted by size, so each size is one contiguous block and one fusion call.
        start = 0
        for size in range(k + 1):
            width = comb(k, size)
            block = masks[:, start : start + width].flatten(0, 1)
            pieces.append(scorer(sequences, rows.repeat_interleave(width), block, m - k + size))
            start += width
        shape = (len(rows), -1)
        score_all = Score(
            torch.cat([p.quality.view(shape) for p in pieces], 1).flatten(),
            torch.cat([p.log_ics.view(shape) for p in pieces], 1).flatten(),
            torch.cat([p.logits.unflatten(0, shape) for p in pieces], 1).flatten(0, 1),
        )
        first = torch.arange(len(rows), device=missing.device).mul(len(added)).repeat_interleave(len(added))
        value = scorer.reward(score_all[first], score_all).view(len(rows), -1)
        value[:, 0] = 0
        allowed = None if unrecoverable is None else ~(unrecoverable[rows][:, None] & ~masks).any(-1)
        lattices.append(Lattice(rows, masks, score_all, value, allowed))
    return lattices


COMPARATORS = ("discard", "impute_all", "random", "best_subset", "oracle_subset")


@torch.inference_mode()
def compare(
    lattices: list[Lattice],
    selection: Selection,
    target: Tensor,
    names: tuple[str, ...],
    index: Tensor,
    seed: int = 0,
    scenario: str = "",
) -> dict[str, Selection]:
    """The comparators, all read off the same lattices.

    Subsets that show a modality without a recovery are left out.

    ``discard``: observed only. ``impute_all``: every recovery. ``random``: as many recoveries as DyMo accepted, drawn
    at random. ``best_subset``: the subset with the highest reward (none if no reward is positive).
    ``oracle_subset``: the subset that is right with the highest probability, if any is (an upper bound, uses labels).

    Args:
        target: (B,) labels, read by ``oracle_subset`` alone.
        index: (B,) row numbers.
        seed, scenario: with the row number the key of what ``random`` draws: the same in any batch, and independent
            between the seeds of a run and between scenarios.
    """
    results = {
        name: replace(
            selection,
            logits=torch.empty_like(selection.logits),
            final_missing=selection.final_missing.clone(),
            accepted=torch.full_like(selection.accepted, NO_ACTION),
            rewards=torch.full_like(selection.rewards, float("nan")),
            path=None,
        )
        for name in names
    }
    n_accepted = (selection.accepted >= 0).sum(1)
    for lattice in lattices:
        rows, (r, a) = lattice.rows, lattice.missing.shape[:2]
        every = torch.arange(r, device=rows.device)
        size = lattice.sizes
        allowed = torch.ones_like(size, dtype=torch.bool) if lattice.allowed is None else lattice.allowed
        for name in names:
            if name == "discard":
                choice = torch.zeros_like(every)
            elif name == "impute_all":
                choice = lattice.fullest
            elif name == "random":
                draws = row_uniform(index[rows], a, hash_seed(2025, seed, crc32(scenario.encode())))
                fits = (size == n_accepted[rows][:, None]) & allowed
                choice = torch.where(fits, draws, -1.0).argmax(1)
            elif name == "best_subset":
                choice = torch.where(allowed, lattice.reward, -torch.inf).argmax(1)
            else:
                truth = target[rows][:, None, None].expand(-1, a, 1)
                # Right before confident: the highest probability of the truth need not be the top one.
                right = lattice.logits.argmax(-1) == truth[..., 0]
                merit = lattice.logits.softmax(-1).gather(2, truth)[..., 0] + right
                choice = torch.where(allowed, merit, -1.0).argmax(1)
            results[name].logits[rows] = lattice.logits[every, choice]
            results[name].final_missing[rows] = lattice.missing[every, choice]
    return results

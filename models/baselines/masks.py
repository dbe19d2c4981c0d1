"""Modality dropout: which modalities training hides on top of those that the data lack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.errors import UserError
from utils.subsets import enumerate_subsets

KINDS = ("none", "bernoulli", "subsets", "count", "all", "one", "fewer")


@dataclass(frozen=True)
class TrainingMasks:
    """Modalities that training hides on top of those that the data lack.

    Attributes:
        kind: ``none``; ``bernoulli``: every modality with probability ``p``, independently; ``subsets``: ``k`` distinct
            non-empty subsets, uniformly; ``count``: keeps n modalities, n uniform on 1 .. M, uniformly chosen;
            ``all``: each of the 2^M - 1 subsets; ``one``: nothing or one modality, by ``shares``; ``fewer``: with
            probability ``p`` keeps k of the n that the row has, k uniform on 1 .. n - 1 (never ``per`` batch).
        shares: of nothing, of modality 0, of modality 1, ...; they sum to 1.
        per: ``row``: one draw per sample; ``batch``: one draw for the batch, as in the original.
    """

    kind: str = "none"
    p: float = 0.5
    k: int = 2
    per: str = "row"
    shares: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.per not in ("row", "batch"):
            raise ValueError(f"masks: kind is one of {', '.join(KINDS)} and per is row or batch, not {self}")
        if not 0 <= self.p < 1 or self.k < 1:
            raise ValueError(f"masks: p must be at least 0 and below 1 (it is {self.p}), k at least 1 (it is {self.k})")
        if self.kind == "fewer" and self.per == "batch":
            raise ValueError("masks: kind=fewer is drawn for every row, leave out per=batch")
        shares = self.shares
        if (self.kind == "one") != (shares is not None):
            raise ValueError("masks: kind=one needs shares, and no other kind takes them")
        if shares is not None and (min(shares) < 0 or abs(sum(shares) - 1) > 1e-6):
            raise ValueError(f"masks: shares {list(shares)} must not be negative and sum to 1")

    def draw_one(self, missing: Tensor, generator: torch.Generator) -> Tensor:
        """The mask (B, M) of a method that draws one per step, see :meth:`draw`.

        Raises:
            UserError: the kind draws several masks.
        """
        if self.kind == "all" or (self.kind == "subsets" and self.k > 1):
            raise UserError(
                f"masks.kind={self.kind} has several masks per step, of which this method takes one: set masks.kind="
                "count, or masks.kind=subsets with masks.k=1"
            )
        return self.draw(missing, generator)[0]

    def draw(self, missing: Tensor, generator: torch.Generator) -> Tensor:
        """Masks for one training batch.

        Args:
            missing: (B, M) bool, what the data lack.
            generator: on the CPU.

        Returns:
            (K, B, M) bool, True = missing: all of ``missing`` and more; a row that would lose everything keeps one of
            its modalities, uniformly chosen.
        """
        if self.kind == "fewer":
            drops = torch.rand(len(missing), 1, generator=generator) < self.p
            return torch.where(drops.to(missing.device), missing | fewer_of(missing, generator), missing)[None]
        b, m = missing.shape
        rows = b if self.per == "row" else 1
        if self.kind == "bernoulli":
            drawn = (torch.rand(rows, m, generator=generator) < self.p)[None]
        elif self.kind == "count":
            rank = torch.rand(rows, m, generator=generator).argsort(1).argsort(1)
            drawn = (rank >= torch.randint(1, m + 1, (rows, 1), generator=generator))[None]
        elif self.shares is not None:
            if len(self.shares) != m + 1:
                raise UserError(f"masks.shares has {len(self.shares)} values, {m} modalities need {m + 1}")
            picked = torch.multinomial(
                torch.tensor(self.shares, dtype=torch.float), rows, replacement=True, generator=generator
            )
            drawn = (picked[:, None] == torch.arange(1, m + 1))[None]
        elif self.kind == "none":
            drawn = torch.zeros(1, rows, m, dtype=torch.bool)
        else:
            subsets = enumerate_subsets(m)
            if self.kind == "all":
                drawn = subsets[:, None]
            else:
                picked = torch.rand(rows, len(subsets), generator=generator).argsort(1)[:, : self.k]
                drawn = subsets[picked].transpose(0, 1)
        priority = torch.rand(len(drawn), b, m, generator=generator).to(missing.device)
        hidden = drawn.to(missing.device) | missing
        priority = torch.where(missing, -1, priority)
        last = priority == priority.amax(-1, keepdim=True)
        return torch.where(hidden.all(-1, keepdim=True), missing | ~last, hidden)


def fewer_of(absent: Tensor, generator: torch.Generator) -> Tensor:
    """A mask (B, M) that keeps k of the n modalities of a row, k uniform on 1 .. n - 1; the only one if n is 1."""
    n = (~absent).sum(1).cpu()
    order = torch.where(absent.cpu(), 2.0, torch.rand(absent.shape, generator=generator)).argsort(1).argsort(1)
    drawn = 1 + (torch.rand(len(n), generator=generator) * (n - 1)).long()
    k = torch.minimum(drawn, (n - 1).clamp(min=1))
    return absent | (order >= k[:, None]).to(absent.device)

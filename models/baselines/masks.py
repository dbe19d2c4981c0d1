"""Modality dropout: masks drawn in training in addition to the missing modalities of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.errors import UserError
from utils.subsets import enumerate_subsets
from utils.transfer import on_host, to_device

KINDS = ("none", "bernoulli", "subsets", "count", "all", "one", "fewer")


@dataclass(frozen=True)
class TrainingMasks:
    """Modalities hidden in training in addition to those that the data lack.

    Attributes:
        kind: ``none``; ``bernoulli``: hide each modality with probability ``p``, independently; ``subsets``: ``k``
            distinct non-empty subsets, uniformly; ``count``: keep n random modalities, n uniform on 1 .. M; ``all``:
            all 2^M - 1 subsets; ``one``: hide no or one modality, with probabilities ``shares``; ``fewer``: with
            probability ``p``, keep k of the n modalities of a row, k uniform on 1 .. n - 1 (not with ``per=batch``).
        shares: probabilities of hiding none, modality 0, modality 1, ...; they sum to 1.
        per: ``row``: one draw per row; ``batch``: one draw per batch, as in the original.
    """

    kind: str = "none"
    p: float = 0.5
    k: int = 2
    per: str = "row"
    shares: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.per not in ("row", "batch"):
            raise ValueError(f"masks: kind must be one of {', '.join(KINDS)}, and per row or batch, not {self}")
        if not 0 <= self.p < 1 or self.k < 1:
            raise ValueError(f"masks: p must be at least 0 and below 1 (is {self.p}), and k at least 1 (is {self.k})")
        if self.kind == "fewer" and self.per == "batch":
            raise ValueError("masks: kind=fewer is drawn per row, set per=row")
        shares = self.shares
        if (self.kind == "one") != (shares is not None):
            raise ValueError("masks: kind=one needs shares, and no other kind takes them")
        if shares is not None and (min(shares) < 0 or abs(sum(shares) - 1) > 1e-6):
            raise ValueError(f"masks: shares {list(shares)} must not be negative and sum to 1")

    def draw_one(self, missing: Tensor, generator: torch.Generator) -> Tensor:
        """Mask (B, M) for methods that draw one per step, see :meth:`draw`.

        Raises:
            UserError: the kind draws several masks.
        """
        if self.kind == "all" or (self.kind == "subsets" and self.k > 1):
            raise UserError(
                f"masks.kind={self.kind} draws several masks per step, but this method takes one: set "
                "masks.kind=count, or masks.kind=subsets with masks.k=1"
            )
        return self.draw(missing, generator)[0]

    def draw(self, missing: Tensor, generator: torch.Generator) -> Tensor:
        """Masks for one training batch.

        Args:
            missing: (B, M) bool, missing modalities of the data.
            generator: on the CPU.

        Returns:
            (K, B, M) bool, True = missing, including ``missing``. A row that would lose all its modalities keeps a
            random one.
        """
        if self.kind == "fewer":
            is_reduced = to_device(torch.rand(len(missing), 1, generator=generator) < self.p, missing.device)
            return torch.where(is_reduced, missing | fewer_of(missing, generator), missing)[None]
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
        priority = torch.rand(len(drawn), b, m, generator=generator)
        priority, hidden = to_device(priority, missing.device), to_device(drawn, missing.device) | missing
        priority = torch.where(missing, -1, priority)
        last = priority == priority.amax(-1, keepdim=True)
        return torch.where(hidden.all(-1, keepdim=True), missing | ~last, hidden)


def fewer_of(absent: Tensor, generator: torch.Generator) -> Tensor:
    """Mask (B, M) that keeps k of the n modalities of a row, k uniform on 1 .. n - 1; a single one is kept."""
    missing = on_host(absent)
    n = (~missing).sum(1)
    order = torch.where(missing, 2.0, torch.rand(absent.shape, generator=generator)).argsort(1).argsort(1)
    drawn = 1 + (torch.rand(len(n), generator=generator) * (n - 1)).long()
    k = torch.minimum(drawn, (n - 1).clamp(min=1))
    return absent | to_device(order >= k[:, None], absent.device)

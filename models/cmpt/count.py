"""Parameter counts of CMPT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Count:
    """Numbers of trained parameters, and the ``total`` with frozen ones."""

    adapters: int
    proxies: int
    head: int
    projections: int
    total: int

    @property
    def trained(self) -> int:
        return self.adapters + self.proxies + self.head + self.projections


def count(model: Any) -> Count:
    """Count the parameters of a :class:`models.cmpt.cmpt.CMPT`.

    Raises:
        AssertionError: other parameters are trained.
    """

    def trained(*parts: nn.Module | None) -> int:
        return sum(p.numel() for part in parts if part is not None for p in part.parameters() if p.requires_grad)

    counted = Count(
        adapters=trained(*(model.encoder(i).network for i in range(len(model.modalities)))),
        proxies=trained(model.proxies, model.positions),
        head=trained(model.classifier),
        projections=trained(model.projections, model.confidence),
        total=sum(p.numel() for p in model.parameters()),
    )
    assert counted.trained == trained(model), "only adapters, proxies, projections and the head may be trained"
    return counted


def describe(counted: Count) -> str:
    """Format the numbers of trained parameters as one line."""
    parts = {
        "adapters": counted.adapters,
        "proxies": counted.proxies,
        "projections": counted.projections,
        "head": counted.head,
    }
    listed = ", ".join(f"{name} {n:,}" for name, n in parts.items() if n)
    return f"trains {counted.trained:,} of {counted.total:,} parameters ({listed})"

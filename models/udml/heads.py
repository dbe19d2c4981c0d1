"""The four ways in which UDML turns the features of all modalities into logits (docs/reference/udml.md §1.7).

A head is called with the features (B, M, D) and with which of them count (B, M), so that the fused logits, those of one
modality alone and those without one modality come from the same weights: all count, one counts, all but one count. For
two modalities they are the released ones; how they go on for more is ours.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor, nn


class ConcatHead(nn.Module):
    """A linear layer on the concatenation; what does not count is zero."""

    def __init__(self, modalities: int, width: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(modalities * width, classes)

    def forward(self, features: Tensor, counts: Tensor) -> Tensor:
        return self.linear(torch.where(counts[..., None], features, 0).flatten(1))


class SumHead(nn.Module):
    """A linear layer a modality; the logits of those that count are added."""

    def __init__(self, modalities: int, width: int, classes: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(width, classes) for _ in range(modalities))

    def forward(self, features: Tensor, counts: Tensor) -> Tensor:
        logits = torch.stack([f(z) for f, z in zip(self.linears, features.unbind(1), strict=True)], dim=1)
        return torch.where(counts[..., None], logits, 0).sum(1)


class GatedHead(nn.Module):
    """The last modality that counts, times the sigmoids of the others that do; one alone is its own gate."""

    def __init__(self, modalities: int, width: int, classes: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(width, width) for _ in range(modalities))
        self.out = nn.Linear(width, classes)

    def forward(self, features: Tensor, counts: Tensor) -> Tensor:
        hidden = torch.stack([f(z) for f, z in zip(self.linears, features.unbind(1), strict=True)], dim=1)
        last = counts & (counts.flip(1).cumsum(1).flip(1) == 1)
        alone = counts.sum(1, keepdim=True) == 1
        gates = torch.where((counts & (~last | alone))[..., None], hidden.sigmoid(), 1).prod(1)
        return self.out(gates * torch.where(last[..., None], hidden, 0).sum(1))


class BilinearHead(nn.Module):
    """A bilinear form of two modalities (called FiLM in the release), the mean over the pairs that count, then a linear
    layer; one alone is paired with itself. D^3 parameters: 134 million at width 512."""

    def __init__(self, modalities: int, width: int, classes: int) -> None:
        super().__init__()
        self.pairs = list(combinations(range(modalities), 2))
        self.bilinear = nn.Bilinear(width, width, width)
        self.out = nn.Linear(width, classes)

    def forward(self, features: Tensor, counts: Tensor) -> Tensor:
        features = torch.where(counts[..., None], features, 0)
        total, number = torch.zeros_like(features[:, 0]), torch.zeros_like(counts[:, :1], dtype=features.dtype)
        for i, j in self.pairs:
            both = (counts[:, i] & counts[:, j])[:, None]
            total = total + torch.where(both, self.bilinear(features[:, i], features[:, j]), 0)
            number = number + both
        single = features.sum(1)  # of rows where one counts
        hidden = torch.where(number > 0, total / number.clamp(min=1), self.bilinear(single, single))
        return self.out(hidden)


HEADS = {"concat": ConcatHead, "sum": SumHead, "gated": GatedHead, "bilinear": BilinearHead}

"""The four fusion heads of UDML (docs/reference/udml.md §1.7).

A head maps features (B, M, D) and a mask (B, M) bool of the modalities that count to logits (B, C). The fused logits,
those of a single modality and those without one modality come from the same weights. For two modalities the heads are
the released ones; the extension to more is ours.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor, nn


class ConcatHead(nn.Module):
    """A linear layer on the concatenated features; those that do not count are zero."""

    def __init__(self, modalities: int, width: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(modalities * width, classes)

    def forward(self, features: Tensor, counts: Tensor) -> Tensor:
        return self.linear(torch.where(counts[..., None], features, 0).flatten(1))


class SumHead(nn.Module):
    """Sum of the logits of one linear layer per modality, over those that count."""

    def __init__(self, modalities: int, width: int, classes: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(width, classes) for _ in range(modalities))

    def forward(self, features: Tensor, counts: Tensor) -> Tensor:
        logits = torch.stack([f(z) for f, z in zip(self.linears, features.unbind(1), strict=True)], dim=1)
        return torch.where(counts[..., None], logits, 0).sum(1)


class GatedHead(nn.Module):
    """The last modality that counts times the sigmoids of the others that count; a single one gates itself."""

    def __init__(self, modalities: int, width: int, classes: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(width, width) for _ in range(modalities))
        self.out = nn.Linear(width, classes)

    def forward(self, features: Tensor, counts: Tensor) -> Tensor:
        hidden = torch.stack([f(z) for f, z in zip(self.linears, features.unbind(1), strict=True)], dim=1)
        is_last = counts & (counts.flip(1).cumsum(1).flip(1) == 1)
        is_single = counts.sum(1, keepdim=True) == 1
        gates = torch.where((counts & (~is_last | is_single))[..., None], hidden.sigmoid(), 1).prod(1)
        return self.out(gates * torch.where(is_last[..., None], hidden, 0).sum(1))


class BilinearHead(nn.Module):
    """A linear layer on the mean over the pairs that count of a bilinear form (called FiLM in the release); a single
    modality is paired with itself. D^3 parameters: 134 million at width 512."""

    def __init__(self, modalities: int, width: int, classes: int) -> None:
        super().__init__()
        self.pairs = list(combinations(range(modalities), 2))
        self.bilinear = nn.Bilinear(width, width, width)
        self.out = nn.Linear(width, classes)

    def forward(self, features: Tensor, counts: Tensor) -> Tensor:
        features = torch.where(counts[..., None], features, 0)
        total, number = torch.zeros_like(features[:, 0]), torch.zeros_like(counts[:, :1], dtype=features.dtype)
        for i, j in self.pairs:
            is_pair = (counts[:, i] & counts[:, j])[:, None]
            total = total + torch.where(is_pair, self.bilinear(features[:, i], features[:, j]), 0)
            number = number + is_pair
        single = features.sum(1)  # (B, D), the feature of rows with one modality that counts
        hidden = torch.where(number > 0, total / number.clamp(min=1), self.bilinear(single, single))
        return self.out(hidden)


HEADS = {"concat": ConcatHead, "sum": SumHead, "gated": GatedHead, "bilinear": BilinearHead}

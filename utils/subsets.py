"""Non-empty subsets of M modalities, in the order of the original files: by size, then lexicographically."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import torch
from torch import Tensor

MAX_MODALITIES = 16


def enumerate_subsets(m: int) -> Tensor:
    """Masks (S, M) bool of all subsets, S = 2^M - 1, True = missing; row 0 has modality 0 alone, the last row all.

    Raises:
        ValueError: M outside 1..16 (the table would not fit).
    """
    if not 1 <= m <= MAX_MODALITIES:
        raise ValueError(f"subsets are enumerated for 1 to {MAX_MODALITIES} modalities, not {m}")
    return _table(m).clone()


@cache
def _table(m: int) -> Tensor:
    observed = (torch.tensor(list(combinations(range(m), size))) for size in range(1, m + 1))
    return torch.cat([torch.ones(len(columns), m, dtype=torch.bool).scatter(1, columns, False) for columns in observed])


def subset_lookup(m: int) -> Tensor:
    """Subset ids (2^M,) int64 by :func:`mask_code`; entry 0 (nothing observed) is -1."""
    masks = enumerate_subsets(m)
    table = torch.full((2**m,), -1, dtype=torch.long)
    table[mask_code(masks)] = torch.arange(len(masks))
    return table


def mask_code(missing: Tensor) -> Tensor:
    """Code sum_i observed_i 2^i of masks: (..., M) bool, True = missing -> (...,) int64."""
    weights = 2 ** torch.arange(missing.shape[-1], device=missing.device)
    return ((~missing).long() * weights).sum(-1)


def draw_subsets(m: int, k: int, generator: torch.Generator) -> Tensor:
    """Draw k distinct subsets (k, M) bool, uniformly without replacement (docs/reference/datasets.md §12.2.4)."""
    masks = enumerate_subsets(m)
    return masks[torch.randperm(len(masks), generator=generator)[:k]]

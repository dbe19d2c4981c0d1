"""Random numbers that depend on the row they are for, and on nothing else."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014) on int64, whose products wrap."""

    def logical_shift(v: Tensor, bits: int) -> Tensor:
        return (v >> bits) & ((1 << (64 - bits)) - 1)

    x = (x ^ logical_shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ logical_shift(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ logical_shift(x, 31)


def row_uniform(index: Tensor, width: int, seed: int) -> Tensor:
    """Uniform noise on (0, 1], float64 (B, width), keyed by row number: the same row gets the same noise in any batch.

    Args:
        index: (B,) int64 row numbers.
        seed: of the whole table.
    """
    golden = -0x61C8864680B583EB
    column = torch.arange(width, device=index.device)
    start = _mix(torch.tensor(seed, device=index.device) * golden)
    state = _mix(_mix(index * golden + start)[:, None] + column * golden)
    # The top 53 bits, as every conversion to double does; (0, 1] keeps logarithms finite.
    return (((state >> 11) & ((1 << 53) - 1)).double() + 1) / 2.0**53


def row_normal(index: Tensor, width: int, seed: int) -> Tensor:
    """Standard normal noise (B, width), see :func:`row_uniform`."""
    uniform = row_uniform(index, 2 * width, seed)
    radius = (-2 * uniform[:, :width].log()).sqrt()
    return (radius * (2 * math.pi * uniform[:, width:]).cos()).float()


def row_laplace(index: Tensor, width: int, seed: int) -> Tensor:
    """Standard Laplace noise (B, width), the difference of two exponentials, see :func:`row_uniform`."""
    uniform = row_uniform(index, 2 * width, seed)
    return (uniform[:, :width].log() - uniform[:, width:].log()).float()

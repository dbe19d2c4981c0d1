"""Random numbers keyed by row number, so that a row gets the same draws in any batch and on any device."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor


def hash_seed(*parts: int) -> int:
    """Hash integers to one 63-bit seed."""
    return int(np.random.SeedSequence([p & 0xFFFFFFFF for p in parts]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _mix(x: Any) -> Any:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014) on int64 tensors or arrays, whose products wrap."""

    def logical_shift(v: Any, bits: int) -> Any:
        return (v >> bits) & ((1 << (64 - bits)) - 1)

    x = (x ^ logical_shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ logical_shift(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ logical_shift(x, 31)


def _row_bits(index: Tensor, width: int, seed: int) -> Tensor:
    """Random int64 (B, width), keyed by row number and column; the same on every device."""
    golden = -0x61C8864680B583EB
    column = torch.arange(width, device=index.device)
    start = int(_mix(np.array([seed]) * golden)[0])  # on the host: no GPU waits for a number
    return _mix(_mix(index * golden + start)[:, None] + column * golden)


def row_uniform(index: Tensor, width: int, seed: int) -> Tensor:
    """Uniform noise on (0, 1], float64 (B, width), keyed by row number.

    Args:
        index: (B,) int64 row numbers.
        seed: of all rows.
    """
    state = _row_bits(index, width, seed)
    # The top 53 bits give a double; (0, 1] keeps logarithms finite.
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


@cache
def _quantiles(device: torch.device) -> Tensor:
    """65,536 equally likely values of a standard normal distribution, (65536,) float32.

    They are the middles of 65,536 equal parts of the distribution, scaled to a variance of 1, and computed on the CPU,
    so that they are the same on every device.
    """
    middles = (torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16
    values = torch.special.ndtri(middles)
    return (values / values.square().mean().sqrt()).float().to(device)


def row_normal_16bit(index: Tensor, width: int, seed: int) -> Tensor:
    """Standard normal noise (B, width) float32 with 65,536 different values, for complete images and spectrograms.

    Made of integers and one look-up, it is bit for bit the same on CPU and GPU, which a logarithm is not, and one hash
    gives four values. See :func:`row_uniform`.
    """
    shifts = torch.arange(0, 64, 16, device=index.device)
    words = (_row_bits(index, -(-width // 4), seed)[..., None] >> shifts) & 0xFFFF
    return _quantiles(index.device)[words.flatten(1)[:, :width]]

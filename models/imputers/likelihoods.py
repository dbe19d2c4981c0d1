"""Likelihoods of the decoders, one value per row (docs/reference/dymo.md §5.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LAPLACE_SCALE = 0.75


def laplace_nll(x: Tensor, location: Tensor) -> Tensor:
    """-log Laplace(x; location, 0.75), summed over pixels: (B, ...) -> (B,)."""
    error = (location - x).abs() / LAPLACE_SCALE
    return error.flatten(1).sum(1) + x[0].numel() * math.log(2 * LAPLACE_SCALE)


def text_probabilities(log_softmax: Tensor, reference: bool) -> Tensor:
    """Probabilities of the symbols (..., K) from a decoder's log-softmax l.

    Args:
        reference: l_k / sum_j l_j, which the original uses for training and decoding: the symbol with the smallest
            softmax is the most probable one. Decoders trained so must be read so.
    """
    return log_softmax / log_softmax.sum(-1, keepdim=True) if reference else log_softmax.exp()


def text_nll(x: Tensor, log_softmax: Tensor, reference: bool) -> Tensor:
    """-log probability of one-hot text (B, L, K), summed over positions -> (B,); a row without a symbol counts 0.

    The reference's probabilities are clamped to [eps, 1 - eps] of float32, as the distributions of PyTorch do.
    """
    if reference:
        eps = torch.finfo(log_softmax.dtype).eps
        log_p = text_probabilities(log_softmax, True).clamp(eps, 1 - eps).log()
    else:
        log_p = log_softmax
    return -(x * log_p).flatten(1).sum(1)

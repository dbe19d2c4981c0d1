"""Likelihoods of the decoders, one value per row (docs/reference/dymo.md §5.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LAPLACE_SCALE = 0.75


def laplace_nll(x: Tensor, location: Tensor) -> Tensor:
    """-log Laplace(x; location, 0.75), summed over pixels: (B, ...) -> (B,)."""
    error = (location - x).abs() / LAPLACE_SCALE
    return error.flatten(1).sum(1) + x[0].numel() * math.log(2 * LAPLACE_SCALE)


def laplace_cell_nll(x: Tensor, location: Tensor) -> Tensor:
    """-log Laplace(x; location, 0.75) of every cell, of the shape of ``x``."""
    return (location - x).abs() / LAPLACE_SCALE + math.log(2 * LAPLACE_SCALE)


def table_cell_nll(x: Tensor, output: Tensor, cardinalities: Sequence[int]) -> Tensor:
    """Negative log-likelihood of every cell (B, F) of a table: categorical columns, then Laplacian ones.

    Args:
        x: (B, F), codes first.
        output: logits of all levels of the categorical columns, then locations of the others.
    """
    n = len(cardinalities)
    *scores, numbers = output.split([*cardinalities, x.shape[1] - n], dim=1)
    columns = [F.cross_entropy(s, x[:, i].long(), reduction="none")[:, None] for i, s in enumerate(scores)]
    return torch.cat([*columns, laplace_cell_nll(x[:, n:], numbers)], dim=1)


def most_likely_cells(output: Tensor, cardinalities: Sequence[int], columns: int) -> Tensor:
    """The most likely table (B, F) under an ``output`` as of :func:`table_cell_nll`; F = ``columns``."""
    *scores, numbers = output.split([*cardinalities, columns - len(cardinalities)], dim=1)
    return torch.cat([*(s.argmax(1, keepdim=True).to(numbers.dtype) for s in scores), numbers], dim=1)


def token_nll(ids: Tensor, log_softmax: Tensor) -> Tensor:
    """-log probability of token ids (B, L) under (B, L, vocabulary), padding included, of every position (B, L)."""
    return -log_softmax.gather(2, ids.long()[..., None])[..., 0]


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

"""Probabilistic representation of UDML: every token of a modality is a Gaussian."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.layers.batch_norm import BatchNorm1d
from models.udml.weights import EPSILON


class Gaussian(NamedTuple):
    """Tokens of one modality as means and log variances (B, T, N, D), with T frames of a clip, else T = 1.

    ``log_variance`` is None without a probabilistic representation.
    """

    mean: Tensor
    log_variance: Tensor | None


class ProbabilisticHead(nn.Module):
    """Tokens (R, N, D_in) -> mean and log variance (R, N, D), by one linear layer (a 1x1 convolution of the feature
    map) and one batch normalisation over rows and tokens per output.

    Args:
        probabilistic: False returns the mean and None.
        max_deviation: upper bound of the standard deviations, or None.
    """

    def __init__(self, width_in: int, width: int, probabilistic: bool, max_deviation: float | None) -> None:
        super().__init__()
        names = ("mean", "log_variance") if probabilistic else ("mean",)
        self.linears = nn.ModuleDict({name: nn.Linear(width_in, width) for name in names})
        self.norms = nn.ModuleDict({name: BatchNorm1d(width) for name in names})
        self.bound = None if max_deviation is None else 2 * math.log(max_deviation)
        for linear in self.linears.values():
            assert isinstance(linear, nn.Linear)
            nn.init.kaiming_normal_(linear.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        flat = tokens.flatten(0, 1)
        parts = {name: self.norms[name](f(flat)).unflatten(0, tokens.shape[:2]) for name, f in self.linears.items()}
        log_variance = parts.get("log_variance")
        if log_variance is not None and self.bound is not None:
            log_variance = log_variance.clamp(max=self.bound)
        return parts["mean"], log_variance


def divergence(gaussian: Gaussian, prior_variance: Tensor) -> Tensor:
    """KL divergence of N(mean, variance) from N(0, ``prior_variance``) in float32, summed over the tokens of a frame
    and their coordinates, averaged over frames.

    Args:
        gaussian: (B, T, N, D).
        prior_variance: (B,).

    Returns:
        (B,).
    """
    assert gaussian.log_variance is not None
    with torch.autocast(gaussian.mean.device.type, enabled=False):
        prior = prior_variance.float()[:, None, None, None]
        variance, mean = gaussian.log_variance.float().exp(), gaussian.mean.float()
        elementwise = 0.5 * ((variance + mean.square()) / prior - ((variance + EPSILON) / prior).log() - 1)
        return elementwise.sum((2, 3)).mean(1)

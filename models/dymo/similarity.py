"""Intra-class similarity (ICS), its calibration and the reward of DyMo (ICLR 2026; docs/reference/dymo.md §4.1).

ICS is the two-sided tail of a zero-mean normal fitted to the distances of a class to its prototype:
``p = 2 (1 - Phi(d / sigma))``. Everything here works on log p, exact in the far tail, where the original's float32
form has no digits left; ``tail='float32'`` restores that form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.dymo.prototypes import COSINE, prototype_logits

TAILS = ("robust", "float32")
CALIBRATIONS = ("log_ratio", "ratio", "none")
REWARDS = ("posterior", "log")
EPSILON = 1e-9
# Below this probability the original's 2 (1 - cdf) in float32 has lost all digits.
FLOAT32_RESOLUTION = 2.0**-23


def log_ics(distance: Tensor, sigma: Tensor, tail: str = "robust") -> Tensor:
    """log of 2 (1 - Phi(d / sigma)).

    Args:
        distance: (...,) >= 0, in feature units: 1 - <z, c> for cosine, |z - c| (not squared) for Euclidean.
        sigma: (...,) > 0, root mean square of the class's distances.
        tail: ``robust`` uses log-erfc; ``float32`` computes the original expression, which is -inf beyond 5.4 sigma.
    """
    t = distance / sigma
    if tail == "robust":
        return math.log(2) + torch.special.log_ndtr(-t)
    cdf = 0.5 * (1 + torch.erf(t.float() / math.sqrt(2)))
    return torch.log(2 * (1 - cdf))


def calibration(log_p: Tensor, log_p_new: Tensor, kind: str, tail: str = "robust") -> Tensor:
    """G: 1 where the similarity did not fall, else how far it fell.

    ``log_ratio``: ln p / ln(p' + 1e-9). ``ratio``: p' / (p + 1e-9). ``none``: 1. With ``tail='robust'`` the 1e-9, which
    only guards float32, is left out where float32 has no digits (G stays a strict function of how far it fell).

    Args:
        log_p: log ICS before; log_p_new: after adding the candidate.
    """
    one = torch.ones_like(log_p_new)
    if kind == "none":
        return one
    p, p_new = log_p.exp(), log_p_new.exp()
    if kind == "log_ratio":
        g = log_p / torch.log(p_new + EPSILON)
        if tail == "robust":
            g = torch.where(p_new < FLOAT32_RESOLUTION, log_p / log_p_new, g)
    else:
        g = p_new / (p + EPSILON)
        if tail == "robust":
            g = torch.where(p < FLOAT32_RESOLUTION, (log_p_new - log_p).exp(), g)
    return torch.where(log_p_new < log_p, g, one)


@dataclass
class Score:
    """Scores of R sets of visible modalities: ``quality`` (R,), ``log_ics`` (R,), ``logits`` (R, C)."""

    quality: Tensor
    log_ics: Tensor
    logits: Tensor

    def __getitem__(self, rows: Tensor) -> Score:
        return Score(self.quality[rows], self.log_ics[rows], self.logits[rows])

    def updated(self, where: Tensor, other: Score) -> Score:
        """The scores of ``other`` in the rows ``where`` (R,) bool."""
        return Score(
            torch.where(where, other.quality, self.quality),
            torch.where(where, other.log_ics, self.log_ics),
            torch.where(where[:, None], other.logits, self.logits),
        )


def score(
    logits: Tensor,
    features: Tensor,
    subset: Tensor,
    prototypes: Tensor,
    sigma: Tensor,
    overall: Tensor,
    metric: str,
    temperature: float = 0.1,
    tail: str = "robust",
) -> Score:
    """Quality and ICS of rows.

    Args:
        logits: (R, C) of the linear classifier; its argmax is the class whose similarity is measured.
        features: (R, D).
        subset: (R,) id of the visible subset.
        prototypes: (S, C, D); sigma: (S, C); overall: (C, D).
    """
    quality = torch.softmax(prototype_logits(features, overall, metric, temperature), dim=-1).amax(-1)
    predicted = logits.argmax(-1)
    centre = prototypes[subset, predicted]
    if metric == COSINE:
        distance = 1 - (features * centre).sum(-1)
    else:
        distance = torch.linalg.vector_norm(features - centre, dim=-1)
    return Score(quality, log_ics(distance, sigma[subset, predicted], tail), logits)


def reward(before: Score, after: Score, calibrate: str, kind: str = "posterior", tail: str = "robust") -> Tensor:
    """R = q' G - q (``posterior``), or log(q' G) - log q (``log``)."""
    g = calibration(before.log_ics, after.log_ics, calibrate, tail)
    if kind == "posterior":
        return after.quality * g - before.quality
    return (after.quality * g).log() - before.quality.log()

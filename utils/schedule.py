"""Learning-rate schedules that PyTorch does not have in one piece, and the choice of one by name."""

from __future__ import annotations

import math

import torch

from utils.errors import UserError


def warmup_cosine(
    optimizer: torch.optim.Optimizer, warmup_epochs: int, max_epochs: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up over ``warmup_epochs`` (the first epoch has a share 1 / warmup of the rate), then half a cosine
    down to zero after ``max_epochs``; stepped once an epoch."""

    def factor(epoch: int) -> float:
        if epoch < warmup_epochs:
            return (epoch + 1) / warmup_epochs
        done = (epoch - warmup_epochs) / max(1, max_epochs - warmup_epochs)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def warmup_polynomial(
    optimizer: torch.optim.Optimizer,
    steps_per_epoch: int,
    warmup_epochs: int,
    max_epochs: int,
    power: float = 0.9,
    warmup_factor: float = 0.1,
    ramp: bool = False,
) -> torch.optim.lr_scheduler.LambdaLR:
    """``warmup_factor`` times the rate for ``warmup_epochs``, then (1 - t)^power, t from 0 to 1 at the end of
    ``max_epochs``; stepped every step.

    Args:
        ramp: rise from ``warmup_factor`` to 1 during the warm-up.
    """
    warmup, total = warmup_epochs * steps_per_epoch, max_epochs * steps_per_epoch

    def factor(step: int) -> float:
        if step < warmup:
            return warmup_factor + (1 - warmup_factor) * step / warmup if ramp else warmup_factor
        return max(0.0, 1 - (step - warmup) / max(1, total - warmup)) ** power

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def by_name(
    optimizer: torch.optim.Optimizer, name: str | None, max_epochs: int
) -> torch.optim.lr_scheduler.LRScheduler | None:
    """``cosine``: half a cosine down to zero after ``max_epochs``; ``step``: a tenth of the rate after 70 % of them;
    None: a constant rate."""
    if name is None:
        return None
    if name == "step":
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, [round(0.7 * max_epochs)], gamma=0.1)
    if name != "cosine":
        raise UserError(f"scheduler.name={name}: must be null, cosine or step")
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max_epochs)

"""Learning-rate schedules that PyTorch lacks, and schedules by name."""

from __future__ import annotations

import math
from typing import Any

import torch

from utils.errors import UserError


def warmup_cosine(
    optimizer: torch.optim.Optimizer, warmup_epochs: int, max_epochs: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up over ``warmup_epochs``, then half a cosine down to zero after ``max_epochs``; stepped per epoch.

    The first epoch has the rate / ``warmup_epochs``.
    """

    def factor(epoch: int) -> float:
        if epoch < warmup_epochs:
            return (epoch + 1) / warmup_epochs
        progress = (epoch - warmup_epochs) / max(1, max_epochs - warmup_epochs)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

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
    """Warm-up at ``warmup_factor`` times the rate, then polynomial decay (1 - t)^power; stepped per step.

    t rises from 0 after ``warmup_epochs`` to 1 after ``max_epochs``.

    Args:
        ramp: raise the factor from ``warmup_factor`` to 1 during the warm-up.
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
    """Build a schedule by name.

    Args:
        name: ``cosine``, half a cosine down to zero after ``max_epochs``; ``step``, a tenth of the rate after 70 % of
            the epochs; None, a constant rate.
    """
    if name is None:
        return None
    if name == "step":
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, [round(0.7 * max_epochs)], gamma=0.1)
    if name != "cosine":
        raise UserError(f"scheduler.name={name}: must be null, cosine or step")
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max_epochs)


class Plateau:
    """Reduce the learning rates when a validation loss stops falling.

    Lightning steps PyTorch's scheduler after it writes the checkpoint, so that a resumed run would differ; methods step
    this one before.

    Args:
        patience: number of epochs without improvement after which the rates are reduced, repeatedly.
        factor: of the reduction.
        min_delta: an improvement is lower by more than this.
        warmup_epochs: epochs at the start that are ignored.
        recreate: clear the state of the optimiser at every reduction.

    Raises:
        ValueError: an argument that is out of range.
    """

    def __init__(
        self,
        patience: int = 25,
        factor: float = 0.1,
        min_delta: float = 1e-3,
        warmup_epochs: int = 0,
        recreate: bool = False,
    ) -> None:
        if patience < 1 or not 0 < factor < 1 or min_delta < 0 or warmup_epochs < 0:
            raise ValueError(
                f"plateau: patience={patience} must be at least 1, factor={factor} between 0 and 1, "
                f"min_delta={min_delta} and warmup_epochs={warmup_epochs} not negative"
            )
        self.patience, self.factor, self.min_delta = patience, factor, min_delta
        self.warmup_epochs, self.recreate = warmup_epochs, recreate
        self.best, self.stale = math.inf, 0

    def step(self, optimizer: torch.optim.Optimizer, loss: float, epoch: int) -> None:
        """Update the rates after the validation of ``epoch``, counted from 0."""
        if epoch < self.warmup_epochs:
            return
        if loss < self.best - self.min_delta:
            self.best, self.stale = loss, 0
            return
        self.stale += 1
        if self.stale % self.patience == 0:
            for group in optimizer.param_groups:
                group["lr"] *= self.factor
            if self.recreate:
                optimizer.state.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "stale": self.stale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.stale = float(state["best"]), int(state["stale"])

"""Losses that are means over rows, in one process or several."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn


class RowLosses(pl.LightningModule):
    """Module whose training loss is a mean over rows.

    Attributes:
        rows_of_step: rows that the last training loss is a mean over, 0 for a filler. DDP averages gradients over
            processes; :class:`trainers.callbacks.RowShares` weights them by this number, so that every row counts once.
        sums_over_batch: what is minimised is the sum over the rows instead.
    """

    sums_over_batch: bool = False
    rows_of_step: int = 0

    @property
    def processes(self) -> int:
        """Number of processes that train together; 1 outside of a training."""
        return 1 if self._trainer is None else self.trainer.world_size

    def log_losses(self, stage: str, losses: dict[str, Tensor], n: int, **options: Any) -> None:
        """Log ``<stage>_<name>`` of every loss, as means over the rows of an epoch.

        Args:
            losses: means over the rows of a batch.
            n: number of these rows that count.
            options: of :meth:`log_dict`.
        """
        if stage == "train":
            self.rows_of_step = n
        values = {f"{stage}_{name}": loss.detach() for name, loss in losses.items()}
        # Lightning divides by the mean number of rows per process, rounded down: multiples of the processes stay exact.
        n *= self.processes
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=n, sync_dist=True, **options)

    def step_without_rows(self) -> Tensor | None:
        """What ``training_step`` returns without a row to learn from: None, and in distributed training, where the
        other processes wait for the gradients, :func:`zero_loss`."""
        self.rows_of_step = 0
        return zero_loss(self) if self.processes > 1 else None


def zero_loss(*modules: nn.Module) -> Tensor:
    """0 with a zero gradient for every trained parameter, as distributed training requires."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    return sum((0 * p.sum() for p in parameters), torch.zeros((), device=parameters[0].device if parameters else None))

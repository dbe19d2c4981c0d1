"""Losses that are means over rows, in one process or several."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch import distributed as dist


class RowLosses(pl.LightningModule):
    """Module whose training loss is a mean over rows.

    Attributes:
        rows_of_step: rows that the last training loss is a mean over, 0 for a filler. DDP averages gradients over
            processes; :class:`trainers.callbacks.RowShares` weights them by this number, so that every row counts once.
        sums_over_batch: whether the sum over the rows is minimised instead.
    """

    sums_over_batch: bool = False
    rows_of_step: int = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._sums: dict[str, dict[str, Tensor]] = {}  # stage -> loss -> (sum over rows, rows), with several processes

    @property
    def processes(self) -> int:
        """Number of processes that train together; 1 outside of a training."""
        return 1 if self._trainer is None else self.trainer.world_size

    def log_losses(self, stage: str, losses: dict[str, Tensor], n: int) -> None:
        """Log ``<stage>_<name>`` of every loss, as means over the rows of an epoch.

        Args:
            losses: means over the rows of a batch.
            n: number of these rows that count.
        """
        if stage == "train":
            self.rows_of_step = n
        if not n:
            return
        if self.processes == 1:
            values = {f"{stage}_{name}": loss.detach() for name, loss in losses.items()}
            self.log_dict(values, on_step=False, on_epoch=True, batch_size=n)
            return
        sums = self._sums.setdefault(stage, {})
        for name, loss in losses.items():
            pair = torch.stack([loss.detach().double() * n, torch.full((), n, dtype=torch.double, device=loss.device)])
            sums[name] = sums[name] + pair if name in sums else pair

    def log_common_losses(self, stage: str) -> None:
        """Log the losses of an epoch over the rows of all processes, any of which may have had no row.

        Lightning would wait for ever for a value that one process did not log, and rounds numbers of rows.
        """
        sums = self._sums.pop(stage, {})
        names: list[list[str]] = [[] for _ in range(self.processes)]
        dist.all_gather_object(names, list(sums))
        for name in dict.fromkeys(chain(*names)):
            pair = sums.get(name, torch.zeros(2, dtype=torch.double, device=self.device))
            total, n = self.trainer.strategy.reduce(pair, reduce_op="sum")
            self.log(f"{stage}_{name}", (total / n).float())

    def step_without_rows(self) -> Tensor | None:
        """Return the loss of a step without a row to learn from: None, and in distributed training, where the other
        processes wait for the gradients, :func:`zero_loss`."""
        self.rows_of_step = 0
        return zero_loss(self) if self.processes > 1 else None


def zero_loss(*modules: nn.Module) -> Tensor:
    """0 with a zero gradient for every trained parameter, as distributed training requires."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    return sum((0 * p.sum() for p in parameters), torch.zeros((), device=parameters[0].device if parameters else None))

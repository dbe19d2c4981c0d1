"""Times of a few batches, and what a complete stage takes by them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice, pairwise
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch

BATCHES = 3  # of which the first warms up
EPOCHS = 2
ENOUGH = 10.0  # seconds after which no further batch is predicted, and no further epoch is trained
Clock = Callable[[], float]


def device_clock() -> float:
    """Seconds, once the GPU has done what it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def typical(ends: list[float]) -> float:
    """Median of the intervals between times, without the first interval where there are several."""
    intervals = [b - a for a, b in pairwise(ends)]
    return median(intervals[1:] or intervals or [0.0])


def timed(batches: Iterable[Any], times: list[float], clock: Clock) -> Iterator[Any]:
    """At most BATCHES batches; ``times`` gets the time before the first and after each."""
    times.append(clock())
    for batch in islice(batches, BATCHES):
        yield batch
        times.append(clock())
        if times[-1] - times[0] > ENOUGH:
            return


@dataclass
class Epoch:
    """Times in one epoch of a training.

    Attributes:
        start: of the epoch.
        train: start of the epoch, and end of every training batch.
        val: start of the validation, and end of every validation batch.
    """

    start: float
    train: list[float]
    val: list[float] = field(default_factory=list)

    @property
    def batch_seconds(self) -> float:
        return sum(ends[-1] - ends[0] for ends in (self.train, self.val) if ends)


class EpochTimes(pl.Callback):
    """Times of a short training: its batches, and what an epoch takes besides (checkpoints, logs).

    The training ends with the first epoch if that took ENOUGH seconds.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.epochs: list[Epoch] = []
        self.end = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        now = self.clock()
        self.epochs.append(Epoch(now, [now]))

    def on_train_batch_end(self, *_: Any) -> None:
        self.epochs[-1].train.append(self.clock())

    def on_validation_epoch_start(self, *_: Any) -> None:
        self.epochs[-1].val.append(self.clock())

    def on_validation_batch_end(self, *_: Any) -> None:
        self.epochs[-1].val.append(self.clock())

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.clock() - self.epochs[0].start > ENOUGH:
            trainer.should_stop = True

    def on_train_end(self, *_: Any) -> None:
        self.end = self.clock()

    @property
    def seconds(self) -> float:
        """Of all epochs of the short training."""
        return self.end - self.epochs[0].start

    def per_batch(self, split: str) -> float:
        """Median of the intervals of a split, without the first one of the training where there are several."""
        intervals = [b - a for epoch in self.epochs for a, b in pairwise(getattr(epoch, split))]
        return median(intervals[1:] or intervals or [0.0])

    def complete(self, epochs: int, steps: int, checks: int) -> float:
        """Seconds of so many epochs with so many training and validation batches each; only the first warms up."""
        step, check = self.per_batch("train"), self.per_batch("val")
        starts = [epoch.start for epoch in self.epochs]
        spans = [b - a for a, b in pairwise([*starts, self.end])]
        besides = max(0.0, spans[-1] - self.epochs[-1].batch_seconds)
        first = self.epochs[0]
        usual = (len(first.train) - 1) * step + max(0, len(first.val) - 1) * check + besides
        return max(0.0, spans[0] - usual) + epochs * (steps * step + checks * check + besides)

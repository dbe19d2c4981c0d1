"""Lightning callbacks of every training: checkpoints of a run directory, their provenance, and the order of epochs."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from datasets.loader import PackedLoader
from utils.errors import UserError
from utils.files import unwritable
from utils.inputs import KEY as INPUTS
from utils.noise import hash_seed
from utils.progress import Pace
from utils.safe_pickle import read_tensors
from utils.stopwatch import Stopwatch

log = logging.getLogger(__name__)


class Provenance(pl.Callback):
    """Write into every checkpoint which data set it was trained on, and what its inputs mean.

    Args:
        dataset: name of the data set.
        inputs: description of its inputs, see ``MultimodalDataModule.describe_inputs``.
    """

    def __init__(self, dataset: str, inputs: Mapping[str, Any]) -> None:
        self.dataset, self.inputs = dataset, dict(inputs)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["dataset"] = self.dataset
        checkpoint[INPUTS] = self.inputs


class SigtermOfSubmitit(pl.Callback):
    """Let submitit, which ignores SIGTERM, answer it in jobs on SLURM, instead of Lightning, which ends the training.

    A preempted job receives SIGTERM when its grace time begins. SLURM queues it again if it runs until the end of that
    time; a job that ends by itself has failed.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.before = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning has set its handler since, and sets the one before it again after training.
        if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
            signal.signal(signal.SIGTERM, self.before)


class RunCheckpoint(ModelCheckpoint):
    """Checkpoints of a run directory that may be moved; each is on disk when training continues.

    Lightning ties the best score to the absolute path of its folder and forgets it in another folder, and it continues
    silently when a file cannot be written.
    """

    @property
    def state_key(self) -> str:
        # That of Lightning's class, so that runs that were begun with it can be continued.
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, with all paths in the present folder of the run directory.

        Raises:
            UserError: the file of the best epoch is absent or damaged.
        """
        assert self.dirpath is not None

        def moved(path: str) -> str:
            return str(Path(self.dirpath or "") / Path(path).name) if path else path

        state = dict(state_dict)
        for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
            state[key] = moved(state.get(key) or "")
        state["best_k_models"] = {moved(path): score for path, score in (state.get("best_k_models") or {}).items()}
        state["dirpath"] = self.dirpath
        super().load_state_dict(state)
        if self.monitor and self.best_model_path:
            best = Path(self.best_model_path)
            try:
                read_tensors(best)
            except UserError as error:
                raise UserError(
                    f"training cannot go on from last.ckpt without the best epoch so far ({error}): copy {best.name} "
                    f"into {best.parent}, or delete that folder to train from the start"
                ) from None

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        file = Path(filepath)
        before = _stamp(file)
        try:
            super()._save_checkpoint(trainer, filepath)
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not isinstance(error.__cause__, OSError):
                raise
            raise unwritable(file, error) from error
        if trainer.is_global_zero and _stamp(file) in (None, before):
            raise unwritable(file, PermissionError(0, "the system refused it"))


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """Values that change whenever a file is replaced; None for an absent or empty file."""
    if not file.is_file() or not (status := file.stat()).st_size:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


class Curves(pl.Callback):
    """Store the logged values of all epochs so far in every checkpoint.

    Lightning logs an epoch after it has saved the checkpoint of that epoch: without this, a process that is killed in
    between leaves curves without the epoch that training continues from.

    Attributes:
        rows: epoch, step and values, one row per epoch.
    """

    KEY = "curves"

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.logged_metrics.clear()  # Lightning keeps values that later epochs do not log

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        epoch = trainer.current_epoch
        # The number of the last step of the epoch, as in the files of Lightning's loggers.
        row: dict[str, float] = {"epoch": epoch, "step": trainer.fit_loop.epoch_loop._batches_that_stepped - 1}
        row |= {name: float(value) for name, value in trainer.logged_metrics.items()}
        self.rows = [*(earlier for earlier in self.rows if earlier["epoch"] < epoch), row]
        checkpoint[self.KEY] = self.rows

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.rows = list(checkpoint.get(self.KEY, ()))  # none in older checkpoints


class EpochOrder(pl.Callback):
    """Tell the loader and the random generators the epoch, so that a resumed run repeats an uninterrupted one."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loader = trainer.train_dataloader
        if isinstance(loader, PackedLoader):
            loader.set_epoch(trainer.current_epoch)
        torch.manual_seed(hash_seed(self.seed, 2, trainer.current_epoch, trainer.global_rank))


class RowShares(pl.Callback):
    """Weight the loss of each process by its share of the rows of a step, since DDP averages over processes: every row
    counts as in one process with their common batch. Logged losses are of all rows.

    The module is a :class:`models.row_losses.RowLosses`.
    """

    def on_before_backward(self, trainer: pl.Trainer, pl_module: Any, loss: Tensor) -> None:
        if trainer.world_size == 1:
            return
        weight: Tensor | int = trainer.world_size
        if not pl_module.sums_over_batch:
            rows = torch.full((), float(pl_module.rows_of_step), device=loss.device)
            weight = weight * rows / trainer.strategy.reduce(rows.clone(), reduce_op="sum").clamp(min=1)
        elif not pl_module.rows_of_step:
            weight = 0
        loss.mul_(weight)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.world_size > 1:
            pl_module.log_common_losses("train")

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.world_size > 1:
            pl_module.log_common_losses("val")


class Effort(pl.Callback):
    """Time of a training in all processes that continue it; every checkpoint stores that of its epochs.

    Args:
        is_continued: the training goes on from a checkpoint; without a stored time, the sum is not known.
    """

    def __init__(self, is_continued: bool) -> None:
        self.earlier: Mapping[str, float] | None = None if is_continued else {}
        self.watch: Stopwatch | None = None

    def on_fit_start(self, *_: Any) -> None:
        if self.earlier is not None:
            self.watch = Stopwatch(**self.earlier)

    def state_dict(self) -> dict[str, float]:
        return self.read() or {}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.earlier = state_dict or None

    def read(self) -> dict[str, float] | None:
        """Seconds so far, see :class:`utils.stopwatch.Stopwatch`; None if they are not known."""
        return None if self.watch is None else self.watch.read()


class TimeLeft(pl.Callback):
    """Log a few lines on the time that the remaining epochs take, see :class:`utils.progress.Pace`.

    Args:
        what: name of the training.
        clock: seconds.
    """

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.what, self.clock = what, clock
        self.pace: Pace | None = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.pace is None:
            self.pace = Pace(self.what, "epoch", trainer.max_epochs, trainer.current_epoch, self.clock)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.pace is not None and (line := self.pace.line(trainer.current_epoch + 1)):
            log.info("%s", line)


def after_warmup(callback: pl.Callback, epochs: int) -> None:
    """Keep a callback from seeing the first ``epochs``."""
    original = callback.on_train_epoch_end

    def on_train_epoch_end(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch >= epochs:
            original(trainer, pl_module)

    callback.on_train_epoch_end = on_train_epoch_end  # type: ignore[method-assign]

"""Training of any LightningModule into a run directory: best and last checkpoint, resume, metrics.csv."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger

from datasets.base import MultimodalDataModule
from datasets.loader import PackedLoader
from datasets.noise import TrainingNoise
from models.base import IncompleteClassifier
from trainers.config.build import build_loggers, build_trainer
from utils.errors import UserError
from utils.files import replacing, unwritable
from utils.inputs import KEY as INPUTS
from utils.metrics import undefined_monitor
from utils.noise import hash_seed
from utils.run_directory import RunDirectory
from utils.safe_pickle import read_tensors

log = logging.getLogger(__name__)


class Provenance(pl.Callback):
    """Writes into every checkpoint which data set it was trained on, and what its inputs mean.

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


class RunCheckpoint(ModelCheckpoint):
    """Checkpoints of a run directory that may be moved, each of which is on disk when training goes on.

    Lightning ties the best score to the absolute path of its folder and forgets it elsewhere, and goes on silently
    where a file cannot be written.
    """

    @property
    def state_key(self) -> str:
        # As Lightning's own class has it, so that runs begun with that one can be continued.
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, with every path in the folder where the run directory is now.

        Raises:
            UserError: the state names a best epoch, and its file is not here or is damaged.
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
    """What changes whenever a file is replaced; None where there is none, or an empty one."""
    if not file.is_file() or not (status := file.stat()).st_size:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


class EpochOrder(pl.Callback):
    """Tells the loader and the random generators which epoch it is, so that a resumed run repeats what an uninterrupted
    one does."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loader = trainer.train_dataloader
        if isinstance(loader, PackedLoader):
            loader.set_epoch(trainer.current_epoch)
        torch.manual_seed(hash_seed(self.seed, 2, trainer.current_epoch, trainer.global_rank))


def fit(
    cfg: DictConfig,
    module: pl.LightningModule,
    data: MultimodalDataModule,
    training: DictConfig,
    directory: RunDirectory,
    settings: Mapping[str, Any],
    *,
    stage: str,
    monitor: str | None,
    noise: TrainingNoise | None = None,
    watching: Sequence[pl.Callback] = (),
) -> Path:
    """Train, or continue training, and return the best checkpoint.

    Args:
        training: max_epochs, batch_size, patience, min_delta, and where there are any accumulate_grad_batches,
            gradient_clip_val, and warmup_epochs, at the start, of which none can be the best and none counts for
            patience.
        settings: what the result depends on; kept in the stage's marker.
        monitor: logged value that chooses the checkpoint (``*loss``: lower is better); None keeps the last epoch.
        noise: on the training batches; neither a clean epoch before its start nor the first noisy one is
            chosen as the best, see :func:`after_clean_epochs`.
        watching: callbacks of the method.

    Raises:
        UserError: interrupted, the validation split has no value of ``monitor``, or no epoch has a finite one.
    """
    check_monitor(monitor, data, stage)
    resumable = directory.begin(stage, settings)
    checkpoints = directory / "checkpoints"
    last = checkpoints / "last.ckpt"
    if not resumable:
        directory.clear("checkpoints", "logs", "metrics.csv")
    resume = str(last) if resumable and last.exists() else None
    attempts = directory / "logs"
    attempt = len(list(attempts.glob("version_*"))) if attempts.exists() else 0
    data.batch_size, data.seed, data.training_noise = training.batch_size, cfg.seed, noise
    if hasattr(module, "stream_seed"):
        module.stream_seed = cfg.seed
    if cfg.trainer.compile and isinstance(module, IncompleteClassifier):
        module.compile_parts(cfg.trainer.compile)
    callbacks: list[pl.Callback] = [
        *watching,
        EpochOrder(cfg.seed),
        Provenance(cfg.dataset.name, data.describe_inputs()),
        RunCheckpoint(
            checkpoints,
            "best",
            monitor=monitor,
            mode="min" if monitor and monitor.endswith("loss") else "max",
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        ),
        # save_last of the one above would follow improvements only.
        RunCheckpoint(checkpoints, "last", save_on_train_epoch_end=True, enable_version_counter=False),
    ]
    if training.patience and monitor:
        mode = "min" if monitor.endswith("loss") else "max"
        callbacks.append(
            EarlyStopping(monitor, training.min_delta, training.patience, mode=mode, check_on_train_epoch_end=True)
        )
    if first := max(after_clean_epochs(noise, training.max_epochs), training.get("warmup_epochs") or 0):
        for callback in callbacks:
            if isinstance(callback, EarlyStopping) or (isinstance(callback, ModelCheckpoint) and callback.monitor):
                after_warmup(callback, first)
    if cfg.trainer.enable_progress_bar:
        callbacks.append(TQDMProgressBar(refresh_rate=10))
    own = ("accumulate_grad_batches", "gradient_clip_val")
    trainer = build_trainer(
        cfg,
        **{key: training[key] for key in own if training.get(key)},
        max_epochs=training.max_epochs,
        logger=[CSVLogger(directory.path, "logs", attempt), *build_loggers(cfg, directory.path)],
        callbacks=callbacks,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        log_every_n_steps=10**9,
    )
    log.info(
        "%s: %s for at most %d epochs of %d batches on %s%s",
        stage,
        type(module).__name__,
        training.max_epochs,
        -(-len(data.split("train")) // training.batch_size),
        trainer.strategy.root_device,
        f", continuing from {last}" if resume else "",
    )
    with warnings.catch_warnings():
        # The loaders are index look-ups without workers by design.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # Methods on trained parts keep these as they are, and may have nothing else.
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
        warnings.filterwarnings("ignore", message=".*this fit will run with no optimizer.*")
        try:
            trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=False if resume else None)
        except SystemExit:  # Lightning's answer to Ctrl-C
            raise UserError(
                f"training was interrupted in epoch {trainer.current_epoch}: run the same command to go on from the "
                "last finished epoch"
            ) from None
        finally:
            # The files of a run belong to one process: the others may come here while it writes.
            if trainer.is_global_zero:
                merge_metrics(attempts, directory / "metrics.csv")
    best = checkpoints / "best.ckpt"
    score = trainer.checkpoint_callback.best_model_score if monitor else None  # type: ignore[union-attr]
    if score is not None and not torch.isfinite(score):
        raise UserError(
            f"{monitor} is not finite in any epoch that can be the best (see {directory / 'metrics.csv'}): training "
            "diverged (lower the learning rate), or the validation split has no such value (set dataset.monitor)"
        )
    if trainer.is_global_zero:
        for file in (best, last):
            check_checkpoint(file)
        directory.finish(
            stage,
            settings,
            epochs=trainer.current_epoch,
            monitor=monitor,
            best=None if score is None else float(score),
        )
    trainer.strategy.barrier("finished")
    return best


def after_clean_epochs(noise: TrainingNoise | None, epochs: int) -> int:
    """The first epoch, counted from 0, that can be the best of a training that is clean at first and noisy then: the
    second noisy one, as in UDML's release (noise from epoch 50 on: 51), or the last where there is one only."""
    return min(noise.start_epoch + 1, epochs - 1) if noise is not None and noise.start_epoch else 0


def check_checkpoint(file: Path) -> None:
    """Read a checkpoint that has just been written, before its stage is marked as finished.

    Raises:
        UserError: it is not on disk, or cannot be read.
    """
    try:
        read_tensors(file)
    except UserError as error:
        raise UserError(
            f"the stage is not finished, its checkpoint was not written ({error}): make room or correct the "
            "permissions, and run the same command again"
        ) from None


def check_monitor(monitor: str | None, data: MultimodalDataModule, stage: str) -> None:
    """
    Raises:
        UserError: the validation split has no value of the metric that chooses the checkpoint, whatever is predicted.
    """
    if monitor is None or not data.has_split("val"):
        return
    if reason := undefined_monitor(monitor, data.task, data.split("val").read("target")):
        raise UserError(
            f"{monitor} has no value on the validation split, {reason}, and cannot choose an epoch of stage {stage}: "
            "set dataset.monitor=val_loss (or null for the last epoch), or give a validation split with more classes"
        )


def after_warmup(callback: pl.Callback, epochs: int) -> None:
    """Keep a callback from looking at the first ``epochs``."""
    look = callback.on_train_epoch_end

    def on_train_epoch_end(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch >= epochs:
            look(trainer, pl_module)

    callback.on_train_epoch_end = on_train_epoch_end  # type: ignore[method-assign]


def merge_metrics(attempts: Path, target: Path) -> None:
    """One ``metrics.csv`` out of the logs of all attempts: for an epoch that was repeated, the later attempt counts."""
    frames = []
    for file in sorted(attempts.glob("version_*/metrics.csv"), key=lambda f: int(f.parent.name.split("_")[1])):
        frame = pd.read_csv(file)
        if len(frame):
            frames.append(frame.groupby("epoch", as_index=False).last())
    if frames:
        merged = pd.concat(frames).groupby("epoch", as_index=False).last()
        merged = merged[["epoch", "step", *sorted(set(merged) - {"epoch", "step"})]]
        with replacing(target) as file:
            merged.to_csv(file, index=False)

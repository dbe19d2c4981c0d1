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

from datasets.base import MultimodalDataModule, PackedLoader, hash_seed
from datasets.noise import TrainingNoise
from models.base import IncompleteClassifier
from utils.build import build_loggers, build_trainer
from utils.errors import UserError
from utils.files import replacing
from utils.metrics import undefined_monitor
from utils.run_directory import RunDirectory

log = logging.getLogger(__name__)


class Provenance(pl.Callback):
    """Writes into every checkpoint which data set it was trained on."""

    def __init__(self, dataset: str) -> None:
        self.dataset = dataset

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["dataset"] = self.dataset


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
        noise: on the training batches; no epoch before its start is chosen as the best.
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
        Provenance(cfg.dataset.name),
        ModelCheckpoint(
            checkpoints,
            "best",
            monitor=monitor,
            mode="min" if monitor and monitor.endswith("loss") else "max",
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        ),
        # save_last of the one above would follow improvements only.
        ModelCheckpoint(checkpoints, "last", save_on_train_epoch_end=True, enable_version_counter=False),
    ]
    if training.patience and monitor:
        mode = "min" if monitor.endswith("loss") else "max"
        callbacks.append(
            EarlyStopping(monitor, training.min_delta, training.patience, mode=mode, check_on_train_epoch_end=True)
        )
    if first := max(noise.start_epoch if noise else 0, training.get("warmup_epochs") or 0):
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
        directory.finish(
            stage,
            settings,
            epochs=trainer.current_epoch,
            monitor=monitor,
            best=None if score is None else float(score),
        )
    trainer.strategy.barrier("finished")
    return best


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

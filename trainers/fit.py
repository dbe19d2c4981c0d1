"""Stage ``fit``, and the training of any LightningModule into a run directory: best and last checkpoint, resume,
``metrics.csv``."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

from datasets.base import MultimodalDataModule
from datasets.noise import TrainingNoise
from models.base import IncompleteClassifier
from trainers.callbacks import (
    Curves,
    Effort,
    EpochOrder,
    Provenance,
    RowShares,
    RunCheckpoint,
    SigtermOfSubmitit,
    TimeLeft,
    after_warmup,
)
from trainers.checkpoint_files import PREVIOUS, CheckpointFiles, is_as_written, resume_point
from trainers.config.build import build_loggers, build_model, build_modulation, build_noise, build_trainer
from trainers.loading import Run
from trainers.quiet import quiet_lightning
from utils.errors import UserError
from utils.files import replacing
from utils.interruption import CONTINUE, Interruption
from utils.metrics import undefined_monitor
from utils.run_directory import RunDirectory
from utils.safe_pickle import check_pickles, read_tensors

log = logging.getLogger(__name__)


def fit(run: Run) -> None:
    """Train the model (DyMo: its backbone) unless that is done; its prerequisites first."""
    directory = run.fit_directory
    if run.checkpoint_path:
        log.info("fit: using %s", run.checkpoint)
        return
    with directory.held():
        if directory.finished("fit", run.fit_settings, run.checkpoint):
            log.info("fit: %s is there and valid, skipped", run.checkpoint)
            return
        _fit(run)


def _fit(run: Run) -> None:
    cfg, directory = run.cfg, run.fit_directory
    parts: dict[str, Any] = {}
    for label, part in run.prerequisites.items():
        log.info("fit: %s is built on %s (%s)", cfg.model.name, part.cfg.model.name, label)
        fit(part)
    if run.prerequisites:
        parts["prerequisites"] = {label: part.load_model() for label, part in run.prerequisites.items()}
    if run.is_built_on_imputer:
        parts["imputer"] = run.load_imputer()
    pl.seed_everything(cfg.seed, verbose=False)
    model = build_model(cfg, run.trainable, run.data, **parts)
    if run.trains_on_recoveries:
        model.attach_imputer(run.load_imputer())
    directory.describe(cfg)
    modulation = build_modulation(run.trainable)
    best = train(
        cfg,
        model,
        run.data,
        run.trainable.training,
        directory,
        run.fit_settings,
        stage="fit",
        monitor=run.monitor,
        noise=build_noise(run.trainable),
        callbacks=[modulation] if modulation else [],
    )
    if run.monitor:
        log.info("fit: best %s %.4f, %s", run.monitor, directory.result("fit")["best"], best)
    else:
        log.info("fit: the last epoch's weights, %s", best)


def train(
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
    callbacks: Sequence[pl.Callback] = (),
) -> Path:
    """Train, or continue training, and return the best checkpoint.

    Args:
        training: max_epochs, batch_size, patience, min_delta; optionally accumulate_grad_batches, gradient_clip_val,
            and warmup_epochs, the number of first epochs that can neither be the best nor count for patience.
        settings: what the result depends on; kept in the stage's marker.
        monitor: logged value that chooses the checkpoint (``*loss``: lower is better); None keeps the last epoch.
        noise: on the training batches; clean epochs before its start and the first noisy one cannot be the best, see
            :func:`after_clean_epochs`.
        callbacks: of the method.

    Raises:
        Interruption: by the user or the system.
        UserError: the validation split has no value of ``monitor``, or no epoch has a finite one.
    """
    check_monitor(monitor, data, stage)
    resume = _resume_point(directory, stage, settings)
    checkpoints = directory / "checkpoints"
    data.batch_size, data.seed, data.training_noise = training.batch_size, cfg.seed, noise
    _apply_settings(cfg, module)
    effort, curves = Effort(is_continued=resume is not None), Curves()
    all_callbacks = [
        *callbacks,
        effort,
        RowShares(),
        curves,
        EpochOrder(cfg.seed),
        Provenance(cfg.dataset.name, data.describe_inputs()),
        TimeLeft(stage),
        SigtermOfSubmitit(),
        *checkpoint_callbacks(training, checkpoints, monitor, noise),
    ]
    trainer = _build_trainer(cfg, training, directory, all_callbacks)
    _log_start(stage, module, data, training, trainer, resume)
    try:
        _run_trainer(trainer, module, data, None if resume is None else str(resume))
    finally:
        # The files of a run belong to one process; others may arrive here while it writes.
        if trainer.is_global_zero:
            merge_metrics(directory / "logs", directory / "metrics.csv", curves.rows)
    score = _best_score(trainer, monitor, directory / "metrics.csv")
    best = checkpoints / "best.ckpt"
    if trainer.is_global_zero:
        for file in (best, checkpoints / "last.ckpt"):
            check_checkpoint(file)
        directory.clear(f"checkpoints/{PREVIOUS}")
        files = [f"checkpoints/{file.name}" for file in (best, checkpoints / "last.ckpt")]
        results = {"epochs": trainer.current_epoch, "monitor": monitor, "best": score, "effort": effort.read()}
        directory.finish(stage, settings, files, **results)
    trainer.strategy.barrier("finished")
    return best


def _resume_point(directory: RunDirectory, stage: str, settings: Mapping[str, Any]) -> Path | None:
    """Begin the stage; the checkpoint to continue from, None for a training from the start.

    Raises:
        UserError: the checkpoint is damaged, or would execute something.
    """
    if not directory.begin(stage, settings, clear=["checkpoints", "logs", "metrics.csv"]):
        return None
    return resume_point(directory / "checkpoints")


def _log_start(
    stage: str,
    module: pl.LightningModule,
    data: MultimodalDataModule,
    training: DictConfig,
    trainer: pl.Trainer,
    resume: Path | None,
) -> None:
    log.info(
        "%s: %s for at most %d epochs of %d batches on %s%s",
        stage,
        type(module).__name__,
        training.max_epochs,
        -(-len(data.split("train")) // (training.batch_size * trainer.world_size)),
        trainer.strategy.root_device,
        f", continuing from {resume}" if resume else "",
    )


def _apply_settings(cfg: DictConfig, module: pl.LightningModule) -> None:
    """Seed of the random numbers of training, and compilation."""
    if isinstance(module, IncompleteClassifier):
        module.stream_seed = cfg.seed
        if cfg.trainer.compile:
            module.compile_parts(cfg.trainer.compile)


def _best_score(trainer: pl.Trainer, monitor: str | None, metrics: Path) -> float | None:
    """Value of ``monitor`` in the best epoch; None without a monitor.

    Raises:
        UserError: it is not finite.
    """
    score = trainer.checkpoint_callback.best_model_score if monitor else None  # type: ignore[union-attr]
    if score is not None and not torch.isfinite(score):
        raise UserError(
            f"{monitor} is not finite in any epoch that can be the best (see {metrics}): training diverged (lower the "
            "learning rate), or the validation split has no such value (set dataset.monitor)"
        )
    return None if score is None else float(score)


def _build_trainer(
    cfg: DictConfig, training: DictConfig, directory: RunDirectory, callbacks: list[pl.Callback]
) -> pl.Trainer:
    """Lightning's Trainer, whose logs go to the next free ``logs/version_<n>``."""
    attempts = directory / "logs"
    attempt = len(list(attempts.glob("version_*"))) if attempts.exists() else 0
    options = ("accumulate_grad_batches", "gradient_clip_val")
    return build_trainer(
        cfg,
        **{key: training[key] for key in options if training.get(key)},
        max_epochs=training.max_epochs,
        logger=[CSVLogger(directory.path, "logs", attempt), *build_loggers(cfg, directory.path)],
        callbacks=callbacks,
        plugins=[CheckpointFiles()],
        num_sanity_val_steps=0,
        enable_model_summary=False,
        log_every_n_steps=10**9,
    )


def checkpoint_callbacks(
    training: DictConfig, folder: Path, monitor: str | None, noise: TrainingNoise | None
) -> list[pl.Callback]:
    """Callbacks for best and last checkpoint, and early stopping."""
    mode = "min" if monitor and monitor.endswith("loss") else "max"
    best = RunCheckpoint(
        folder, "best", monitor=monitor, mode=mode, save_on_train_epoch_end=True, enable_version_counter=False
    )
    # A second callback, since save_last of the first one would follow improvements only.
    last = RunCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    callbacks: list[pl.Callback] = [best, last]
    if training.patience and monitor:
        callbacks.append(
            EarlyStopping(monitor, training.min_delta, training.patience, mode=mode, check_on_train_epoch_end=True)
        )
    if first := max(after_clean_epochs(noise, training.max_epochs), training.get("warmup_epochs") or 0):
        for callback in callbacks:
            if isinstance(callback, EarlyStopping) or (isinstance(callback, ModelCheckpoint) and callback.monitor):
                after_warmup(callback, first)
    return callbacks


def _run_trainer(
    trainer: pl.Trainer, module: pl.LightningModule, data: MultimodalDataModule, resume: str | None
) -> None:
    """
    Raises:
        Interruption: by the user or the system.
    """
    try:
        with quiet_lightning():
            trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    except Interruption as stop:
        message = f"training was interrupted in epoch {trainer.current_epoch}: {CONTINUE} from the last finished epoch"
        raise Interruption(stop.number, message) from None


def after_clean_epochs(noise: TrainingNoise | None, epochs: int) -> int:
    """First epoch, counted from 0, that can be the best of a training that is clean at first and noisy then: the second
    noisy one, as in UDML's release (noise from epoch 50 on: 51), or the last one if only one is noisy."""
    return min(noise.start_epoch + 1, epochs - 1) if noise is not None and noise.start_epoch else 0


def check_checkpoint(file: Path) -> None:
    """Check a checkpoint that has just been written, before its stage is marked as finished.

    Raises:
        UserError: it is not on disk as it was written, or cannot be read.
    """
    try:
        if is_as_written(file):  # sooner known than by reading its tensors
            check_pickles(file)
        else:
            read_tensors(file)
    except (UserError, pickle.UnpicklingError) as error:
        raise UserError(
            f"the stage is not finished, its checkpoint was not written ({error}): make room or correct the "
            "permissions, and run the same command again"
        ) from None


def check_monitor(monitor: str | None, data: MultimodalDataModule, stage: str) -> None:
    """
    Raises:
        UserError: the metric that chooses the checkpoint has no value on the validation split, whatever is predicted.
    """
    if monitor is None or not data.has_split("val"):
        return
    if reason := undefined_monitor(monitor, data.task, data.split("val").read("target")):
        raise UserError(
            f"{monitor} has no value on the validation split, {reason}, and cannot choose an epoch of stage {stage}: "
            "set dataset.monitor=val_loss (or null for the last epoch), or give a validation split with more classes"
        )


def merge_metrics(attempts: Path, target: Path, rows: Sequence[Mapping[str, float]] = ()) -> None:
    """Write ``metrics.csv`` from the logs of all attempts; the last attempt at an epoch counts.

    Args:
        rows: epochs of the last checkpoint, see :class:`trainers.callbacks.Curves`; they take precedence over the logs.
    """
    frames = []
    for file in sorted(attempts.glob("version_*/metrics.csv"), key=lambda f: int(f.parent.name.split("_")[1])):
        # A process that was killed, or had no space, leaves an empty file or a part of the header or of a row.
        with suppress(pd.errors.EmptyDataError, pd.errors.ParserError, KeyError):
            frame = pd.read_csv(file).dropna(subset=["epoch", "step"])
            frames.append(frame.groupby("epoch", as_index=False).last())
    frames = [frame for frame in (*frames, pd.DataFrame(rows)) if len(frame)]
    if frames:
        merged = pd.concat(frames).groupby("epoch", as_index=False).last().astype({"epoch": int, "step": int})
        merged = merged[["epoch", "step", *sorted(set(merged) - {"epoch", "step"})]]
        with replacing(target) as file:
            merged.to_csv(file, index=False)

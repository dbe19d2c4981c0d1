"""Stage ``impute``: train the recovery method, then measure its recoveries on the validation split."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

from datasets.missingness import parse_scenario
from models.imputers.base import FittedImputer
from models.imputers.quality import Judge, recovery_quality
from trainers.config.build import build_encoders, build_imputer, build_trainer
from trainers.context import Context
from trainers.fit import EpochOrder, check_checkpoint, fit
from utils.files import replacing
from utils.inputs import KEY as INPUTS
from utils.run_directory import RunDirectory, file_hash

log = logging.getLogger(__name__)


def run(context: Context) -> None:
    """Trained weights and ``quality.csv`` in the imputer's run directory."""
    cfg, directory = context.cfg, context.imputed
    settings = context.imputer_settings
    if cfg.imputer.checkpoint:
        log.info("impute: using %s", cfg.imputer.checkpoint)
        context.load_imputer()
    elif directory.finished("impute", settings, context.imputer_checkpoint if context.imputer_needs_weights else None):
        log.info("impute: %s is there and valid, skipped", directory.path)
    else:
        pl.seed_everything(cfg.seed, verbose=False)
        imputer = build_imputer(cfg, context.data)
        imputer.check_training_rows(context.data.mask("train", parse_scenario("none")))
        directory.describe(cfg)
        imputer.learn(ImputeStage(context, settings))
    if context.data.has_split("val") and context.data.has_split("train"):
        _quality(context)


class ImputeStage:
    """What a recovery method learns through, see :class:`models.imputers.base.LearningStage`."""

    def __init__(self, context: Context, settings: Mapping[str, Any]) -> None:
        self.context, self.settings, self.directory = context, settings, context.imputed

    def train(self, imputer: pl.LightningModule) -> None:
        cfg, data = self.context.cfg, self.context.data
        monitor = "val_loss" if data.has_split("val") and cfg.imputer.training.patience else None
        with augmented(data, cfg.imputer.get("augmentation")):
            fit(
                cfg,
                imputer,
                data,
                cfg.imputer.training,
                self.directory,
                self.settings,
                stage="impute",
                monitor=monitor,
            )

    def fit(self, imputer: FittedImputer) -> None:
        context, file = self.context, self.context.imputer_checkpoint
        self.directory.begin("impute", self.settings)
        imputer.fit(context.data.loader("train", parse_scenario("none")))
        content = {"state_dict": imputer.state_dict(), "dataset": context.cfg.dataset.name, INPUTS: context.inputs}
        with replacing(file) as temporary, temporary.open("wb") as stream:
            torch.save(content, stream)
        check_checkpoint(file)
        self.directory.finish("impute", self.settings)

    def skip(self) -> None:
        self.directory.begin("impute", self.settings)
        self.directory.finish("impute", self.settings)


@contextmanager
def augmented(data: Any, changes: Mapping[str, Any] | None) -> Iterator[None]:
    """Training batches with another augmentation, where the data have one.

    Args:
        data: data module; ``augmentation`` is a data class, or None.
        changes: fields of that class and the values that they take.
    """
    original = getattr(data, "augmentation", None)
    if original is None or not changes:
        yield
        return
    try:
        plain = {str(k): tuple(v) if isinstance(v, Sequence) else v for k, v in changes.items()}
        data.augmentation = replace(original, **plain)
        yield
    finally:
        data.augmentation = original


def _quality(context: Context) -> None:
    cfg, directory = context.cfg, context.imputed
    target = directory / "quality.csv"
    weights = context.imputer_checkpoint if context.imputer_needs_weights else None
    settings = {
        "imputer": context.recovery_settings,
        "quality": OmegaConf.to_container(cfg.imputer.quality),
        "weights": weights and file_hash(weights),
    }
    # A by-product that nothing else reads: measured again where it was measured otherwise.
    directory = RunDirectory(directory.path, overwrite=True, data_paths=directory.data_paths)
    if directory.finished("quality", settings, target):
        print_quality(pd.read_csv(target))
        return
    directory.begin("quality", settings)
    data = context.data
    pl.seed_everything(cfg.seed, verbose=False)
    judge = Judge(data.modalities, data.num_classes, build_encoders(cfg, data))
    data.batch_size = cfg.imputer.training.batch_size
    trainer = build_trainer(
        cfg,
        max_epochs=cfg.imputer.quality.judge_epochs,
        logger=False,
        callbacks=[EpochOrder(cfg.seed)],
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    log.info("impute: training the classifiers that judge recoveries (%d epochs)", cfg.imputer.quality.judge_epochs)
    trainer.fit(judge, data.loader("train", train=True, device=trainer.strategy.root_device))
    judge.to(context.device)
    batches = data.loader("val", parse_scenario("none"), device=context.device)
    frame = recovery_quality(context.load_imputer(), judge, batches, seed=cfg.missing.seed)
    with replacing(target) as file:
        frame.to_csv(file, index=False)
    directory.finish("quality", settings)
    print_quality(frame)


def print_quality(frame: pd.DataFrame) -> None:
    """Coherence by modality and number of observed modalities, for the terminal."""
    wide = frame[frame.metric.isin(["coherence", "judge_accuracy"])].copy()
    wide["value"] *= 100
    table = wide.pivot(index="modality", columns="observed", values="value").round(1)
    table.columns = [*(f"{c} observed" for c in table.columns[:-1]), "true content"]
    log.info("coherence of recoveries on the validation split (%% read as the right class):\n%s", table.to_string())

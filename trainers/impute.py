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
from models.imputers.base import Assembled, FittedImputer
from models.imputers.quality import Judge, recovery_quality
from trainers.callbacks import EpochOrder, TimeLeft
from trainers.config.build import build_encoders, build_trainer
from trainers.config.imputers import build_imputer
from trainers.fit import check_checkpoint, train
from trainers.loading import Run
from trainers.quiet import quiet_lightning
from utils.checksums import verify_artefact
from utils.files import replacing
from utils.inputs import KEY as INPUTS
from utils.run_directory import RunDirectory, file_hash
from utils.stopwatch import Stopwatch

log = logging.getLogger(__name__)


def impute(run: Run) -> None:
    """Trained weights and ``quality.csv`` in the imputer's run directory."""
    cfg = run.cfg
    if cfg.imputer.checkpoint:
        log.info("impute: using %s", cfg.imputer.checkpoint)
        run.load_imputer()
    with run.imputer_directory.held():
        if not cfg.imputer.checkpoint:
            _learn(run)
        if measures_quality(run):
            _quality(run)


def _learn(run: Run) -> None:
    cfg, directory, settings = run.cfg, run.imputer_directory, run.imputer_settings
    if directory.finished("impute", settings, run.imputer_checkpoint if run.needs_imputer_weights else None):
        log.info("impute: %s is there and valid, skipped", directory.path)
        return
    pl.seed_everything(cfg.seed, verbose=False)
    imputer = build_imputer(cfg, run.data)
    imputer.check_training_rows(run.data.mask("train", parse_scenario("none")))
    directory.describe(cfg)
    imputer.learn(ImputeStage(run, settings))


class ImputeStage:
    """What a recovery method learns through, see :class:`models.imputers.base.LearningStage`."""

    def __init__(self, run: Run, settings: Mapping[str, Any]) -> None:
        self.run, self.settings, self.directory = run, settings, run.imputer_directory

    def train(self, imputer: pl.LightningModule) -> None:
        cfg, data = self.run.cfg, self.run.data
        monitor = "val_loss" if data.has_split("val") and cfg.imputer.training.patience else None
        with augmented(data, cfg.imputer.get("augmentation")):
            train(
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
        watch = Stopwatch()
        self.directory.begin("impute", self.settings)
        imputer.fit(self.run.data.loader("train", parse_scenario("none")))
        self._store({"state_dict": imputer.state_dict()}, watch)

    def _store(self, content: dict[str, Any], watch: Stopwatch) -> None:
        """Write the file of the imputer, and finish the stage with the time since the watch was made."""
        run, file = self.run, self.run.imputer_checkpoint
        with replacing(file) as temporary, temporary.open("wb") as stream:
            torch.save({**content, "dataset": run.cfg.dataset.name, INPUTS: run.inputs}, stream)
        check_checkpoint(file)
        self.directory.finish("impute", self.settings, files=["checkpoints/best.ckpt"], effort=watch.read())

    def assemble(self, imputer: Assembled) -> None:
        run = self.run
        self.directory.begin("impute", self.settings)
        for label, part in run.imputer_parts.items():
            names = ", ".join(name for name, of_name in imputer.parts.items() if of_name is imputer.parts[label])
            log.info("impute: %s recovers %s", part.cfg.imputer.name, names)
            if not part.cfg.imputer.checkpoint:
                with part.imputer_directory.held():
                    _learn(part)
            imputer.replace_part(label, part.load_imputer())
        self._store({"state_dict": imputer.state_dict(), "architecture": imputer.architecture()}, Stopwatch())

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


def quality_directory(run: Run) -> RunDirectory:
    """The imputer's run directory; the quality, which nothing else reads, is measured again if its settings changed."""
    directory = run.imputer_directory
    return RunDirectory(directory.path, overwrite=True, data_paths=directory.data_paths)


def quality_settings(run: Run) -> dict[str, Any]:
    """Settings that the measured quality depends on; the imputer has learned."""
    weights = run.imputer_checkpoint if run.needs_imputer_weights else None
    return {
        "imputer": run.recovery_settings,
        "quality": OmegaConf.to_container(run.cfg.imputer.quality),
        "weights": weights and file_hash(weights),
    }


def measures_quality(run: Run) -> bool:
    """Whether the run has a quality to measure."""
    return run.cfg.imputer.quality is not None and run.data.has_split("val") and run.data.has_split("train")


def is_measured(run: Run) -> bool:
    """Whether the quality is measured, or has not to be; the imputer has learned."""
    if not measures_quality(run):
        return True
    directory = quality_directory(run)
    return directory.finished("quality", quality_settings(run), directory / "quality.csv")


def _quality(run: Run) -> None:
    cfg, directory, settings = run.cfg, quality_directory(run), quality_settings(run)
    target = directory / "quality.csv"
    if is_measured(run):
        verify_artefact(target)
        print_quality(pd.read_csv(target), run.data.kinds)
        return
    directory.begin("quality", settings, clear=[target.name, "quality_columns.csv"])
    data = run.data
    pl.seed_everything(cfg.seed, verbose=False)
    judge = Judge(data.modalities, data.num_classes, build_encoders(cfg, data))
    data.batch_size = cfg.imputer.training.batch_size
    trainer = build_trainer(
        cfg,
        max_epochs=cfg.imputer.quality.judge_epochs,
        logger=False,
        callbacks=[EpochOrder(cfg.seed), TimeLeft("impute, classifiers that judge recoveries")],
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    log.info("impute: training the classifiers that judge recoveries (%d epochs)", cfg.imputer.quality.judge_epochs)
    with quiet_lightning():
        trainer.fit(judge, data.loader("train", train=True, device=trainer.strategy.root_device))
    judge.to(run.device)
    batches = data.loader("val", parse_scenario("none"), device=run.device)
    quality = recovery_quality(run.load_imputer(), judge, batches, seed=cfg.missing.seed)
    for path, frame in ((directory / "quality_columns.csv", quality.columns), (target, quality.modalities)):
        with replacing(path) as file:
            frame.to_csv(file, index=False)
    directory.finish("quality", settings, files=[target.name, "quality_columns.csv"])
    print_quality(quality.modalities, data.kinds)


def print_quality(frame: pd.DataFrame, kinds: Mapping[str, str]) -> None:
    """Measures by modality and number of observed modalities, for the terminal.

    Args:
        kinds: modality name -> kind.
    """
    wide = frame[frame.metric.isin(["coherence", "judge_accuracy"])].copy()
    wide["value"] *= 100
    table = wide.pivot(index="modality", columns="observed", values="value").round(1)
    table.columns = [*(f"{c} observed" for c in table.columns[:-1]), "true content"]
    log.info("coherence of recoveries on the validation split (%% read as the right class):\n%s", table.to_string())
    errors = frame[~frame.metric.isin(["coherence", "judge_accuracy"])]
    if len(errors):
        errors = errors.assign(kind=errors.modality.map(kinds))
        table = errors.pivot(index=["modality", "kind", "metric"], columns="observed", values="value").round(3)
        table.columns = [f"{c} observed" for c in table.columns]
        log.info("errors and accuracies of recoveries on the validation split:\n%s", table.to_string(na_rep=""))

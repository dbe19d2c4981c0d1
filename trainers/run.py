"""Run ``cfg.stages`` in order, after checking all that can be checked in advance."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only

from trainers.checks import check_artefacts, check_noise, check_task, needs_imputer
from trainers.config.build import set_float32_precision
from trainers.config.checks.machine import check_trainer, number_of_processes
from trainers.config.grid import is_grid, run_names, training_parts
from trainers.config.imputers import check_imputer
from trainers.config.stages import stages_without_use
from trainers.config.validate import validate
from trainers.evaluate import evaluate
from trainers.export import export
from trainers.fit import fit
from trainers.forecast import plan
from trainers.gaussian import estimate_parameters
from trainers.impute import impute
from trainers.loading import Run
from trainers.plan import resolve_metric
from trainers.predict import check_predict, is_alone, predict, predict_with_bundle
from trainers.processes import quiet_others
from trainers.report.page import write_report
from trainers.report.runs import finished_directories, report_patterns
from trainers.report.tables import print_table
from utils.errors import UserError
from utils.files import remove_leftovers

log = logging.getLogger(__name__)


def report(run: Run) -> None:
    """Stage ``report``: tables, figures and ``report.html`` over all runs of this data set and name, or over
    ``report.include``."""
    cfg = run.cfg
    patterns = report_patterns(cfg)
    directories = finished_directories(patterns)
    if not directories:
        raise UserError(f"nothing to report in {', '.join(patterns)}: run stage test first ({run.command('test')})")
    metrics = None if cfg.report.metrics is None else list(cfg.report.metrics)
    primary = str(cfg.report.primary)
    title = f"{cfg.dataset.name}: {cfg.name}"
    folder = Path(cfg.paths.output) / cfg.dataset.name / "report" / cfg.name
    written = write_report(directories, folder, title=title, metrics=metrics, primary=primary)
    log.info("report: %s in %%\n%s", primary, print_table(written.summary, primary))
    log.info("report: %s", written.html)


# Stage -> function; data are prepared before the first stage, so that stage prepare has nothing more to do.
STAGES: dict[str, Callable[[Run], None]] = {
    "prepare": lambda run: None,
    "impute": impute,
    "fit": fit,
    "gaussian": estimate_parameters,
    "test": evaluate,
    "report": report,
    "export": export,
    "predict": predict,
}
DEFAULT = ("prepare", "impute", "fit", "gaussian", "test", "report")  # what plan alone is about
PARALLEL = ("impute", "fit", "gaussian", "test")  # stages that all processes run


def run(cfg: DictConfig) -> float | None:
    """
    Returns:
        Best validation score of stage fit, if that is among the stages and the model has one.

    Raises:
        UserError: bad configuration, absent files or unusable data, before any training.
    """
    if is_alone(cfg) and cfg.predict.bundle:
        predict_with_bundle(cfg)
        return None
    validate(cfg)
    if is_grid(cfg):
        run_grid(cfg)
        return None
    if "predict" in cfg.stages:
        check_predict(cfg)
    check_trainer(cfg)
    quiet_others()
    resolve_metric(cfg)
    opened = Run(cfg)
    set_float32_precision(cfg.trainer.float32_precision, opened.device)
    clean_up(opened)
    stages = useful_stages(cfg)
    if "plan" in cfg.stages:
        check_task(opened)
        planned = [stage for stage in stages or DEFAULT if stage not in stages_without_use(cfg)]
        plan(opened, planned, is_alone=not stages)
        if not stages:
            return None
    packing = 0.0
    if stages != ["report"]:
        check_task(opened)
        check_noise(opened)
        if "impute" in stages or needs_imputer(opened, stages):
            check_imputer(cfg, opened.data.kinds)
        start = time.perf_counter()
        opened.prepare_data()
        packing = time.perf_counter() - start
        check_artefacts(opened, stages)
    for number, stage in enumerate(stages, 1):
        is_shared = stage in PARALLEL or is_alone(cfg)
        if not is_shared and not set(PARALLEL) & set(stages[number:]):
            # Rank 0 runs the last stages alone, and waits for no other process.
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            if getattr(rank_zero_only, "rank", 0):
                return None
        log.info("[%d/%d] stage %s", number, len(stages), stage)
        start = time.perf_counter()
        STAGES[stage](opened)
        seconds = time.perf_counter() - start + packing * (stage == "prepare")
        log.info("[%d/%d] stage %s: %.1f s", number, len(stages), stage, seconds)
    is_fitted = "fit" in stages and not opened.checkpoint_path
    return opened.fit_directory.result("fit")["best"] if is_fitted else None


def clean_up(run: Run) -> None:
    """Remove what killed processes left where this run reads and writes."""
    if getattr(rank_zero_only, "rank", 0):
        return
    removed = []
    for directory in {run.directory.path, run.fit_directory.path, run.imputer_directory.path}:
        removed += remove_leftovers(directory, recursive=True)
    for folder in {run.data.store.folder.parent, Path(run.cfg.paths.data)}:
        removed += remove_leftovers(folder)
    if removed:
        log.info("removed what killed processes left: %s", ", ".join(map(str, removed)))


def run_grid(cfg: DictConfig) -> None:
    """Run one part per scenario of ``missing.train``, then stage ``report`` over all of them.

    Raises:
        UserError: several processes, which a grid does not start again for each part.
    """
    if number_of_processes(cfg) > 1:
        raise UserError(
            "missing.train is a list, which runs in one process: set trainer.devices=1 and trainer.num_nodes=1, "
            "or run it one by one"
        )
    parts = training_parts(cfg)
    for number, part in enumerate(parts, 1):
        log.info("[%d/%d] missing.train=%s", number, len(parts), part.missing.train)
        if part.stages:
            run(part)
    if "report" in cfg.stages:
        whole, runs = parts[0].copy(), Path(cfg.paths.output) / cfg.dataset.name / "*"
        whole.name = cfg.name
        if not cfg.report.include:
            whole.report.include = [str(runs / name / "seed*") for name in run_names(cfg, cfg.name)]
        report(Run(whole))


def useful_stages(cfg: DictConfig) -> list[str]:
    """The stages that the model has a use for; logs the reason for each other one."""
    unused = stages_without_use(cfg)
    for stage in cfg.stages:
        if stage in unused:
            log.info("stage %s: skipped, %s", stage, unused[stage])
    return [stage for stage in cfg.stages if stage not in (*unused, "check", "plan")]

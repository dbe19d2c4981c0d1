"""Runs ``cfg.stages`` in order, after everything that can be checked has been checked."""

from __future__ import annotations

import glob
import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from hydra.utils import get_object
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only

from datasets.missingness import parse_scenarios, unobserved
from trainers import evaluate, gaussian, impute
from trainers.config.build import (
    build_model,
    build_modulation,
    build_noise,
    check_imputer_networks,
    fitting_imputers,
    method_class,
)
from trainers.config.validate import check_trainer, stages_without_use, validate
from trainers.context import Context, resolve_metric
from trainers.fit import fit
from trainers.report.page import write_report
from trainers.report.tables import print_table
from utils.errors import UserError
from utils.files import natural_key

log = logging.getLogger(__name__)

PARALLEL = ("impute", "fit", "gaussian")


def run(cfg: DictConfig) -> None:
    """
    Raises:
        UserError: bad configuration, absent files or unusable data, before any training.
    """
    validate(cfg)
    check_trainer(cfg)
    resolve_metric(cfg)
    context = Context(cfg)
    stages = useful_stages(cfg)
    if stages != ["report"]:
        check_task(context)
        check_noise(context)
        if "impute" in stages or needs_imputer(context, stages):
            check_imputer_networks(cfg, context.data.kinds)
        context.prepare_data()
        check_artefacts(context, stages)
    for number, stage in enumerate(stages, 1):
        if stage not in PARALLEL and not set(PARALLEL) & set(stages[number:]):
            # Further processes help with these stages only; one alone does the rest, and waits for nobody.
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            if getattr(rank_zero_only, "rank", 0):
                return
        log.info("[%d/%d] stage %s", number, len(stages), stage)
        start = time.perf_counter()
        if stage in RUNNERS:
            RUNNERS[stage](context)
        log.info("[%d/%d] stage %s: %.1f s", number, len(stages), stage, time.perf_counter() - start)


def check_task(context: Context) -> None:
    """
    Raises:
        UserError: several labels, for a method that knows classes only; or a checkpoint chosen by a metric of several
            labels, for a data set that has one.
    """
    if context.data.task != "multilabel" and context.monitor == "val_f1_macro":
        raise UserError(
            f"dataset.monitor=val_f1_macro is for several labels, {context.cfg.dataset.name} has one: must be one of "
            "val_accuracy, val_auroc, val_loss"
        )
    method = get_object(context.trainable.module._target_)
    if context.data.task == "multilabel" and context.selects and method.several_labels:
        raise UserError(
            f"{context.cfg.dataset.name} has several labels, and DyMo selects by classes that exclude one another: set "
            "model.select=false"
        )
    if context.data.task == "multilabel" and not method.several_labels:
        raise UserError(
            f"{context.cfg.dataset.name} has several labels, and the classes of {context.trainable.name} exclude one "
            "another: name one column in dataset.label, or choose another model, for example model=ModDrop"
        )
    if context.data.task == "multilabel" and context.trainable.get("modulation") is not None:
        raise UserError(
            f"model.modulation compares probabilities of one class, and {context.cfg.dataset.name} has several labels: "
            "leave it out, or name one column in dataset.label"
        )


def check_noise(context: Context) -> None:
    """
    Raises:
        UserError: noise for a modality that is not there, or of a kind that it is not made for; one line each.
    """
    problems = []
    noise = build_noise(context.trainable)
    asked = [s.noise for s in (context.data.missing_train, context.data.missing_val, *context.scenarios) if s.noise]
    for check in (*([noise.hits] if noise else []), *(it.levels for it in asked)):
        try:
            check(context.data.kinds)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))


def useful_stages(cfg: DictConfig) -> list[str]:
    """The stages without those that the model has no use for, each of which is a log line."""
    unused = stages_without_use(cfg)
    for stage in cfg.stages:
        if stage in unused:
            log.info("stage %s: skipped, %s", stage, unused[stage])
    return [stage for stage in cfg.stages if stage not in unused]


def fits_on_imputer(context: Context, stages: list[str]) -> bool:
    """Whether stage fit reads recoveries."""
    aware = bool(context.trainable.get("recovery_aware"))
    return (aware or context.built_on_imputer) and "fit" in stages and not context.given


def needs_imputer(context: Context, stages: list[str]) -> bool:
    """Whether stage fit or test reads recoveries."""
    tests = "test" in stages and (context.recovers or context.built_on_imputer)
    return tests or fits_on_imputer(context, stages)


def check_artefacts(context: Context, stages: list[str]) -> None:
    """What the stages read is there or made by an earlier stage, fits, and the masks fit the data.

    Raises:
        UserError: all problems, one line each, with the command that makes what is missing.
    """
    cfg, data, problems = context.cfg, context.data, []
    given = context.given
    trained = given or ("fit" in stages) or context.checkpoint.is_file()
    if {"gaussian", "test"} & set(stages) and not trained:
        problems.append(f"no trained {context.trainable.name} at {context.checkpoint}: run {context.command('fit')}")
    in_fit, imputer_needed = fits_on_imputer(context, stages), needs_imputer(context, stages)
    if imputer_needed and context.imputer_needs_weights and not context.imputer_checkpoint.is_file():
        order = stages.index("impute") if "impute" in stages else None
        first = stages.index("fit") if in_fit else len(stages)
        if order is None or order > first:
            where = " before stage fit" if order is not None else ""
            problems.append(
                f"no trained {cfg.imputer.name} at {context.imputer_checkpoint}: "
                f"run {context.command('impute')}{where}, or give imputer.checkpoint"
            )
    if "test" in stages and context.selects and "gaussian" not in stages and not context.gaussian.is_file():
        problems.append(f"no Gaussian parameters at {context.gaussian}: run {context.command('gaussian')}")
    need = {"fit": ("train", "val"), "impute": ("train",), "gaussian": (cfg.gaussian.split,), "test": ("test",)}
    for stage in stages:
        if (stage == "fit" and given) or (stage == "gaussian" and context.trainable.get("gaussian")):
            continue
        if stage == "impute" and (cfg.imputer.checkpoint or not context.imputer_needs_weights):
            continue
        for split in need.get(stage, ()):
            if not data.has_split(split):
                problems.append(f"stage {stage} needs the split '{split}', which {data.store.folder} does not have")
    unrecoverable: dict[tuple[str, str], tuple[int, int]] = {}
    masked = [("test", "missing.test", s) for s in context.scenarios]
    if context.selects:
        masked += [("val", "model.validation", s) for s in parse_scenarios(cfg.model.validation, len(data.modalities))]
    for split, key, scenario in masked if "test" in stages else []:
        if not data.has_split(split):
            continue
        try:
            mask, cells = data.masks(split, scenario)
        except UserError as error:
            problems.append(str(error))
            continue
        if split == "test":
            hidden = unobserved(mask, cells, data.modality_names)
            realised = scenario.realised_rate(hidden, cells, [m.kind for m in data.modalities])
            if remark := scenario.remark(len(data.modalities), realised):
                log.warning(remark)
        kinds, natural = get_object(cfg.imputer.module._target_).recovers, data.natural_rows(split)
        for i, m in enumerate(data.modalities) if context.recovers and kinds is not None else []:
            if m.kind in kinds:
                continue
            lacking = natural.get(m.name, np.zeros(len(mask), dtype=bool))
            if (mask[:, i] & ~lacking).any():
                problems.append(
                    f"missing scenario '{scenario.name}' hides '{m.name}', which imputer={cfg.imputer.name} cannot "
                    f"recover: leave it out of {key}, or choose an imputer that fits, {fitting_imputers(data.kinds)}"
                )
            elif lacking.any():
                unrecoverable[m.name, split] = (int(lacking.sum()), len(lacking))
    if unrecoverable and context.completes and method_class(context.trainable).needs_imputer:
        name = min(unrecoverable)[0]
        problems.append(
            f"model {context.trainable.name} classifies complete inputs only, and imputer={cfg.imputer.name} cannot "
            f"recover '{name}', which some rows lack: choose an imputer that fits, {fitting_imputers(data.kinds)}"
        )
    for stage, directory, skips in (
        ("impute", context.imputed, bool(cfg.imputer.checkpoint)),
        ("fit", context.trained, bool(given)),
    ):
        if stage in stages and not skips and not problems:
            try:
                directory.finished(stage, context.imputer_settings if stage == "impute" else context.fit_settings)
                for part in context.prerequisites.values() if stage == "fit" else ():
                    part.trained.finished("fit", part.fit_settings)
            except UserError as error:
                problems.append(str(error))
    problems += empty_limits(context, stages)
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    if unrecoverable:
        counts = (f"'{name}' in {k} of {n} rows of split '{split}'" for (name, split), (k, n) in unrecoverable.items())
        log.info(
            "imputer=%s cannot recover what the source lacks, these rows keep it missing under every scenario: %s",
            cfg.imputer.name,
            ", ".join(counts),
        )
    # Files from elsewhere are tried before anything long begins.
    if given:
        model = context.load_model()
        if context.trainable.get("gaussian") and cfg.model.get("select", True):
            context.load_parameters(model.as_backbone(str(context.distance_metric)))
    if cfg.imputer.checkpoint and imputer_needed:
        context.load_imputer()


def empty_limits(context: Context, stages: list[str]) -> list[str]:
    """Shares in ``trainer.limit_train_batches`` and ``limit_val_batches`` that come to less than one batch."""
    cfg, data = context.cfg, context.data
    sizes: dict[str, set[int]] = {"train": set(), "val": set()}
    trained = [context.trainable] if "fit" in stages and not context.given else []
    for part in context.prerequisites.values() if trained else ():
        trained.append(part.trainable)
    if "impute" in stages and not cfg.imputer.checkpoint and cfg.imputer.training.get("max_epochs"):
        trained.append(cfg.imputer)
    for node in trained:
        sizes["train"].add(int(node.training.batch_size))
        sizes["val"].add(data.test_batch_size)
    problems = []
    for split, batch_sizes in sizes.items():
        limit = cfg.trainer[f"limit_{split}_batches"]
        if not isinstance(limit, float) or not batch_sizes or not data.has_split(split):
            continue
        batches = -(-len(data.split(split)) // max(batch_sizes))
        if int(batches * limit) < 1:
            least = math.ceil(1000 / batches) / 1000
            problems.append(
                f"trainer.limit_{split}_batches={limit:g}: is less than one of {batches} batches of split '{split}'; "
                f"set it to {least:g} or more, or to a whole number of batches"
            )
    return problems


def run_fit(context: Context) -> None:
    """Train the model (DyMo: its backbone) unless that is done; before it, the models on which it is built."""
    cfg, directory = context.cfg, context.trained
    if context.given:
        log.info("fit: using %s", context.checkpoint)
        return
    settings = context.fit_settings
    if directory.finished("fit", settings, context.checkpoint):
        log.info("fit: %s is there and valid, skipped", context.checkpoint)
        return
    built_on: dict[str, Any] = {}
    for label, part in context.prerequisites.items():
        log.info("fit: %s is built on %s (%s)", cfg.model.name, part.cfg.model.name, label)
        run_fit(part)
    if context.prerequisites:
        built_on["prerequisites"] = {label: part.load_model() for label, part in context.prerequisites.items()}
    if context.built_on_imputer:
        built_on["imputer"] = context.load_imputer()
    pl.seed_everything(cfg.seed, verbose=False)
    model = build_model(cfg, context.trainable, context.data, **built_on)
    if context.trainable.get("recovery_aware"):
        model.attach_imputer(context.load_imputer())
    directory.describe(cfg)
    training = context.trainable.training
    monitor = context.monitor
    noise, modulation = build_noise(context.trainable), build_modulation(context.trainable)
    best = fit(
        *(cfg, model, context.data, training, directory, settings),
        stage="fit",
        monitor=monitor,
        noise=noise,
        watching=[modulation] if modulation else [],
    )
    if monitor:
        log.info("fit: best %s %.4f, %s", monitor, directory.result("fit")["best"], best)
    else:
        log.info("fit: the last epoch's weights, %s", best)


def run_report(context: Context) -> None:
    """Tables, figures and ``report.html`` over all runs of this data set and name, or over ``report.include``."""
    cfg = context.cfg
    root = Path(cfg.paths.output) / cfg.dataset.name
    patterns = cfg.report.include or [str(root / "*" / cfg.name / "seed*")]
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    done = {Path(p) for pattern in patterns for p in glob.glob(str(pattern)) if (Path(p) / "DONE").exists()}
    found = sorted(done, key=natural_key)
    if not found:
        raise UserError(f"nothing to report in {', '.join(patterns)}: run stage test first ({context.command('test')})")
    metrics = None if cfg.report.metrics is None else list(cfg.report.metrics)
    primary = str(cfg.report.primary)
    title = f"{cfg.dataset.name}: {cfg.name}"
    report = write_report(found, root / "report" / cfg.name, title=title, metrics=metrics, primary=primary)
    log.info("report: %s in %%\n%s", primary, print_table(report.summary, primary))
    log.info("report: %s", report.html)


RUNNERS = {
    "impute": impute.run,
    "fit": run_fit,
    "gaussian": gaussian.run,
    "test": evaluate.run,
    "report": run_report,
}

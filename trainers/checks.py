"""What can be checked of a run before its first stage begins."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

import numpy as np

from datasets.missingness import Scenario, parse_scenarios
from trainers.config.build import build_noise, method_class
from trainers.config.imputers import fitting_imputers, imputer_nodes, recovered_modalities
from trainers.loading import Run
from utils.errors import UserError

log = logging.getLogger(__name__)
# (modality, split) -> number of rows that lack it and cannot get it back, number of rows.
Lacking = dict[tuple[str, str], tuple[int, int]]
# Modality that stays missing -> scenario -> rows in which it does, and rows.
Hidden = dict[str, dict[str, tuple[int, int]]]


def check_task(run: Run) -> None:
    """
    Raises:
        UserError: the method or the monitor does not fit the number of labels.
    """
    data, dataset = run.data, run.cfg.dataset.name
    if data.task != "multilabel":
        if run.monitor == "val_f1_macro":
            raise UserError(
                f"dataset.monitor=val_f1_macro is for several labels, {dataset} has one: must be one of "
                "val_accuracy, val_auroc, val_loss"
            )
        return
    method = method_class(run.trainable)
    if run.uses_selection and method.several_labels:
        raise UserError(
            f"{dataset} has several labels, and DyMo selects by classes that exclude one another: set "
            "model.select=false"
        )
    if not method.several_labels:
        raise UserError(
            f"{dataset} has several labels, and the classes of {run.trainable.name} exclude one "
            "another: name one column in dataset.label, or choose another model, for example model=ModDrop"
        )
    if run.recovery_comparators:
        raise UserError(
            f"{dataset} has several labels, and model.comparators are of classes that exclude one another: set "
            "model.comparators=[]"
        )
    if run.trainable.get("modulation") is not None:
        raise UserError(
            f"model.modulation compares probabilities of one class, and {dataset} has several labels: "
            "leave it out, or name one column in dataset.label"
        )


def check_noise(run: Run) -> None:
    """
    Raises:
        UserError: noise on a modality that does not exist or is of another kind; one line each.
    """
    problems = []
    noise = build_noise(run.trainable)
    scenarios = (run.data.missing_train, run.data.missing_val, *run.scenarios)
    scenario_noises = [scenario.noise for scenario in scenarios if scenario.noise]
    for check in (*([noise.hits] if noise else []), *(scenario_noise.levels for scenario_noise in scenario_noises)):
        try:
            check(run.data.kinds)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))


def fits_on_imputer(run: Run, stages: list[str]) -> bool:
    """Whether stage fit reads recoveries."""
    return (run.trains_on_recoveries or run.is_built_on_imputer) and "fit" in stages and not run.checkpoint_path


def needs_imputer(run: Run, stages: list[str]) -> bool:
    """Whether stage fit or test reads recoveries."""
    tests = "test" in stages and run.predicts_with_imputer
    return tests or fits_on_imputer(run, stages)


def check_artefacts(run: Run, stages: list[str]) -> None:
    """What the stages read is there or made by an earlier stage, fits, and the masks fit the data.

    Raises:
        UserError: all problems, one line each, with the command that makes what is missing.
    """
    cfg = run.cfg
    unrecoverable: Lacking = {}
    hidden: Hidden = {}
    problems = [*_absent_files(run, stages), *_absent_splits(run, stages)]
    if "test" in stages:
        problems += _unfit_scenarios(run, unrecoverable, hidden)
    if (unrecoverable or hidden) and run.fills_missing and method_class(run.trainable).needs_imputer:
        name = min([*hidden, *(name for name, _ in unrecoverable)])
        problems.append(
            f"model {run.trainable.name} classifies complete inputs only, and imputer={cfg.imputer.name} cannot "
            f"recover '{name}', which some rows lack: choose an imputer that fits, {fitting_imputers(run.data.kinds)}"
        )
    if not problems:
        problems += _other_settings(run, stages)
    problems += empty_limits(run, stages)
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    if unrecoverable:
        counts = (f"'{name}' in {k} of {n} rows of split '{split}'" for (name, split), (k, n) in unrecoverable.items())
        log.info(
            "imputer=%s cannot recover what the source lacks, these rows keep it missing under every scenario: %s",
            cfg.imputer.name,
            ", ".join(counts),
        )
    for name, counts_of_scenarios in hidden.items():
        log.info(
            "imputer=%s has no part for '%s', which stays missing: %s of split 'test'",
            cfg.imputer.name,
            name,
            ", ".join(f"{scenario} in {k} of {n} rows" for scenario, (k, n) in counts_of_scenarios.items()),
        )
    # Files from elsewhere are tried before anything long begins.
    if run.checkpoint_path:
        model = run.load_model()
        if run.trainable.get("gaussian") and cfg.model.get("select", True):
            run.load_parameters(model.as_backbone(str(run.distance_metric)))
    if cfg.imputer.checkpoint and needs_imputer(run, stages):
        run.load_imputer()


def _absent_files(run: Run, stages: list[str]) -> Iterator[str]:
    """Weights and parameters that a stage reads, and that neither exist nor are made before it."""
    cfg = run.cfg
    is_trained = run.checkpoint_path or ("fit" in stages) or run.checkpoint.is_file()
    if {"gaussian", "test"} & set(stages) and not is_trained:
        yield f"no trained {run.trainable.name} at {run.checkpoint}: run {run.command('fit')}"
    if needs_imputer(run, stages) and run.needs_imputer_weights and not run.imputer_checkpoint.is_file():
        order = stages.index("impute") if "impute" in stages else None
        first = stages.index("fit") if fits_on_imputer(run, stages) else len(stages)
        if order is None or order > first:
            where = " before stage fit" if order is not None else ""
            yield (
                f"no trained {cfg.imputer.name} at {run.imputer_checkpoint}: "
                f"run {run.command('impute')}{where}, or give imputer.checkpoint"
            )
    if "test" in stages and run.uses_selection and "gaussian" not in stages and not run.gaussian.is_file():
        yield f"no Gaussian parameters at {run.gaussian}: run {run.command('gaussian')}"


def _absent_splits(run: Run, stages: list[str]) -> Iterator[str]:
    cfg, data = run.cfg, run.data
    needed = {"fit": ("train", "val"), "impute": ("train",), "gaussian": (cfg.gaussian.split,), "test": ("test",)}
    for stage in stages:
        if (stage == "fit" and run.checkpoint_path) or (stage == "gaussian" and run.trainable.get("gaussian")):
            continue
        if stage == "impute" and (cfg.imputer.checkpoint or not run.needs_imputer_weights):
            continue
        for split in needed.get(stage, ()):
            if not data.has_split(split):
                yield f"stage {stage} needs the split '{split}', which {data.store.folder} does not have"


def _unfit_scenarios(run: Run, unrecoverable: Lacking, hidden: Hidden) -> Iterator[str]:
    """Scenarios of stage test whose masks do not fit the data or the imputer; counts the rows that lack a modality
    which the imputer cannot recover, and those in which a scenario hides one without a part of ``imputer=Chain``."""
    data = run.data
    masked = [("test", "missing.test", scenario) for scenario in run.scenarios]
    if run.uses_selection:
        scenarios = parse_scenarios(run.cfg.model.validation, len(data.modalities))
        masked += [("val", "model.validation", scenario) for scenario in scenarios]
    for split, key, scenario in masked:
        if not data.has_split(split):
            continue
        try:
            mask, cells = data.masks(split, scenario)
        except UserError as error:
            yield str(error)
            continue
        if split == "test":
            realised = data.realised_rate(scenario, mask, cells)
            if remark := scenario.remark(len(data.modalities), realised):
                log.warning(remark)
        if run.uses_recoveries:
            yield from _unrecoverable(run, split, key, scenario, mask, unrecoverable, hidden)


def _unrecoverable(
    run: Run, split: str, key: str, scenario: Scenario, mask: np.ndarray, unrecoverable: Lacking, hidden: Hidden
) -> Iterator[str]:
    """Modalities that a scenario hides in rows (N, M) and the imputer cannot recover."""
    recovered, natural = recovered_modalities(run.cfg, run.data.kinds), run.data.natural_rows(split)
    for i, m in enumerate(run.data.modalities):
        if m.name in recovered:
            continue
        lacking = natural.get(m.name, np.zeros(len(mask), dtype=bool))
        if (mask[:, i] & ~lacking).any() and run.imputer_parts:
            if split == "test":
                hidden.setdefault(m.name, {})[scenario.name] = (int(mask[:, i].sum()), len(mask))
        elif (mask[:, i] & ~lacking).any():
            imputers = fitting_imputers(run.data.kinds)
            yield (
                f"missing scenario '{scenario.name}' hides '{m.name}', which imputer={run.cfg.imputer.name} cannot "
                f"recover: leave it out of {key}, or choose an imputer that fits, {imputers}"
            )
        elif lacking.any():
            unrecoverable[m.name, split] = (int(lacking.sum()), len(lacking))


def _other_settings(run: Run, stages: list[str]) -> Iterator[str]:
    """Finished or begun stages in the run directories that were made with other settings."""
    for stage, directory, is_given in (
        ("impute", run.imputer_directory, bool(run.cfg.imputer.checkpoint)),
        ("fit", run.fit_directory, bool(run.checkpoint_path)),
    ):
        if stage not in stages or is_given:
            continue
        try:
            directory.finished(stage, run.imputer_settings if stage == "impute" else run.fit_settings)
            for part in run.prerequisites.values() if stage == "fit" else ():
                part.fit_directory.finished("fit", part.fit_settings)
        except UserError as error:
            yield str(error)
            return


def empty_limits(run: Run, stages: list[str]) -> list[str]:
    """Problems with shares in ``trainer.limit_train_batches`` and ``limit_val_batches`` that are less than a batch."""
    cfg, data = run.cfg, run.data
    sizes: dict[str, set[int]] = {"train": set(), "val": set()}
    trained = [run.trainable] if "fit" in stages and not run.checkpoint_path else []
    for part in run.prerequisites.values() if trained else ():
        trained.append(part.trainable)
    if "impute" in stages and not cfg.imputer.checkpoint:
        trained += [node for node in imputer_nodes(cfg).values() if node.training.get("max_epochs")]
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

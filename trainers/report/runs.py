"""Finished run directories: their results, masks and predictions."""

from __future__ import annotations

import glob
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from omegaconf import DictConfig

from datasets.missingness import Scenario, parse_scenario, unobserved
from datasets.missingness.base import slug
from datasets.missingness.file import File
from datasets.missingness.table import Table
from trainers.report.directions import directions
from utils import files
from utils.checksums import verify_artefact
from utils.errors import UserError, first_line
from utils.files import natural_key
from utils.run_directory import NOT_OF_FIT, current_names
from utils.spreadsheet import unguard

log = logging.getLogger(__name__)

COLUMNS = ("dataset", "model", "seed", "scenario", "metric", "value", "n")
KEY = ["dataset", "model", "scenario", "metric"]
REPEAT = ["seed", "fold"]  # averaged over
FIX = "delete it and run stages=[test] again"
DEEPEST = 100  # levels of a configuration


@dataclass
class FinishedRun:
    """A finished run directory.

    Attributes:
        frame: its results.csv.
        model: the trained model; its comparators are named ``model/comparator``.
    """

    path: Path
    frame: pd.DataFrame

    def __post_init__(self) -> None:
        first = self.frame.iloc[0]
        self.dataset, self.model, self.seed = first["dataset"], first["model"].partition("/")[0], int(first["seed"])
        self.fold, self.train = int(first["fold"]), str(first["train"])

    @property
    def repeat(self) -> str:
        """Seed and fold, in words."""
        return f"seed {self.seed}" + (f", fold {self.fold}" if self.fold >= 0 else "")

    @cached_property
    def trained(self) -> tuple[str, ...]:
        """What was trained: equal for runs that use the same trained weights in different ways, such as two rules of
        selection. The layout has one backbone, or one CMPT that selects or not, per data set, name of it, name of the
        run and seed."""
        model = self.config.get("model")
        weights = None
        if isinstance(model, Mapping) and "select" in model:
            weights = {key: value for key, value in model.items() if key not in NOT_OF_FIT or key == "prerequisites"}
        elif isinstance(model, Mapping):
            weights = model.get("backbone")
        if weights is None:
            return (str(self.path),)
        dataset, missing, trainer = (self.config.get(key) or {} for key in ("dataset", "missing", "trainer"))
        settings = [
            weights,
            {key: value for key, value in dataset.items() if not isinstance(value, str)},  # folders may move
            {key: value for key, value in missing.items() if key != "test"},
            [trainer.get(key) for key in ("precision", "limit_train_batches", "limit_val_batches")],
        ]
        of_set, of_run = self.path.parents[2], self.path.relative_to(self.path.parents[1])
        return (str(of_set), json.dumps(settings, sort_keys=True, default=str), str(of_run))

    def text(self, file: str) -> str:
        """Content of a text file, empty if there is none.

        Raises:
            UserError: it is damaged, or not as its stage wrote it.
        """
        verify_artefact(self.path / file)
        try:
            return (self.path / file).read_text() if (self.path / file).is_file() else ""
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path / file} cannot be read ({error}): {FIX}") from None

    @cached_property
    def config(self) -> dict[str, Any]:
        """Content of ``config.yaml`` with the present names of keys, empty if there is none.

        Raises:
            UserError: it is damaged.
        """
        # The loader of LibYAML, where there is one: a report reads hundreds of files.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        text = current_names(self.text("config.yaml"))
        try:
            if _is_too_deep(text):  # LibYAML would overflow the stack
                raise ValueError("nested too deeply")
            return dict(yaml.load(text, loader) or {})
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{self.path / 'config.yaml'} is damaged ({first_line(error)}): {FIX}") from None

    @property
    def environment(self) -> dict[str, Any]:
        """Content of ``environment.json``, empty if there is none.

        Raises:
            UserError: it is damaged.
        """
        try:
            return dict(json.loads(self.text("environment.json") or "{}"))
        except (ValueError, TypeError) as error:
            raise UserError(f"{self.path / 'environment.json'} is damaged ({error}): {FIX}") from None

    def predictions(self, model: str, scenario: str) -> Path:
        """File of the predictions of the model, or of a comparator with the same backbone."""
        return self.path / "predictions" / model.removeprefix(self.model).lstrip("/") / f"{slug(scenario)}.npz"


def _is_too_deep(text: str) -> bool:
    """Whether a YAML text has more than DEEPEST levels of brackets, of items on one line, or of indentation."""
    steps = np.array([1 if bracket in "[{" else -1 for bracket in re.findall(r"[\[\]{}]", text)])
    if steps.cumsum().max(initial=0) > DEEPEST:
        return True
    return bool(re.search(rf"(?:[-?][ \t]+){{{DEEPEST}}}|^ {{{2 * DEEPEST}}}", text, flags=re.MULTILINE))


def report_patterns(cfg: DictConfig) -> list[str]:
    """Glob patterns of the run directories of stage report: ``report.include``, else all of this data set and name."""
    given = cfg.report.include or str(Path(cfg.paths.output) / cfg.dataset.name / "*" / cfg.name / "seed*")
    return [given] if isinstance(given, str) else list(given)


def finished_directories(patterns: Sequence[str]) -> list[Path]:
    """Finished run directories that match a glob pattern, in natural order."""
    paths = {Path(path) for pattern in patterns for path in glob.glob(str(pattern))}
    return sorted((path for path in paths if (path / "DONE").exists()), key=natural_key)


def scenario_of(name: str) -> Scenario:
    """The scenario of a name in a results file; unknown names count as mask files."""
    try:
        return parse_scenario(name)
    except UserError:
        return File(name)


def stored_rate(run: FinishedRun, name: str) -> float:
    """Realised missing rate of a scenario, from the run's masks or predictions; without these, the rate in the name, or
    NaN if it has none."""
    scenario = scenario_of(name)
    for file in (run.path / "masks" / f"{slug(name)}.npz", run.predictions(run.model, name)):
        arrays = load_arrays(file) if file.is_file() else {}
        if "missing" in arrays and arrays["missing"].size:
            prefix = "cells_"
            cells = {key.removeprefix(prefix): mask for key, mask in arrays.items() if key.startswith(prefix)}
            if isinstance(scenario, Table) and not cells:
                continue  # the mask of modalities does not say how many cells are missing
            if max(scenario.named_modalities, default=0) < arrays["missing"].shape[1]:
                mask = arrays["missing"].astype(bool)
                if cells:
                    names = _masked_modalities(file.with_suffix(".json"))
                    mask = unobserved(mask, cells, names)
                    cells = scenario.counted_cells(cells, names)
                return scenario.realised_rate(mask, cells)
    log.warning("report: %s stores no mask of '%s', its missing rate is the one in the name", run.path, name)
    rate = scenario.named_rate if scenario.hides else 0.0
    return np.nan if rate is None else rate


def modality_names(runs: Sequence[FinishedRun]) -> dict[str, list[str]]:
    """Data set -> names of its modalities, from the stored masks of a run or from its configuration; none for runs of
    versions without names."""
    names: dict[str, list[str]] = {}
    for run in runs:
        if run.dataset in names:
            continue
        file = next((run.path / "masks").glob("*.json"), None)
        stored = [] if file is None else _masked_modalities(file)
        if stored := stored or list((run.config.get("dataset") or {}).get("modalities") or ()):
            names[run.dataset] = stored
    return names


def _masked_modalities(path: Path) -> list[str]:
    """Names of the modalities in the file beside a mask; none in older versions.

    Raises:
        UserError: the file is damaged, or not as its stage wrote it.
    """
    verify_artefact(path)
    try:
        return list(json.loads(path.read_text()).get("modalities") or ())
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): {FIX}") from None


def read_results(path: Path) -> pd.DataFrame:
    """Read and check a results.csv; ``fold`` is -1 without cross-validation, ``train`` is ``none`` by default.

    Raises:
        UserError: the file cannot be read, lacks a column, has another value than a number, or has a row twice.
    """
    try:
        frame = pd.read_csv(path, keep_default_na=False).rename(columns=unguard)
        if absent := [c for c in COLUMNS if c not in frame]:
            raise ValueError(f"no column {', '.join(absent)}")
        frame = frame.map(unguard)
        if frame.empty:
            raise ValueError("no rows")
        frame["value"] = pd.to_numeric(frame["value"].replace("", np.nan))
        frame["seed"] = pd.to_numeric(frame["seed"]).astype(int)
        frame["fold"] = pd.to_numeric(frame.get("fold", pd.Series("", frame.index)).replace("", "-1")).astype(int)
        if "missing_rate" in frame:
            frame["missing_rate"] = pd.to_numeric(frame["missing_rate"].replace("", np.nan))
        frame["train"] = frame["train"].astype(str) if "train" in frame else "none"
        frame = frame.astype(dict.fromkeys(KEY, str))
        if (is_duplicate := frame.duplicated([*KEY, *REPEAT])).any():
            raise ValueError("twice " + ", ".join(frame.loc[is_duplicate, KEY].iloc[0]))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a results file ({error}): {FIX}") from None
    return frame


def gather(run_dirs: Sequence[Path]) -> tuple[list[FinishedRun], list[str]]:
    """The finished runs, and the reasons why others were skipped.

    Runs of one data set and model under different names are called ``model [name]``, or, if each name stands for
    another scenario in training, ``model [train ...]``. The column ``method`` has the plain name.

    Raises:
        UserError: no finished run, a broken results.csv, two runs with the same rows, or runs of a model with and
            without a fold.
    """
    runs: list[FinishedRun] = []
    skipped: list[str] = []
    for path in dict.fromkeys(Path(p).resolve() for p in run_dirs):
        if absent := [f for f in ("DONE", "results.csv") if not (path / f).is_file()]:
            skipped.append(f"{path}: no {absent[0]}" if path.is_dir() else f"{path}: no such folder")
            log.warning("report: skipped %s", skipped[-1])
        else:
            verify_artefact(path / "results.csv")
            run = FinishedRun(path, read_results(path / "results.csv"))
            if "missing_rate" not in run.frame:  # written before results.csv had it
                rates = {name: stored_rate(run, name) for name in run.frame["scenario"].unique()}
                run.frame["missing_rate"] = run.frame["scenario"].map(rates)
            run.frame["direction"] = run.frame["metric"].map(_directions(run))
            runs.append(run)
    if not runs:
        tried = ", ".join(map(str, run_dirs)) or "an empty list"
        raise UserError(f"no finished run (with results.csv and DONE) in {tried}: run stages=[test] first")
    _check_folds(runs)
    _tell_variants_apart(runs)
    _check_unique(runs)
    return runs, skipped


def _directions(run: FinishedRun) -> dict[str, str]:
    about = json.dumps(run.environment)
    try:
        return directions(run.frame["metric"].unique(), about, run.config)
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{run.path / 'config.yaml'} is damaged ({first_line(error)}): {FIX}") from None


def _check_folds(runs: Sequence[FinishedRun]) -> None:
    path_of: dict[tuple[str, str, bool], Path] = {}
    for run in runs:
        is_fold = run.fold >= 0
        path_of[run.dataset, run.model, is_fold] = run.path
        if other := path_of.get((run.dataset, run.model, not is_fold)):
            paths = (run.path, other) if is_fold else (other, run.path)
            raise UserError(
                f"{run.dataset}, {run.model}: {paths[0]} is of a fold and {paths[1]} is not, which have no common "
                "mean: report them apart (report.include)"
            )


def _tell_variants_apart(runs: Sequence[FinishedRun]) -> None:
    variants: dict[tuple[str, str], set[tuple[str, str]]] = {}  # (data set, model) -> (name of the runs, training)
    for run in runs:
        variants.setdefault((run.dataset, run.model), set()).add((run.path.parent.name, run.train))
    for run in runs:
        run.frame["method"] = run.frame["model"]
        names, trainings = map(set, zip(*(pairs := variants[run.dataset, run.model])))
        differ_in_training = len(names) == len(trainings) == len(pairs)
        if len(pairs) > 1 and not (differ_in_training and run.train == "none"):
            model = f"{run.model} [{f'train {run.train}' if differ_in_training else run.path.parent.name}]"
            run.frame["model"] = [model + member.removeprefix(run.model) for member in run.frame["model"]]
            run.model = model


def _check_unique(runs: Sequence[FinishedRun]) -> None:
    path_of: dict[tuple, Path] = {}
    for run in runs:
        for key in run.frame[[*KEY, *REPEAT]].itertuples(index=False, name=None):
            if (other := path_of.setdefault(key, run.path)) != run.path:
                raise UserError(
                    f"{other} and {run.path} both hold {key[0]}, {key[1]}, seed {key[4]}, {key[2]}: "
                    "give one of them another name=..., or leave one out"
                )


class Arrays(dict[str, np.ndarray]):
    """Arrays of a file by name."""

    def __init__(self, path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        super().__init__(arrays)
        self.path = path

    def __missing__(self, key: str) -> np.ndarray:
        raise UserError(f"{self.path} is damaged (no '{key}' in it): {FIX}")


def load_sorted(path: Path, *keys: str) -> dict[str, np.ndarray]:
    """The named arrays of a file of predictions, as far as it has them, and ``index``, sorted by ``index``."""
    arrays = load_arrays(path, "index", *keys)
    order = np.argsort(arrays["index"], kind="stable")
    if other := [key for key, values in arrays.items() if values.shape[:1] != order.shape[:1]]:
        raise UserError(f"{path} is damaged ('{other[0]}' has another number of rows): {FIX}")
    return Arrays(path, {key: values[order] for key, values in arrays.items()})


def load_arrays(path: Path, *keys: str) -> dict[str, np.ndarray]:
    """The named arrays of an npz file, as far as it has them; all without names. Reads no pickles.

    Raises:
        UserError: the file is damaged, or not as its stage wrote it; later, if an array is used that it does not have.
    """
    verify_artefact(path)
    try:
        arrays = files.load_arrays(path, keys)
        if not isinstance(arrays, dict):
            raise ValueError("one array without a name")
        return Arrays(path, arrays)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): {FIX}") from None

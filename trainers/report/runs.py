"""Runs: what their folders hold, gathered into one table."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from datasets.missingness import Scenario, parse_scenario, unobserved
from datasets.missingness.base import slug
from datasets.missingness.file import File
from datasets.missingness.table import Table
from utils.errors import UserError

log = logging.getLogger(__name__)

COLUMNS = ("dataset", "model", "seed", "scenario", "metric", "value", "n")
KEY = ["dataset", "model", "scenario", "metric"]
REPEAT = ["seed", "fold"]  # what is averaged over
MEND = "delete it and run stages=[test] again"


@dataclass
class Run:
    """A finished run directory; ``frame`` is its results.csv, ``model`` the one its comparators belong to."""

    path: Path
    frame: pd.DataFrame

    def __post_init__(self) -> None:
        first = self.frame.iloc[0]
        self.dataset, self.model, self.seed = first["dataset"], first["model"].partition("/")[0], int(first["seed"])
        self.fold, self.train = int(first["fold"]), str(first["train"])

    @property
    def repeat(self) -> str:
        """Which of the runs that are averaged over."""
        return f"seed {self.seed}" + (f", fold {self.fold}" if self.fold >= 0 else "")

    def text(self, file: str) -> str:
        """Content of a text file, empty where there is none."""
        return (self.path / file).read_text() if (self.path / file).is_file() else ""

    def predictions(self, model: str, scenario: str) -> Path:
        """Where the predictions of the model, or of a comparator on the same backbone, lie."""
        return self.path / "predictions" / model.removeprefix(self.model).lstrip("/") / f"{slug(scenario)}.npz"


def scenario_of(name: str) -> Scenario:
    """The scenario of a name in a results file; unknown names count as mask files."""
    try:
        return parse_scenario(name)
    except UserError:
        return File(name)


def stored_rate(run: Run, name: str) -> float:
    """Realised missing rate of a scenario, from the run's masks or predictions; without these the rate in the name, or
    NaN where it names none."""
    scenario = scenario_of(name)
    for file in (run.path / "masks" / f"{slug(name)}.npz", run.predictions(run.model, name)):
        arrays = load_arrays(file) if file.is_file() else {}
        if "missing" in arrays and arrays["missing"].size:
            cells = {key: value for key, value in arrays.items() if key.startswith("cells_")}
            if isinstance(scenario, Table) and not cells:
                continue  # the marks of rows do not say how many cells are missing
            if max(scenario.named_modalities, default=0) < arrays["missing"].shape[1]:
                mask = arrays["missing"].astype(bool)
                if cells:
                    names = json.loads(file.with_suffix(".json").read_text())["modalities"]
                    mask = unobserved(mask, {key.removeprefix("cells_"): gone for key, gone in cells.items()}, names)
                return scenario.realised_rate(mask, cells)
    log.warning("report: %s stores no mask of '%s', its missing rate is that of the name", run.path, name)
    rate = scenario.named_rate if scenario.hides else 0.0
    return np.nan if rate is None else rate


def modality_names(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Data set -> names of its modalities, from the stored masks of a run; none for runs of versions without names."""
    names: dict[str, list[str]] = {}
    for run in runs:
        file = next((run.path / "masks").glob("*.json"), None)
        if run.dataset not in names and file is not None:
            stored = json.loads(file.read_text()).get("modalities")
            names |= {run.dataset: stored} if stored else {}
    return names


def read_results(path: Path) -> pd.DataFrame:
    """A checked results.csv; ``fold`` is -1 without cross-validation, ``train`` is none where the file does not say.

    Raises:
        UserError: it cannot be read, or columns, numbers or uniqueness are not as they should be.
    """
    try:
        frame = pd.read_csv(path, keep_default_na=False)
        if absent := [c for c in COLUMNS if c not in frame]:
            raise ValueError(f"no column {', '.join(absent)}")
        if frame.empty:
            raise ValueError("no rows")
        frame["value"] = pd.to_numeric(frame["value"].replace("", np.nan))
        frame["seed"] = pd.to_numeric(frame["seed"]).astype(int)
        frame["fold"] = pd.to_numeric(frame.get("fold", pd.Series("", frame.index)).replace("", "-1")).astype(int)
        if "missing_rate" in frame:
            frame["missing_rate"] = pd.to_numeric(frame["missing_rate"].replace("", np.nan))
        frame["train"] = frame["train"].astype(str) if "train" in frame else "none"
        frame = frame.astype(dict.fromkeys(KEY, str))
        if (twice := frame.duplicated([*KEY, *REPEAT])).any():
            raise ValueError("twice " + ", ".join(frame.loc[twice, KEY].iloc[0]))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a results file ({error}): {MEND}") from None
    return frame


def gather(run_dirs: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The finished runs, and why the others were skipped.

    Runs of one data set and model under different names are told apart as ``model [name]``, or, where each name stands
    for another missingness in training, as ``model [train ...]``. The column ``method`` keeps the plain name.

    Raises:
        UserError: no finished run, a broken results.csv, two runs with the same rows, or runs of a model with and
            without a fold.
    """
    runs: list[Run] = []
    skipped: list[str] = []
    for path in dict.fromkeys(Path(p).resolve() for p in run_dirs):
        if absent := [f for f in ("DONE", "results.csv") if not (path / f).is_file()]:
            skipped.append(f"{path}: no {absent[0]}" if path.is_dir() else f"{path}: no such folder")
            log.warning("report: skipped %s", skipped[-1])
        else:
            run = Run(path, read_results(path / "results.csv"))
            if "missing_rate" not in run.frame:  # written before results.csv had it
                rates = {name: stored_rate(run, name) for name in run.frame["scenario"].unique()}
                run.frame["missing_rate"] = run.frame["scenario"].map(rates)
            runs.append(run)
    if not runs:
        tried = ", ".join(map(str, run_dirs)) or "an empty list"
        raise UserError(f"no finished run (with results.csv and DONE) in {tried}: run stages=[test] first")
    names: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for run in runs:
        names.setdefault((run.dataset, run.model), set()).add((run.path.parent.name, run.train))
    for dataset, model in names:
        own = [run for run in runs if (run.dataset, run.model) == (dataset, model)]
        if len(kinds := {run.fold >= 0: run.path for run in own}) > 1:
            raise UserError(
                f"{dataset}, {model}: {kinds[True]} is of a fold and {kinds[False]} is not, which have no common mean: "
                "report them apart (report.include)"
            )
    owner: dict[tuple, Path] = {}
    for run in runs:
        run.frame["method"] = run.frame["model"]
        variants = names[run.dataset, run.model]
        of_training = len({name for name, _ in variants}) == len({train for _, train in variants}) == len(variants)
        if len(variants) > 1 and not (of_training and run.train == "none"):
            main = f"{run.model} [{f'train {run.train}' if of_training else run.path.parent.name}]"
            run.frame["model"] = [main + model.removeprefix(run.model) for model in run.frame["model"]]
            run.model = main
        for key in run.frame[[*KEY, *REPEAT]].itertuples(index=False, name=None):
            if (other := owner.setdefault(key, run.path)) != run.path:
                raise UserError(
                    f"{other} and {run.path} both hold {key[0]}, {key[1]}, seed {key[4]}, {key[2]}: "
                    "give one of them another name=..., or leave one out"
                )
    return runs, skipped


def load_arrays(path: Path, *keys: str) -> dict[str, np.ndarray]:
    """The named arrays of an npz file as far as it has them, without names all; reads no pickles."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in keys or file.files if key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({error}): {MEND}") from None

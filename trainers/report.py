"""The ``report`` stage: any number of run directories into tables, tests, figures and one ``report.html``."""

from __future__ import annotations

import functools
import html
import json
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure
from scipy import stats
from tqdm import tqdm

from datasets.missingness import RATE_TOLERANCE, Scenario, mask_hash, parse_scenario
from trainers.bootstrap import DRAWS, resampled
from utils import plotting
from utils.errors import UserError
from utils.metrics import LOWER_IS_BETTER, METRICS
from utils.plotting import ORACLE_NOTE, is_oracle, with_dagger

log = logging.getLogger(__name__)

COLUMNS = ("dataset", "model", "seed", "scenario", "metric", "value", "n")
TESTS = (
    *("dataset", "scenario", "metric", "best", "model", "difference", "n_seeds", "t", "p_t"),
    *("unit", "n_rows", "best_only_right", "model_only_right", "p_mcnemar", "low", "high", "p_bootstrap"),
    "same_masks",
)
KEY = ["dataset", "model", "scenario", "metric"]
REPEAT = ["seed", "fold"]  # what is averaged over
MEND = "delete it and run stages=[test] again"
PICTURED = 6  # scenarios of one model that get pictures and histograms
# style: best, second best, other, dagger
MARKS = {
    "plain": ("{}*", "{}+", "{} ", "†"),
    "markdown": ("**{}**", "_{}_", "{}", "†"),
    "latex": (r"\textbf{{{}}}", r"\underline{{{}}}", "{}", r"$^\dagger$"),
    "html": ("<b>{}</b>", "<u>{}</u>", "{}", "<sup>†</sup>"),
}
LATEX = {c: "\\" + c for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"}


@dataclass
class Report:
    """What was written: the page, ``summary.csv``, ``tests.csv``, and (dataset, metric) -> table of plain strings."""

    html: Path
    summary: pd.DataFrame
    tests: pd.DataFrame
    tables: dict[tuple[str, str], pd.DataFrame]


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


def scenario_of(name: str) -> Scenario | None:
    """The scenario of a name in a results file, None where it is of a file or not known here."""
    try:
        return parse_scenario(name)
    except UserError:
        return None


def stored_rate(run: Run, name: str) -> float:
    """Realised missing rate of a scenario, from the run's masks or predictions; without these the rate in the name, or
    NaN where it names none."""
    scenario = scenario_of(name) or Scenario(name, "file")
    for file in (run.path / "masks" / f"{slug(name)}.npz", run.predictions(run.model, name)):
        arrays = load_arrays(file) if file.is_file() else {}
        if "missing" in arrays and arrays["missing"].size:
            cells = {key: value for key, value in arrays.items() if key.startswith("cells_")}
            if scenario.kind == "table" and not cells:
                continue  # the marks of rows do not say how many cells are missing
            scenario = replace(scenario, path=".npy") if scenario.kind == "file" and cells else scenario
            if max(scenario.modalities, default=0) < arrays["missing"].shape[1]:
                return scenario.realised_rate(arrays["missing"].astype(bool), cells)
    log.warning("report: %s stores no mask of '%s', its missing rate is that of the name", run.path, name)
    rate = 0.0 if scenario.kind == "none" else scenario.named_rate
    return np.nan if rate is None else rate


def slug(name: str) -> str:
    """A name as a file stem, spelled as :class:`Scenario` does."""
    return Scenario(name, "").slug


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


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean, SD (n - 1; empty for one run) and number of runs of every dataset, model, scenario and metric.

    ``missing_rate`` is the mean realised rate, where ``frame`` has it.

    Under cross-validation a fold is what is repeated: its seeds are averaged first, and ``error``, which is shown, is
    the standard error SD / sqrt(folds). Else ``error`` is the SD, over ``n_seeds``, and ``n_folds`` is 0.
    """
    frame = frame if "fold" in frame else frame.assign(fold=-1)
    seeds = frame[frame["value"].notna()].groupby(KEY, sort=False)["seed"].nunique()
    unit = frame["fold"].where(frame["fold"] >= 0, -1 - frame["seed"])
    units = frame.assign(unit=unit).groupby([*KEY, "unit"], sort=False)[["value", "fold"]].mean().reset_index()
    found = units.groupby(KEY, sort=False).agg(
        mean=("value", "mean"), sd=("value", "std"), count=("value", "count"), fold=("fold", "max")
    )
    folds = found.pop("count").where(found.pop("fold") >= 0, 0)
    found["n_seeds"] = seeds.reindex(found.index, fill_value=0)
    found["n_folds"] = folds
    found["error"] = found["sd"] / np.sqrt(folds.where(folds > 0, 1))
    if "missing_rate" in frame:
        found["missing_rate"] = frame.groupby(KEY, sort=False)["missing_rate"].mean().reindex(found.index)
    return found.reset_index()


def spread(summary: pd.DataFrame) -> str:
    """What the numbers of a table are, in words."""
    counts = {kind: sorted({summary[f"n_{kind}"].min(), summary[f"n_{kind}"].max()}) for kind in ("folds", "seeds")}
    if counts["folds"][-1] == 0:
        return f"mean ± standard deviation over seeds ({' to '.join(map(str, counts['seeds']))} per cell)"
    return f"mean ± standard error over folds ({' to '.join(map(str, counts['folds']))} per cell)"


def label(metric: str) -> str:
    """The metric with its unit."""
    return f"{metric} (%)" if metric in METRICS or metric.endswith("_share") else metric


def _shown(summary: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rows of one metric in the unit of :func:`label`; ``sd`` becomes what is shown after ±."""
    rows = summary[summary["metric"] == metric]
    factor = 100 if label(metric) != metric else 1
    return rows.assign(mean=rows["mean"] * factor, sd=rows["error"] * factor)


def table(summary: pd.DataFrame, metric: str, style: str = "plain") -> pd.DataFrame:
    """Rows are models, columns scenarios, cells 'mean ± SD' (± SE over folds); best and second best are marked.

    Equal as shown is equal: all firsts are best, all holders of the next value second best. Models that use labels,
    metrics without a better side and columns with one model get no marks.

    Args:
        summary: of :func:`summarise`, one data set.
        style: plain | markdown | latex | html; text is escaped to suit.
    """
    rows = _shown(summary, metric)
    digits = (".2f", ".2f") if label(metric) != metric else (".4g", ".2g")
    text = [
        "–" if np.isnan(mean) else format(mean, digits[0]) + ("" if np.isnan(sd) else f" ± {sd:{digits[1]}}")
        for mean, sd in zip(rows["mean"], rows["sd"])
    ]
    ranked = rows[~rows["model"].map(is_oracle) & rows["mean"].notna() & (metric in METRICS)]
    groups = ranked.assign(mean=ranked["mean"].round(2)).groupby("scenario")["mean"]
    rank = groups.rank(method="dense", ascending=metric in LOWER_IS_BETTER).where(groups.transform("size") > 1)
    best, second, other, dagger = MARKS[style]
    mark = rank.reindex(rows.index).map({1.0: best, 2.0: second}).fillna(other)
    rows["text"] = [form.format(_escape(t, style)) for form, t in zip(mark, text)]
    cells = rows.pivot(index="model", columns="scenario", values="text")
    cells = cells.reindex(index=rows["model"].unique(), columns=rows["scenario"].unique()).fillna(_escape("–", style))
    cells.index = pd.Index([_escape(m, style) + dagger * is_oracle(m) for m in cells.index], name="model")
    cells.columns = pd.Index([_escape(s, style) for s in cells.columns])
    return cells


def _escape(text: str, style: str) -> str:
    if style == "latex":
        text = re.sub(r"[&%$#_{}\\~^]", lambda found: LATEX[found[0]], text)
        return text.replace("±", r"$\pm$").replace("–", "--")
    if style == "markdown":
        return text.replace("|", r"\|")
    return html.escape(text) if style == "html" else text


def with_rates(cells: pd.DataFrame, summary: pd.DataFrame, style: str = "plain") -> pd.DataFrame:
    """A :func:`table` with the realised missing rate of every scenario in a last row.

    Args:
        summary: of :func:`summarise`, what the table was made of.
    """
    rates = _rates(summary)
    if not rates:
        return cells
    names = {_escape(name, style): rate for name, rate in rates.items()}
    texts = [_escape("–", style) if np.isnan(rate := names[name]) else f"{rate:.3g}" for name in cells.columns]
    row = pd.DataFrame([texts], index=pd.Index(["missing rate"], name="model"), columns=cells.columns)
    return pd.concat([cells, row])


def _rates(summary: pd.DataFrame) -> dict[str, float]:
    """Scenario -> realised missing rate; empty where the summary has none."""
    if "missing_rate" not in summary:
        return {}
    return dict(summary.groupby("scenario", sort=False)["missing_rate"].mean())


def rate_notes(summary: pd.DataFrame) -> list[str]:
    """A sentence for each scenario whose realised missing rate is not the one in its name."""
    notes = []
    for name, rate in _rates(summary).items():
        scenario = scenario_of(name)
        named = None if scenario is None else scenario.named_rate
        if named is not None and abs(rate - named) > RATE_TOLERANCE + 1e-9:
            notes.append(f"{name} has a realised missing rate of {rate:.3g}, not {named:g}")
    return notes


def to_markdown(cells: pd.DataFrame) -> str:
    """A table of strings as Markdown."""
    return cells.reset_index().to_markdown(index=False, disable_numparse=True)


def to_latex(cells: pd.DataFrame) -> str:
    """A table of escaped strings as a ``tabular`` of the package booktabs."""
    columns = "l" + "r" * cells.shape[1]
    return cells.reset_index().to_latex(index=False, escape=False, column_format=columns).rstrip()


def print_table(summary: pd.DataFrame, metric: str, models: Sequence[str] | None = None) -> str:
    """The table of one metric for the terminal, a block for each data set; ``models`` keeps only those."""
    rows = summary[(summary["metric"] == metric) & (summary["model"].isin(models or summary["model"]))]
    blocks = []
    for dataset, part in rows.groupby("dataset", sort=False):
        text = with_rates(table(part, metric), part).rename_axis(None).to_string()
        notes = ["* best, + second best"] * (metric in METRICS) + [f"† {ORACLE_NOTE}"] * ("†" in text)
        notes += rate_notes(part) + [spread(part)] * bool((part["n_folds"] > 0).any())
        blocks.append("\n".join([f"{dataset}, {label(metric)}", text, *notes]))
    return "\n\n".join(blocks)


def paired_t(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Statistic and two-sided p of the paired t-test.

    Where all differences are equal the test has no variance to go by: (0, 1) if they are zero, else (±inf, NaN).
    Fewer than two pairs: (NaN, NaN).
    """
    if len(a) < 2:
        return np.nan, np.nan
    difference = np.asarray(a) - np.asarray(b)
    if np.ptp(difference) < 1e-9:  # far below one test sample: rounding, not variance
        same = abs(difference[0]) < 1e-9
        return (0.0, 1.0) if same else (float(np.copysign(np.inf, difference[0])), np.nan)
    result = stats.ttest_rel(a, b)
    return float(result.statistic), float(result.pvalue)


def mcnemar(first_only: int, second_only: int) -> float:
    """Two-sided exact p of McNemar's test from the rows that only one of two models has right."""
    rows = first_only + second_only
    return float(stats.binomtest(first_only, rows, 0.5).pvalue) if rows else 1.0


def load_arrays(path: Path, *keys: str) -> dict[str, np.ndarray]:
    """The named arrays of an npz file as far as it has them, without names all; reads no pickles."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in keys or file.files if key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({error}): {MEND}") from None


def _right(data: Mapping[str, np.ndarray]) -> np.ndarray:
    """(N,) bool: the predicted class is the target; of several labels, every labelled one is right."""
    logits, target = data["logits"], data["target"]
    return (((logits > 0) == (target > 0)) | (target < 0)).all(1) if target.ndim == 2 else logits.argmax(1) == target


def _outcome(path: Path) -> dict[str, np.ndarray]:
    """The predictions of a file, in the order of the rows."""
    data = load_arrays(path, "index", "logits", "target", "missing")
    order = np.argsort(data["index"], kind="stable")
    return {key: values[order] for key, values in data.items()}


def _resampled(metric: str, path: Path) -> np.ndarray | None:
    return resampled(_outcome(path), metric)


def compare(runs: Sequence[Run], frame: pd.DataFrame, primary: str) -> pd.DataFrame:
    """Best model of each scenario against every other.

    ``p_t`` is of the paired t-test over common seeds (and folds). The tests over test rows take the predictions that
    both models saved, and ``unit`` says what of:

    - accuracy of one label, one common seed: McNemar's exact test (``unit`` is ``row``).
    - else the paired bootstrap over rows: ``low`` and ``high`` bound the 95 % interval of the difference, and
      ``p_bootstrap`` is two-sided. Several seeds share their test rows: a row is drawn with the predictions of all of
      them (``row, all seeds together``), and ``n_rows`` counts it once. Folds have different rows, and no such test.

    Upper bounds (``†``) are listed with their difference and never tested, nor best.
    """
    rows = frame[(frame["metric"] == primary) & frame["value"].notna()]
    owner = {(run.dataset, m, run.seed, run.fold): run for run in runs for m in run.frame["model"].unique()}
    found = []
    for (dataset, scenario), part in rows.groupby(["dataset", "scenario"], sort=False):
        values = {str(model): group.set_index(REPEAT)["value"] for model, group in part.groupby("model", sort=False)}
        sign = -1 if primary in LOWER_IS_BETTER else 1
        score = {model: sign * value.mean() for model, value in values.items() if not is_oracle(model)}
        best = max(score, key=lambda model: score[model], default="")
        outcome = functools.cache(_outcome)  # of one scenario at a time
        draws = functools.cache(functools.partial(_resampled, primary))
        for model in (m for m in values if best and m != best):
            seeds = sorted(set(values[best].index) & set(values[model].index))
            a, b = values[best].loc[seeds].to_numpy(), values[model].loc[seeds].to_numpy()
            difference = (a - b).mean() if seeds else np.nan
            pairs = [
                (owner[dataset, best, *seed].predictions(best, scenario), file)
                for seed in seeds
                if (file := owner[dataset, model, *seed].predictions(model, scenario)).is_file()
            ]
            pairs = [pair for pair in pairs if pair[0].is_file()]
            entry = dict.fromkeys(TESTS) | {"dataset": dataset, "scenario": scenario, "metric": primary, "best": best}
            entry |= {"model": with_dagger(model), "difference": difference, "n_seeds": len(seeds), "n_rows": 0}
            if not is_oracle(model):
                entry["t"], entry["p_t"] = paired_t(a, b)
            is_fold = any(fold >= 0 for _, fold in seeds)
            if pairs and not is_fold and not is_oracle(model):
                entry |= _over_rows([(outcome(x), outcome(y)) for x, y in pairs], pairs, primary, draws)
            if entry["same_masks"] is False:
                log.warning("report: %s and %s have different masks for %s, %s", best, model, dataset, scenario)
            found.append(entry)
    numbers = [column for column in TESTS[5:] if column not in ("unit", "same_masks")]
    tests = pd.DataFrame(found, columns=list(TESTS)).astype(dict.fromkeys(numbers, float))
    return tests.where(tests.notna(), np.nan)


def _over_rows(
    outcomes: Sequence[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]],
    files: Sequence[tuple[Path, Path]],
    primary: str,
    draws: Callable[[Path], np.ndarray | None],
) -> dict[str, Any]:
    """The entries of :func:`compare` that come from test rows: a pair of predictions and files for each common seed."""
    index = outcomes[0][0]["index"]
    if not all(np.array_equal(index, data["index"]) for pair in outcomes for data in pair):
        return {}
    same = all(mask_hash(a["missing"].astype(bool)) == mask_hash(b["missing"].astype(bool)) for a, b in outcomes)
    entry: dict[str, Any] = {"n_rows": len(index), "same_masks": same}
    one_label = outcomes[0][0]["target"].ndim == 1
    if primary == "accuracy" and one_label and len(outcomes) == 1:
        first, second = map(_right, outcomes[0])
        only = int((first & ~second).sum()), int((~first & second).sum())
        names = ("unit", "best_only_right", "model_only_right", "p_mcnemar")
        return entry | dict(zip(names, ("row", *only, mcnemar(*only))))
    samples = [(draws(a), draws(b)) for a, b in files]
    if any(a is None or b is None for a, b in samples):
        return entry
    entry["unit"] = "row" if len(outcomes) == 1 else "row, all seeds together"
    difference = np.mean([a - b for a, b in samples], axis=0)  # type: ignore[operator]
    difference = difference[np.isfinite(difference)]
    if len(difference) >= DRAWS / 2:
        entry["low"], entry["high"] = np.quantile(difference, (0.025, 0.975))
        # A difference of rounding alone is none.
        side = min((difference <= 1e-12).sum(), (difference >= -1e-12).sum())
        entry["p_bootstrap"] = min(2 * (1 + side) / (1 + len(difference)), 1.0)
    return entry


def training_sweep(frame: pd.DataFrame) -> pd.DataFrame:
    """Methods trained under several missingness scenarios and tested on complete data, as a frame whose ``scenario`` is
    the one of training; empty where there are no several, or a method has two runs of one."""
    rows = frame[frame["scenario"] == "none"]
    rows = rows.assign(model=rows["method"], scenario=rows["train"])
    rows = rows.drop(columns="missing_rate", errors="ignore")  # that of the test
    several = rows["train"].nunique() > 1 and not rows.duplicated([*KEY, *REPEAT]).any()
    return rows.sort_values("train", key=lambda train: train != "none", kind="stable") if several else rows[:0]


def _draw(
    runs: Sequence[Run], summary: pd.DataFrame, sweep: pd.DataFrame, metrics: Sequence[str], folder: Path
) -> dict[str, list[Path]]:
    """Draw everything; section of the page -> its PNG files.

    Args:
        sweep: the summary of :func:`training_sweep`; with it, curves over test rates are those of complete training.
    """
    partial = functools.partial
    jobs: list[tuple[str, str, Callable[[], Figure | None]]] = []
    styles = plotting.model_styles(list((sweep if len(sweep) else summary)["model"].unique()))
    degradation = partial(plotting.degradation, modalities=_modalities(runs))
    if len(sweep):
        by_training = partial(degradation, xlabel="missing rate in training")
        jobs = [
            ("sweep", f"sweep_{slug(m)}", partial(by_training, _shown(sweep, m), label(m), styles)) for m in metrics
        ]
    by_test = partial(degradation, whole=_rate_one(runs))
    for metric in metrics:
        for name, draw in (
            ("degradation", by_test),
            ("noise", plotting.noise_levels),
            ("scenarios", plotting.scenario_bars),
        ):
            arguments = (_shown(summary, metric), label(metric), styles)
            jobs.append((metric, f"{name}_{slug(metric)}", partial(draw, *arguments)))
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.seed, run.fold)):
        groups.setdefault((run.dataset, run.model), []).append(run)
    several = summary["dataset"].nunique() > 1
    for (dataset, model), group in groups.items():
        stem, title = slug(f"{dataset}_{model}" if several else model), f"{dataset}, {model}"
        scenarios = list(dict.fromkeys(s for run in group for s in run.frame["scenario"]))
        examples = [(s, f) for s in scenarios if (f := group[0].path / "examples" / f"{slug(s)}.npz").is_file()]
        if len(examples) > PICTURED:
            log.info("report: pictures of the first %d of %d scenarios of %s", PICTURED, len(examples), title)
        for scenario, file in examples[:PICTURED]:
            heading = f"{title}, {scenario}, {group[0].repeat}"
            jobs.append(("samples", f"samples_{stem}_{slug(scenario)}", partial(_samples, file, heading)))
        jobs.append(("rewards", f"rewards_{stem}", partial(_rewards, group, model, scenarios, title)))
        logs = {run.repeat: f for run in group if (f := run.path / "metrics.csv").is_file() and f.stat().st_size > 1}
        curves = {repeat: pd.read_csv(file) for repeat, file in logs.items()}
        jobs.append(("training", f"training_{stem}", partial(plotting.training_curves, curves, title)))
    drawn: dict[str, list[Path]] = {}
    for section, name, job in tqdm(jobs, desc="report: figures", disable=None, leave=False):
        if figure := job():
            plotting.save(figure, folder / f"{name}.png", pdf=section in metrics)
            drawn.setdefault(section, []).append(folder / f"{name}.png")
    return drawn


def _rate_one(runs: Sequence[Run]) -> dict[tuple[str, str], str]:
    """(data set, family of rates) -> the scenario that hides in all rows what the family hides in some."""
    found = {}
    for run in runs:
        for family in ("image_text_text_", "image_text_image_"):
            rates = [s for s in run.frame["scenario"].unique() if s.startswith(family)]
            file = run.predictions(run.model, max(rates, default=""))
            if rates and file.is_file() and (run.dataset, family) not in found:
                # The data may lack some of the other modality besides.
                hidden = load_arrays(file, "missing")["missing"].mean(0).argmax()
                found[run.dataset, family] = f"whole_{hidden}"
    return found


def _modalities(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Data set -> the names of its modalities, by the masks of a run; runs from before masks had them say nothing."""
    found: dict[str, list[str]] = {}
    for run in runs:
        file = next((run.path / "masks").glob("*.json"), None)
        if file is None or run.dataset in found:
            continue
        if names := json.loads(file.read_text()).get("modalities"):
            found[run.dataset] = names
    return found


def _samples(file: Path, title: str) -> Figure:
    return plotting.samples(load_arrays(file), title)


def _rewards(runs: Sequence[Run], model: str, scenarios: Sequence[str], title: str) -> Figure | None:
    """Histograms of the rewards of a selecting model, pooled over its seeds; None for other models."""
    panels: dict[str, tuple[np.ndarray, ...]] = {}
    for scenario in scenarios:
        parts = []
        for file in (f for run in runs if len(panels) < PICTURED and (f := run.predictions(model, scenario)).is_file()):
            data = load_arrays(file, "rewards", "accepted", "logits", "target")
            if np.isfinite(data.get("rewards", np.nan)).any():
                parts.append((*plotting.last_rewards(data["rewards"], data["accepted"]), _right(data)))
        if parts:
            panels[scenario] = tuple(np.concatenate(part) for part in zip(*parts))
    return plotting.reward_histograms(panels, title) if panels else None


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 72rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere }
h1 { line-height: 1.2 } h2 { margin-top: 2.2em; border-bottom: 1px solid #bbb } img { max-width: 100%; height: auto }
.wide { overflow-x: auto; margin: .6em 0 } table { border-collapse: collapse; font-size: .9rem }
th, td { padding: .3em .7em; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd }
th { border-bottom: 2px solid #555 } .note { color: #444; font-size: .9rem } u { text-underline-offset: .2em }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff }
pre { overflow-x: auto; background: #f5f5f5; padding: .8em; font-size: .8rem }
summary { cursor: pointer; padding: .3em 0 }
</style></head><body>
<h1>{{ title }}</h1>
<p class="note">{{ runs | length }} runs, {{ date }}</p>
{% for s in skipped %}<p class="note">Skipped {{ s }}</p>{% endfor %}
<h2>How to read this</h2>
<p>A row is a model, a column a way of being incomplete: <i>none</i> is complete data, <i>random_0.4</i> hides 40 % of
the modalities (the last row of a table has the realised rate), <i>whole_12</i> hides modalities 1 and 2 (counted from
0) of every sample, <i>nested_0_0.25</i> hides modality 0 of 25 % of them, <i>noise_gaussian_4_m0</i> adds noise of
level 4 (of 11) to modality m0, and what follows a plus is hidden besides. Cells are the {{ spread }}; without ± there
is one run. <b>Bold</b> is best and <u>underlined</u> second best in a column, equal values alike; for {{ lower }}
lower is better. A name after a slash is another way of using the same trained model.{% if oracle %} <sup>†</sup> {{
oracle }}.{% endif %}</p>
{% for metric, tables, figures in metrics %}<details{% if loop.first %} open{% endif %}>
<summary><b>{{ metric }}</b></summary>
{% for dataset, cells in tables %}<h3>{{ dataset }}</h3><div class="wide">{{ cells }}</div>{% endfor %}
{% for name, uri in figures %}<p><img alt="{{ name }}" src="{{ uri }}"></p>{% endfor %}</details>
{% endfor %}
{% if sweep %}<h2>Trained on incomplete data, tested on complete data</h2>
<p class="note">A column is what was missing in training.</p>
{% for metric, cells in sweep %}<h3>{{ metric }}</h3><div class="wide">{{ cells }}</div>{% endfor %}{% endif %}
{% if tests %}<h2>Paired tests, {{ primary }}</h2>
<details><summary>Best model of each scenario against the others</summary>
<p class="note">p_t: paired t-test over common seeds; few seeds see only large differences, and it is empty where the
difference never varies. p_mcnemar: exact McNemar test, for the accuracy of one label and one seed. p_bootstrap, low and
high: paired bootstrap over test rows with the 95 % interval of the difference, for everything else; seeds share their
test rows, so a row is drawn with the predictions of all seeds. The tests over rows speak of these trained models, not
of training anew. The column unit says what is drawn or counted. {% if folds %}The training rows of folds overlap, so
over folds p_t comes out too small. {% endif %}Nothing is corrected for the number of comparisons, nor for calling the
best one best after seeing the results.{% if oracle %} <sup>†</sup> {{ oracle }}, and not tested.{% endif %}</p>
<div class="wide">{{ tests }}</div></details>{% endif %}
{% for heading, note, figures in sections if figures %}<h2>{{ heading }}</h2><p class="note">{{ note }}</p>
{% for name, uri in figures %}<details><summary>{{ name }}</summary><img alt="{{ name }}" src="{{ uri }}"></details>
{% endfor %}{% endfor %}
<h2>Runs</h2>{% for part in environment %}<div class="wide">{{ part }}</div>{% endfor %}
{% for run in runs %}<details><summary>{{ run.path }}</summary><pre>{{ run.text("config.yaml") or "no config.yaml" }}
</pre></details>{% endfor %}
</body></html>
"""
SECTIONS = {
    "sweep": "Tested on complete data; at rate 0 trained on complete data.",
    "samples": "Missing originals are dimmed in a dashed frame. Accepted recoveries have a green frame and their order "
    "in brackets; their reward is bold at the step that accepted them.",
    "rewards": "The last reward of each recovery, over all seeds; numbers in brackets count recoveries.",
    "training": "One line for each seed or fold.",
}


def _html(summary: pd.DataFrame, metric: str) -> str:
    cells = with_rates(table(summary, metric, "html"), summary, "html").reset_index()
    notes = "".join(f'<p class="note">{_escape(text, "html")}</p>' for text in rate_notes(summary))
    return cells.to_html(index=False, border=0, escape=False) + notes


def _environment(runs: Sequence[Run]) -> list[Markup]:
    """Tables of environment.json: what all runs share, and what differs."""
    entries = [json.loads(run.text("environment.json") or "{}") for run in runs]
    frame = pd.json_normalize(entries).astype(object).map(lambda v: "–" if v is None or v != v else str(v))
    shared = [column for column in frame if frame[column].nunique() == 1]
    common = pd.DataFrame({"entry": shared, "the same in all runs": [frame[c].iloc[0] for c in shared]})
    frame.insert(0, "run", [f"{run.dataset}, {run.model}, {run.repeat}" for run in runs])
    parts = [common] * bool(shared) + [frame.drop(columns=shared)]
    return [Markup(part.to_html(index=False, border=0)) for part in parts]


def _page(
    runs: Sequence[Run],
    skipped: Sequence[str],
    summary: pd.DataFrame,
    sweep: pd.DataFrame,
    tests: pd.DataFrame,
    metrics: Sequence[str],
    primary: str,
    title: str,
    drawn: dict[str, list[Path]],
) -> str:
    figures = {section: [(file.stem, plotting.data_uri(file)) for file in files] for section, files in drawn.items()}
    blocks = []
    for metric in metrics:
        tables = [
            (name, Markup(_html(part, metric)))
            for name, part in summary[summary["metric"] == metric].groupby("dataset", sort=False)
        ]
        blocks.append((label(metric), tables, figures.get(metric, [])))
    page = jinja2.Environment(autoescape=True).from_string(PAGE)
    return page.render(
        runs=runs,
        skipped=skipped,
        title=title,
        date=datetime.now().strftime("%Y-%m-%d %H:%M"),
        spread=spread(summary),
        folds=bool((summary["n_folds"] > 0).any()),
        lower=", ".join(LOWER_IS_BETTER),
        oracle=ORACLE_NOTE if summary["model"].map(is_oracle).any() else "",
        metrics=blocks,
        sweep=[(label(m), Markup(_html(sweep, m))) for m in metrics if len(sweep)],
        primary=primary,
        tests=len(tests) and Markup(tests.to_html(index=False, border=0, float_format="{:.3g}".format, na_rep="")),
        sections=[(name.capitalize(), note, figures.get(name)) for name, note in SECTIONS.items()],
        environment=_environment(runs),
    )


def _check_output(output: Path, run_dirs: Sequence[Path]) -> None:
    if any(Path(run).resolve().is_relative_to(output) for run in run_dirs):
        mend = f"give it a folder of its own, for example {output / 'report'}"
        raise UserError(f"{output} holds runs, and a report replaces its folder whole: {mend}")
    if output.is_file() or (output.exists() and any(output.iterdir()) and not (output / "report.html").is_file()):
        raise UserError(f"{output} holds something else than a report, which would be lost: give a new folder")


def write_report(
    run_dirs: Sequence[Path],
    output: Path,
    *,
    title: str,
    metrics: Sequence[str] | None = None,
    primary: str = "accuracy",
) -> Report:
    """Gather finished run directories into ``output``, which is replaced whole once everything is written.

    Args:
        run_dirs: ``.../<dataset>/<model>/<name>/seed<k>``; without DONE or results.csv skipped with a warning.
        title: heading of the page.
        metrics: those that get tables and figures, all by default.
        primary: the metric of the paired tests, shown first.

    Raises:
        UserError: nothing to report, unreadable results, unknown metric, or an ``output`` that holds other things.
    """
    output = Path(output).resolve()
    _check_output(output, run_dirs)
    runs, skipped = gather(run_dirs)
    frame = pd.concat([run.frame for run in runs], ignore_index=True)
    present = list(frame["metric"].unique())
    if unknown := [m for m in (primary, *(metrics or ())) if m not in present]:
        raise UserError(f"no run has the metric '{unknown[0]}': choose from {', '.join(present)}")
    metrics = sorted(dict.fromkeys(metrics or present), key=lambda m: m != primary)
    log.info("report: %d runs, %s, into %s", len(runs), ", ".join(metrics), output)
    summary, tests, tables = summarise(frame), compare(runs, frame, primary), {}
    sweep = summarise(training_sweep(frame))

    draft, old = (output.with_name(f".{output.name}.{os.getpid()}.{kind}") for kind in ("draft", "old"))
    draft.mkdir(parents=True)
    try:
        for name, content in (("results", frame), ("summary", summary), ("sweep", sweep), ("tests", tests)):
            if name == "sweep" and not len(sweep):
                continue
            content.to_csv(draft / f"{name}.csv", index=False)
        for metric in metrics:
            markdown, latex = [], ["% needs \\usepackage{booktabs}"]
            for dataset, part in summary[summary["metric"] == metric].groupby("dataset", sort=False):
                tables[str(dataset), metric] = table(part, metric)
                note = bool(part["model"].map(is_oracle).any())
                notes, of_style = rate_notes(part), {}
                for style in ("markdown", "latex"):
                    of_style[style] = with_rates(table(part, metric, style), part, style)
                markdown += [f"## {dataset}, {label(metric)}\n", to_markdown(of_style["markdown"]) + "\n"]
                markdown += [f"{text}\n" for text in notes]
                markdown += [f"† {ORACLE_NOTE}\n"] * note + [f"{spread(part)}\n"] * bool(part["n_folds"].any())
                latex += [f"% {dataset}, {label(metric)}", to_latex(of_style["latex"])]
                latex += [rf"\par{{\footnotesize {_escape(text, 'latex')}}}" for text in notes]
                latex += [rf"\par{{\footnotesize $^\dagger$ {ORACLE_NOTE}}}"] * note
            (draft / f"summary_{slug(metric)}.md").write_text("\n".join(markdown))
            (draft / f"summary_{slug(metric)}.tex").write_text("\n".join(latex) + "\n")
            if len(sweep):
                (draft / f"sweep_{slug(metric)}.md").write_text(to_markdown(table(sweep, metric, "markdown")) + "\n")
                (draft / f"sweep_{slug(metric)}.tex").write_text(to_latex(table(sweep, metric, "latex")) + "\n")
        drawn = _draw(runs, summary, sweep, metrics, draft / "figures")
        page = _page(runs, skipped, summary, sweep, tests, metrics, primary, title, drawn)
        (draft / "report.html").write_text(page)
        if output.exists():
            output.rename(old)
        draft.rename(output)
    finally:
        for rest in (draft, old):
            shutil.rmtree(rest, ignore_errors=True)
    return Report(output / "report.html", summary, tests, tables)

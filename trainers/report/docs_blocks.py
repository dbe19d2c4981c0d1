"""Blocks and cells of :mod:`trainers.report.docs`."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.image import imread

from trainers.report.costs import cost_table
from trainers.report.docs_sources import Source, Sources
from trainers.report.evidence import METRICS_OF_CLASSES
from trainers.report.figures import scenarios_at_rate_one
from trainers.report.plots import degradation
from trainers.report.rank_changes import Scores, agreement, order_changes, ranks
from trainers.report.runs import modality_names
from trainers.report.selection_gains import cells_of, correlations, gains, lead_figure
from trainers.report.statistics import compare
from trainers.report.style import ORACLE_NOTE, is_oracle, model_styles
from trainers.report.tables import label, rows_of_metric, spread, table, to_markdown
from utils.errors import UserError

# Options of each kind of block, beside ``from``.
OPTIONS: dict[str, tuple[str, ...]] = {
    "table": ("metric", "models", "scenarios", "digits"),
    "comparison": ("metric", "models", "scenarios", "digits", "against", "name"),
    "ranks": ("metric", "models", "scenarios", "digits"),
    "runs": (),
    "costs": ("models",),
    "figure": ("metric", "models", "scenarios", "file"),
    "gains": ("metric", "models", "scenarios", "digits"),
    "leads": ("scenarios", "file", "and", "coherence"),
}
CELL = re.compile(
    r"(?P<source>\S+): (?P<model>.+?)(?: minus (?P<other>.+?))? at (?P<scenario>\S+?)(?:, (?P<metric>\w+))?"
)
TEST = re.compile(r"(?P<what>p|interval) of (?P<model>.+?) minus (?P<other>.+?) at (?P<scenario>\S+) in (?P<name>\S+)")
NUMBER = re.compile(r"(?P<sign>[+−]?)\d+(?:\.(?P<decimals>\d+))?(?P<spread> ± \d+(?:\.\d+)?)?")


@dataclass(frozen=True)
class Block:
    """Query of a block.

    Attributes:
        models, scenarios: model or scenario -> its name in the block; empty = all of the source.
        digits: decimals of metrics in percent.
        file: of a figure, beside the page.
        against: of a comparison, the model with which all others are compared; empty = the best of each scenario.
        name: of a comparison, by which cells of the page refer to it.
        others: further studies, of leads.
        coherence: of leads, the sources with that of the imputers.
    """

    source: Source
    page: Path
    link: Path
    metric: str = "accuracy"
    models: Mapping[str, str] | None = None
    scenarios: Mapping[str, str] | None = None
    digits: int = 2
    file: str = ""
    against: str = ""
    name: str = ""
    others: tuple[Source, ...] = ()
    coherence: tuple[Source, ...] = ()

    @classmethod
    def parse(cls, kind: str, query: str, page: Path, sources: Sources) -> Block:
        """Read ``key=value ...``; ``models`` and ``scenarios`` are lists of ``name`` or ``name:shown name``.

        Raises:
            UserError: a key that the kind does not have, or an unknown source, model or scenario.
        """
        options = dict(word.partition("=")[::2] for word in shlex.split(query))
        known = ("from", *OPTIONS[kind])
        if unknown := [key for key in options if key not in known]:
            raise UserError(f"unknown option {unknown[0]}: choose from {', '.join(known)}")
        source = sources[options.get("from", "")]
        names = {key: _names(options.get(key, "")) for key in ("models", "scenarios")}
        metric = options.get("metric", "accuracy")
        rows = source.summary[source.summary["metric"] == metric]
        against = options.get("against", "")
        for chosen, column in (*((names[key], key[:-1]) for key in names), ([against] if against else [], "model")):
            if absent := [name for name in chosen if name not in set(rows[column])]:
                raise UserError(f"{source.name} has no {column} {absent[0]} with metric {metric}: correct the name")
        if against and names["models"] and against not in names["models"]:
            raise UserError(f"against={against}: models has to name it too")
        if is_oracle(against):
            raise UserError(f"against={against} uses labels: choose a model that does not")
        for scenario in (names["scenarios"] or rows["scenario"].unique()) if against else ():
            if against not in set(rows.loc[rows["scenario"] == scenario, "model"]):
                raise UserError(f"{source.name} has no results of {against} under {scenario}: name other scenarios")
        digits, file = int(options.get("digits", 2)), options.get("file", "")
        link = sources.link(source.name)
        return cls(
            source,
            page,
            link,
            metric,
            names["models"],
            names["scenarios"],
            digits,
            file,
            against,
            name=options.get("name", ""),
            others=tuple(sources[other] for other in _names(options.get("and", ""))),
            coherence=tuple(sources[other] for other in _names(options.get("coherence", ""))),
        )

    def rows(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Rows of the metric, of the chosen models and scenarios in their order."""
        rows = frame[frame["metric"] == self.metric]
        for column, names in (("scenario", self.scenarios), ("model", self.models)):
            if names:
                rows = rows[rows[column].isin(names)]
                rows = rows.sort_values(column, key=lambda c, names=names: c.map(list(names).index), kind="stable")
        return rows

    def note(self, *parts: str) -> str:
        """One line below a table: what it shows, and where its numbers are stored."""
        link = os.path.relpath(self.link, self.page.parent)
        return ". ".join([*parts, f"Stored in [{self.link.relative_to(self.link.parents[1])}]({link})"]) + "."


def _names(text: str) -> dict[str, str]:
    pairs = (item.partition(":") for item in text.split(",") if item)
    return {name: shown or name for name, _, shown in pairs}


def scores(block: Block) -> str:
    """Block ``table``: models x scenarios, mean ± SD (± SE over folds)."""
    rows = block.rows(block.source.summary)
    cells = table(rows, block.metric, "markdown", block.digits)
    cells.index = pd.Index([_shown(name, block.models) for name in cells.index], name="model")
    cells.columns = pd.Index([_shown(name, block.scenarios) for name in cells.columns])
    notes = [f"{label(block.metric)}: {spread(rows)}"] + [f"† {ORACLE_NOTE}"] * any("†" in n for n in cells.index)
    return f"{to_markdown(cells)}\n\n{block.note(*notes)}"


def _shown(name: str, names: Mapping[str, str] | None) -> str:
    plain = name.removesuffix("†")
    return (names or {}).get(plain, plain) + name.removeprefix(plain)


def comparison(block: Block) -> str:
    """Block ``comparison``: the best model of each scenario against the others, or with ``against`` the others against
    that model, with intervals and adjusted p-values. Where predicted classes do not determine the metric, only the runs
    are random.

    Raises:
        UserError: no stored runs, or no scores of the metric.
    """
    tests = tests_of(block)
    digits = block.digits
    best, other = ([_shown(name, block.models) for name in tests[column]] for column in ("best", "model"))
    names = {"best": best, "other": other}
    if block.against:
        names = {"model": other, "against": best}
        tests[["difference", "low", "high"]] = -tests[["difference", "high", "low"]].to_numpy()
    in_percent = label(block.metric) != block.metric
    points = tests[["difference", "low", "high", "equivalent_within"]] * (100 if in_percent else 1)
    cells = pd.DataFrame(
        {
            "scenario": [_shown(name, block.scenarios) for name in tests["scenario"]],
            **names,
            "difference": [_fixed(value, digits) for value in points["difference"]],
            "95 % interval": [
                "–" if low != low else _interval(low, high, digits)
                for low, high in zip(points["low"], points["high"], strict=True)
            ],
            "p (Holm)": ["–" if p != p else _p_value(p) for p in tests["p_holm"]],
            "equivalent within": ["–" if v != v else f"{v:.{digits}f}" for v in points["equivalent_within"]],
        }
    )
    tested = tests[tests["test"].notna()]
    counts = sorted({int(n) for n in tested["n_runs"]}), sorted({int(n) for n in tested["n_rows"]})
    number = [" to ".join(map(str, dict.fromkeys((n[0], n[-1])))) if n else "0" for n in counts]
    methods = " or ".join(sorted({str(test) for test in tested["test"]})) or "none"
    repeats = f"{number[0]} runs per model" + (f" on {number[1]} test rows" if number[1] != "0" else "")
    if set(tested["unit"]) == {"fold"}:
        repeats = f"{number[0]} folds"
    note = (
        f"{label(block.metric)}: differences{' in points' if in_percent else ''}; n = {repeats}; "
        f"test: {methods}; p-values adjusted after Holm for the {len(tested)} comparisons of this table"
    )
    if set(tested["unit"]) == {"run"}:
        note += "; only the runs are random: this says nothing about other test rows"
    return f"{to_markdown(cells.set_index('scenario'))}\n\n{block.note(note)}"


def tests_of(block: Block) -> pd.DataFrame:
    """Tests of a comparison, see :func:`trainers.report.statistics.compare`.

    Raises:
        UserError: see :func:`comparison`.
    """
    if not block.source.runs:
        raise UserError(f"{block.source.name} has no stored runs: store them, or leave the comparison out")
    key = (block.metric, tuple(block.models or ()), tuple(block.scenarios or ()), block.against)
    if key not in block.source.tests:
        rows = block.rows(block.source.frame)
        if not len(rows):
            known = ", ".join(sorted(set(block.source.frame["metric"])))
            raise UserError(f"{block.source.name} has no scores of metric {block.metric}: known are {known}")
        against, over_rows = block.against or None, block.metric in METRICS_OF_CLASSES
        block.source.tests[key] = compare(block.source.runs, rows, block.metric, against, over_rows=over_rows)
    return block.source.tests[key].copy()


def _fixed(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # no -0.0


def _interval(low: float, high: float, digits: int) -> str:
    return f"{_fixed(low, digits)} to {_fixed(high, digits)}"


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def ranking(block: Block) -> str:
    """Block ``ranks``: ranks of models by scenario, agreement with the first scenario, and changes of the order.

    Raises:
        UserError: fewer than two scenarios or models are chosen,
            or :meth:`trainers.report.rank_changes.Scores.of_runs` raises it.
    """
    if not block.source.runs:
        raise UserError(f"{block.source.name} has no stored runs: store them, or leave the ranks out")
    rows = block.rows(block.source.frame)
    models, scenarios = (list(rows[column].unique()) for column in ("model", "scenario"))
    if len(models) < 2 or len(scenarios) < 2:
        raise UserError("a ranking needs two or more models and scenarios: name them")
    if block.metric not in METRICS_OF_CLASSES:
        raise UserError(f"metric {block.metric}: a ranking is by one of {', '.join(METRICS_OF_CLASSES)}")
    scores = Scores.of_runs(block.source.runs, rows, block.metric, models, scenarios)
    cells = ranks(scores).map(lambda rank: f"{rank:g}")
    taus = agreement(scores)
    cells.loc["Kendall's τ"] = ["–", *(f"{r.tau:.2f} ({r.low:.2f} to {r.high:.2f})" for r in taus.itertuples())]
    cells.index = pd.Index([_shown(name, block.models) for name in cells.index], name="rank")
    cells.columns = pd.Index([_shown(name, block.scenarios) for name in cells.columns])
    changes = order_changes(scores)
    listed = changes[(changes["difference"] < 0) | (changes["p_holm"] < 0.05)]
    points = listed[["reference", "difference", "low", "high"]] * 100
    first = _shown(scenarios[0], block.scenarios)
    pairs = zip(listed["model"], listed["other"], strict=True)
    cells_of_changes = pd.DataFrame(
        {
            "scenario": [_shown(name, block.scenarios) for name in listed["scenario"]],
            "models": [" – ".join(_shown(name, block.models) for name in pair) for pair in pairs],
            f"difference under {first}": _signed(points["reference"], block.digits),
            "difference": _signed(points["difference"], block.digits),
            "95 % interval of the change": [
                f"{low:+.{block.digits}f} to {high:+.{block.digits}f}"
                for low, high in zip(points["low"], points["high"], strict=True)
            ],
            "p (Holm)": ["–" if p != p else _p_value(p) for p in listed["p_holm"]],
        }
    )
    of_ranks = f"ranks by {label(block.metric)}, 1 = best; τ with the ranking under {first}"
    of_changes = (
        f"{len(listed)} of {len(changes)} pairs: those whose order differs, or whose difference changes with p < 0.05; "
        "runs and test rows are random, p-values adjusted after Holm for all pairs"
    )
    tables = [f"{to_markdown(cells)}\n\n{of_ranks}, with the 95 % range over resampled runs and test rows."]
    tables += [to_markdown(cells_of_changes.set_index("scenario"))] * (len(listed) > 0)
    return "\n\n".join([*tables, block.note(of_changes)])


def _signed(values: pd.Series, digits: int) -> list[str]:
    return [f"{value:+.{digits}f}" for value in values]


def provenance(block: Block) -> str:
    """Block ``runs``: the stored runs of each model, with commit, device and version of PyTorch."""
    entries = []
    for run in block.source.runs:
        about = json.loads(run.text("environment.json"))
        torch = about.get("packages", {}).get("torch", "–")
        entries.append((run.model, run.repeat, about.get("git_commit"), about.get("device"), torch))
    columns = ["model", "runs", "commit", "device", "PyTorch"]
    frame = pd.DataFrame(entries, columns=columns).sort_values(["model", "runs"], kind="stable")
    grouped = frame.groupby([c for c in columns if c != "runs"], sort=False)["runs"].agg(", ".join).reset_index()
    grouped["runs"] = [re.sub(r"(?<=, )seed ", "", runs) for runs in grouped["runs"]]
    return f"{to_markdown(grouped[columns].set_index('model'))}\n\n{block.note(f'{len(frame)} runs')}"


def costs(block: Block) -> str:
    """Block ``costs``: parameters and processor seconds of each model, means over its stored runs.

    Raises:
        UserError: no stored run has costs, one of the models has none, or the runs are of several data sets.
    """
    known = cost_table(block.source.runs).set_index("model")
    if known.index.has_duplicates:
        raise UserError(f"{block.source.name} has several data sets: store each as a study of its own")
    shown = block.models or {name: name for name in known.index}
    if absent := [name for name in shown if name not in known.index]:
        raise UserError(f"{block.source.name} has no costs of {absent[0]}: name models with runs of their own")
    if not shown:
        raise UserError(f"{block.source.name} has no stored runs with costs: store them, or leave the costs out")
    rows = known.loc[list(shown)]
    cells = pd.DataFrame(
        {
            "parameters (millions)": _known(rows["parameters"].astype(float) / 1e6, 2),
            "training (s)": _known(rows["fit_processor_seconds"], 0),
            "predictions (s per 1,000 rows)": _known(rows["test_processor_seconds_per_1000_rows"], 2),
        },
        index=pd.Index(list(shown.values()), name="model"),
    )
    note = (
        "processor seconds, means over the runs; training includes the imputer and other parts that a method uses; "
        f"predictions in the scenario with the most missing data; {', '.join(sorted(set(rows['device'])))}"
    )
    return f"{to_markdown(cells)}\n\n{block.note(note)}"


def _known(values: pd.Series, digits: int) -> list[str]:
    return ["–" if value != value else f"{value:,.{digits}f}" for value in values]


def figure(block: Block) -> str:
    """Block ``figure``: scores against the missing rate; writes ``file`` beside the page if the picture differs."""
    rows = rows_of_metric(block.rows(block.source.summary), block.metric)
    rows = rows.assign(model=[_shown(name, block.models) for name in rows["model"]])
    runs = block.source.runs
    drawn = degradation(
        rows,
        label(block.metric),
        model_styles(list(rows["model"].unique())),
        at_rate_one=scenarios_at_rate_one(runs),
        modalities=modality_names(runs),
    )
    if drawn is None or not block.file.endswith(".png"):
        raise UserError("needs file=NAME.png, and scenarios with a missing rate")
    write_picture(drawn, block.page.parent / block.file)
    bands = f"Bands: {'standard error over folds' if rows['n_folds'].any() else 'standard deviation'}"
    title = f"{label(block.metric)} against the missing rate, study {block.source.name}"
    return f"![{title}]({block.file})\n\n{block.note(bands)}"


def gain_table(block: Block) -> str:
    """Block ``gains``: what the rules of selection of a study gain over discarding, over all their cells.

    Raises:
        UserError: no stored runs, or :func:`trainers.report.selection_gains.gains` raises it.
    """
    if not block.source.runs:
        raise UserError(f"{block.source.name} has no stored runs: store them, or leave the gains out")
    cells = gains(block.source.runs, block.rows(block.source.frame), block.metric)
    scale = 100 if label(block.metric) != block.metric else 1
    rows = []
    for (method, rule), part in cells.groupby(["method", "rule"], sort=False):
        worst = part.loc[part["gain"].idxmin()]
        bounds = _interval(scale * worst["low"], scale * worst["high"], block.digits)
        below, above, is_significant = part["high"] < 0, part["low"] > 0, part["p_holm"] < 0.05
        rows.append(
            {
                "rule": f"{method}/{rule}" if rule else method,
                "cells": len(part),
                "mean gain": _fixed(scale * part["gain"].mean(), block.digits),
                "smallest gain": f"{_fixed(scale * worst['gain'], block.digits)} ({bounds})",
                "in cell": f"{worst['model'].partition('/')[0]}, {_shown(worst['scenario'], block.scenarios)}",
                "below": f"{below.sum()} ({(below & is_significant).sum()})",
                "above": f"{above.sum()} ({(above & is_significant).sum()})",
            }
        )
    unit = "in points" if scale == 100 else "positive = a lower value"
    seeds = block.source.frame["seed"].nunique()
    test = (
        "same runs and rows"
        if block.metric in METRICS_OF_CLASSES
        else "paired t over the runs, which says nothing about other test rows"
    )
    note = (
        f"{label(block.metric)}: gains over discarding on the same model, {unit}, means over the runs; a cell is a "
        "model under a scenario; the smallest gain with its 95 % interval; below, above: cells whose interval excludes "
        f"0 (in parentheses: p < 0.05 after Holm for the {len(cells)} cells of this table); n = {seeds} runs per "
        f"model; test: {test}"
    )
    return f"{to_markdown(pd.DataFrame(rows).set_index('rule'))}\n\n{block.note(note)}"


def lead_block(block: Block) -> str:
    """Block ``leads``: the figure ``file`` of DyMo's lead in all cells of the studies, and rank correlations.

    Raises:
        UserError: no stored runs, no file or coherence is named, or there is none of an imputer.
    """
    studies = (block.source, *block.others)
    if not all(source.runs for source in studies) or not block.coherence or not block.file.endswith(".png"):
        raise UserError("needs studies with stored runs in from= and and=, coherence=FILE.csv, and file=NAME.png")
    runs = [run for source in studies for run in source.runs]
    coherence = pd.concat([source.frame for source in block.coherence])
    cells = cells_of(runs, block.rows(pd.concat([source.frame for source in studies])), coherence)
    write_picture(lead_figure(cells), block.page.parent / block.file)
    values = correlations(cells)
    wide = values.pivot(index=["lead", "with"], columns="dataset", values="correlation")
    wide = wide.loc[list(dict.fromkeys(zip(values["lead"], values["with"], strict=True)))]
    text = wide.map(lambda value: "–" if value != value else f"{value:.2f}").reset_index().set_index("lead")
    number = " to ".join(str(n) for n in dict.fromkeys((values["cells"].min(), values["cells"].max())))
    note = (
        f"Spearman's rank correlation over {number} cells per data set, means over the runs; the cells share samples "
        "and models, so there is no test"
    )
    return f"![DyMo's lead in every cell]({block.file})\n\n{to_markdown(text)}\n\n{block.note(note)}"


def write_picture(drawn: Figure, file: Path) -> None:
    """Write a figure unless the file has the same pixels."""
    temporary = file.with_name(f".{file.name}")
    try:
        drawn.savefig(temporary, format="png", dpi=100)
        pictures = [imread(path) for path in (file, temporary) if path.is_file()]
        if len(pictures) < 2 or pictures[0].shape != pictures[1].shape or (pictures[0] != pictures[1]).any():
            temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


BLOCKS: dict[str, Callable[[Block], str]] = {
    "table": scores,
    "comparison": comparison,
    "ranks": ranking,
    "runs": provenance,
    "costs": costs,
    "figure": figure,
    "gains": gain_table,
    "leads": lead_block,
}


def cell_text(query: str, old: str, sources: Sources) -> str:
    """The number of ``SOURCE: MODEL [minus MODEL] at SCENARIO[, METRIC]`` in the form of the old one.

    The form: number of decimals, a sign of positive numbers, and ``± SD``. A difference is rounded once, as in a
    comparison.

    Raises:
        UserError: the query or the old number cannot be read, or nothing is stored for it.
    """
    asked, form = CELL.fullmatch(query), NUMBER.fullmatch(old.strip())
    if asked is None or form is None:
        raise UserError(
            f"cannot be read with '{old.strip()}': write "
            "<!-- cell SOURCE: MODEL [minus MODEL] at SCENARIO[, METRIC] -->12.3<!-- /cell -->"
        )
    names = [asked["model"], *filter(None, [asked["other"]])]
    metric = asked["metric"] or "accuracy"
    rows = rows_of_metric(sources[asked["source"]].summary, metric)
    decimals = len(form["decimals"] or "")
    means, sds = [], []
    for name in names:
        row = rows[(rows["model"] == name) & (rows["scenario"] == asked["scenario"])]
        if len(row) != 1:
            raise UserError(f"{asked['source']} has {len(row)} cells of {name} at {asked['scenario']}, not one")
        means.append(row["mean"].iloc[0])
        sds.append(f"{row['sd'].iloc[0]:.{decimals}f}")
    text = _fixed(means[0] - sum(means[1:]), decimals)
    if form["sign"] and not text.startswith("-"):
        text = f"+{text}"
    if form["spread"]:
        text += f" ± {sds[0]}"
    return text.replace("-", "−")


def test_text(asked: re.Match[str], old: str, block: Block | None) -> str:
    """``p of A minus B at SCENARIO in NAME``: ``p = 0.012`` or ``p < 0.001``; ``interval of ...``: ``1.2 to 3.4``.

    Args:
        asked: match of :data:`TEST`.
        old: its decimals are kept in intervals.
        block: the comparison of the page with this name.

    Raises:
        UserError: the page has no such comparison, or it does not compare these models under this scenario.
    """
    if block is None:
        raise UserError(f"the page has no comparison with name={asked['name']}: name one, or correct the cell")
    tests = tests_of(block)
    tests = tests[tests["scenario"] == asked["scenario"]]
    pair = [asked["model"], asked["other"]]
    sides = (tests[(tests["best"] == best) & (tests["model"] == other)] for best, other in (pair, pair[::-1]))
    signs = [(sign, side.iloc[0]) for sign, side in zip((1, -1), sides, strict=True) if len(side)]
    if not signs or pd.isna(signs[0][1]["p_holm"]):
        raise UserError(
            f"{asked['name']} has no test of {asked['model']} and {asked['other']} at {asked['scenario']}: "
            "every model is compared with the best of the scenario, or with that of against="
        )
    sign, row = signs[0]
    if asked["what"] == "p":
        text = _p_value(row["p_holm"])
        return f"p {text}" if text.startswith("<") else f"p = {text}"
    scale = 100 if label(block.metric) != block.metric else 1
    low, high = sorted(scale * sign * row[bound] for bound in ("low", "high"))
    form = NUMBER.match(old.strip().replace("-", "−"))
    if form is None:
        raise UserError(f"cannot be read with '{old.strip()}': write 1.2 to 3.4, with the decimals that are wanted")
    decimals = len(form["decimals"] or "")
    return _interval(low, high, decimals).replace("-", "−")

"""Tables of a report: mean and standard deviation as Markdown, LaTeX and text."""

from __future__ import annotations

import html
import math
import re
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from datasets.missingness.base import RATE_TOLERANCE, slug
from trainers.report.directions import LOWER, direction
from trainers.report.runs import KEY, scenario_of
from trainers.report.style import ORACLE_NOTE, is_oracle
from utils.metrics import METRICS, NOT_PERCENT

# style: best, second best, other, dagger
MARKS = {
    "plain": ("{}*", "{}+", "{} ", "†"),
    "markdown": ("**{}**", "_{}_", "{}", "†"),
    "latex": (r"\textbf{{{}}}", r"\underline{{{}}}", "{}", r"$^\dagger$"),
    "html": ("<b>{}</b>", "<u>{}</u>", "{}", "<sup>†</sup>"),
}
# Measures of a report that are differences of a score.
DIFFERENCES = ("contribution", "contribution_error", "oracle_gap")
# Measures of recoveries that are shares (models.imputers.quality).
SHARES = ("coherence", "judge_accuracy")
LATEX = {c: "\\" + c for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"}
LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
# What Markdown would read as markup; an underscore within a word is none.
MARKDOWN = re.compile(r"[\\|*`<~]|(?<!\w)_|_(?!\w)|(?<=\])\(|&(?=#?\w+;)")


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean, SD (n - 1; empty for one run) and number of runs per dataset, model, scenario and metric.

    Tables show ``error``: the SD over ``n_seeds`` seeds (``n_folds`` is 0), and under cross-validation, where seeds are
    averaged per fold first, the standard error SD / sqrt(folds). ``missing_rate`` is the mean realised rate, and
    ``direction`` says what is better (``higher`` or ``lower``), if ``frame`` has them.
    """
    frame = frame if "fold" in frame else frame.assign(fold=-1)
    seeds = frame[frame["value"].notna()].groupby(KEY, sort=False)["seed"].nunique()
    unit = frame["fold"].where(frame["fold"] >= 0, -1 - frame["seed"])
    units = frame.assign(unit=unit).groupby([*KEY, "unit"], sort=False)[["value", "fold"]].mean().reset_index()
    summary = units.groupby(KEY, sort=False).agg(
        mean=("value", "mean"), sd=("value", "std"), count=("value", "count"), fold=("fold", "max")
    )
    folds = summary.pop("count").where(summary.pop("fold") >= 0, 0)
    summary["n_seeds"] = seeds.reindex(summary.index, fill_value=0)
    summary["n_folds"] = folds
    summary["error"] = summary["sd"] / np.sqrt(folds.where(folds > 0, 1))
    if "direction" in frame:
        summary["direction"] = frame.groupby(KEY, sort=False)["direction"].first().reindex(summary.index)
    if "missing_rate" in frame:
        summary["missing_rate"] = frame.groupby(KEY, sort=False)["missing_rate"].mean().reindex(summary.index)
    return summary.reset_index()


def spread(summary: pd.DataFrame) -> str:
    """What the cells of a table show: mean, and standard deviation or error."""
    counts = {kind: sorted({summary[f"n_{kind}"].min(), summary[f"n_{kind}"].max()}) for kind in ("folds", "seeds")}
    if counts["folds"][-1] == 0:
        return f"mean ± standard deviation over seeds ({' to '.join(map(str, counts['seeds']))} per cell)"
    return f"mean ± standard error over folds ({' to '.join(map(str, counts['folds']))} per cell)"


def label(metric: str) -> str:
    """The metric with its unit."""
    is_fraction = metric in (*METRICS, *DIFFERENCES, *SHARES) or metric.endswith("_share")
    is_fraction &= metric not in NOT_PERCENT
    return f"{metric} (%)" if is_fraction else metric


def rows_of_metric(summary: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rows of one metric in the unit of :func:`label`; ``sd`` becomes the number after ±."""
    rows = summary[summary["metric"] == metric]
    factor = 100 if label(metric) != metric else 1
    return rows.assign(mean=rows["mean"] * factor, sd=rows["error"] * factor)


def score_text(mean: float, sd: float, digits: int | None) -> str:
    """``mean ± SD``; the mean alone where there is no SD, and a dash where there is none.

    Args:
        digits: decimals; None = those of two digits of the SD.
    """
    if math.isnan(mean):
        return "–"
    if digits is None and 1e-9 < sd < 1e9:
        digits = max(1 - math.floor(math.log10(sd)), 0)
    forms = (".4g", ".2g") if digits is None else (f".{digits}f", f".{digits}f")
    return format(mean, forms[0]) + ("" if math.isnan(sd) else f" ± {sd:{forms[1]}}")


def table(summary: pd.DataFrame, metric: str, style: str = "plain", digits: int = 2) -> pd.DataFrame:
    """Rows are models, columns scenarios, cells 'mean ± SD' (± SE over folds); best and second best are marked.

    Values that look equal count as equal: all models with the best value are best, all with the next value second best.
    Models that use labels, metrics that are neither better high nor low, and columns with one model get no marks.

    Args:
        summary: of :func:`summarise`, one data set.
        style: plain | markdown | latex | html; text is escaped accordingly.
        digits: decimals of metrics in percent.
    """
    rows = rows_of_metric(summary, metric)
    decimals = digits if label(metric) != metric else None
    text = [score_text(mean, sd, decimals) for mean, sd in zip(rows["mean"], rows["sd"])]
    better = direction(summary, metric)
    ranked = rows.assign(text=text)[~rows["model"].map(is_oracle) & rows["mean"].notna() & bool(better)]
    shown = ranked["text"].map(lambda text: float(text.partition(" ")[0]))
    groups = ranked.assign(mean=shown).groupby("scenario")["mean"]
    rank = groups.rank(method="dense", ascending=better == LOWER).where(groups.transform("size") > 1)
    best, second, other, dagger = MARKS[style]
    mark = rank.reindex(rows.index).map({1.0: best, 2.0: second}).fillna(other)
    rows["text"] = [form.format(escape(t, style)) for form, t in zip(mark, text)]
    cells = rows.pivot(index="model", columns="scenario", values="text")
    cells = cells.reindex(index=rows["model"].unique(), columns=rows["scenario"].unique()).fillna(escape("–", style))
    cells.index = pd.Index([escape(m, style) + dagger * is_oracle(m) for m in cells.index], name="model")
    cells.columns = pd.Index([escape(s, style) for s in cells.columns])
    return cells


def escape(text: str, style: str) -> str:
    """The text, escaped for a style of :func:`table`."""
    if style == "latex":
        text = re.sub(r"[&%$#_{}\\~^<>|]", lambda match: LATEX[match[0]], " ".join(text.split()))
        return text.replace("±", r"$\pm$").replace("–", "--")
    if style == "markdown":
        return MARKDOWN.sub(r"\\\g<0>", " ".join(text.split()))
    return html.escape(text) if style == "html" else text


def with_rates(cells: pd.DataFrame, summary: pd.DataFrame, style: str = "plain") -> pd.DataFrame:
    """A :func:`table` with the realised missing rate of every scenario in its last row.

    Args:
        summary: of :func:`summarise`, from which the table was made.
    """
    rates = _rates(summary)
    if not rates:
        return cells
    rate_of = {escape(name, style): rate for name, rate in rates.items()}
    texts = [escape("–", style) if np.isnan(rate := rate_of[name]) else f"{rate:.3g}" for name in cells.columns]
    row = pd.DataFrame([texts], index=pd.Index(["missing rate"], name="model"), columns=cells.columns)
    return pd.concat([cells, row])


def _rates(summary: pd.DataFrame) -> dict[str, float]:
    """Scenario -> realised missing rate; empty if the summary has none."""
    if "missing_rate" not in summary:
        return {}
    return dict(summary.groupby("scenario", sort=False)["missing_rate"].mean())


def rate_notes(summary: pd.DataFrame, captions: Mapping[str, str] | None = None) -> list[str]:
    """A note for each scenario whose realised missing rate differs from the rate in its name.

    Args:
        captions: scenario -> its heading in the note; its name by default.
    """
    notes = []
    for name, rate in _rates(summary).items():
        named = scenario_of(name).named_rate
        if named is not None and abs(rate - named) > RATE_TOLERANCE + 1e-9:
            notes.append(f"{(captions or {}).get(name, name)}: realised missing rate {rate:.3g}, not {named:g}")
    return notes


def captions_of(summary: pd.DataFrame, modalities: Sequence[str] = ()) -> dict[str, str]:
    """Scenario -> its caption.

    Args:
        modalities: names of those of the data set.
    """
    return {name: scenario_of(name).caption(modalities) for name in summary["scenario"].unique()}


def with_captions(cells: pd.DataFrame, captions: Mapping[str, str], style: str = "plain") -> pd.DataFrame:
    """A :func:`table` with captions in place of the names of the scenarios."""
    heads = {escape(name, style): escape(caption, style) for name, caption in captions.items()}
    if style == "latex":
        lines = {name: textwrap.wrap(caption, 16, break_long_words=False) for name, caption in heads.items()}
        heads = {name: r"\shortstack[r]{" + r"\\".join(parts) + "}" for name, parts in lines.items()}
    return cells.rename(columns=heads)


def to_markdown(cells: pd.DataFrame) -> str:
    """A table of strings as Markdown."""
    return cells.reset_index().to_markdown(index=False, disable_numparse=True)


def to_latex(cells: pd.DataFrame) -> str:
    """A table of escaped strings as a ``tabular`` of the package booktabs."""
    columns = "l" + "r" * cells.shape[1]
    return cells.reset_index().to_latex(index=False, escape=False, column_format=columns).rstrip()


def markdown_block(summary: pd.DataFrame, metric: str) -> str:
    """The table of one data set in Markdown, with heading and notes."""
    dataset = summary["dataset"].iloc[0]
    parts = [
        f"## {escape(f'{dataset}, {label(metric)}', 'markdown')}\n",
        to_markdown(with_rates(table(summary, metric, "markdown"), summary, "markdown")) + "\n",
        *(f"{escape(text, 'markdown')}\n" for text in rate_notes(summary)),
        *[f"† {ORACLE_NOTE}\n"] * bool(summary["model"].map(is_oracle).any()),
        *[f"{spread(summary)}\n"] * bool(summary["n_folds"].any()),
    ]
    return "\n".join(parts)


def latex_block(summary: pd.DataFrame, metric: str, captions: Mapping[str, str], kind: str = "") -> str:
    """The table of one data set as a LaTeX ``table`` with caption, label (``tab:<data set>_<metric>``) and notes.

    Args:
        kind: further words of the caption and label.
    """
    dataset = summary["dataset"].iloc[0]
    text = f"{dataset}, {label(metric)}{f', {kind}' if kind else ''}: {spread(summary)}."
    name = slug("_".join(filter(None, (dataset, metric, kind))))
    cells = with_captions(with_rates(table(summary, metric, "latex"), summary, "latex"), captions, "latex")
    notes = [escape(note, "latex") for note in rate_notes(summary, captions)]
    notes += [rf"$^\dagger$ {ORACLE_NOTE}"] * bool(summary["model"].map(is_oracle).any())
    parts = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(text, 'latex')}}}",
        rf"\label{{tab:{name}}}",
        to_latex(cells),
        *(rf"\par{{\footnotesize {note}}}" for note in notes),
        r"\end{table}",
    ]
    return "\n".join(parts)


def print_table(summary: pd.DataFrame, metric: str, models: Sequence[str] | None = None) -> str:
    """The table of one metric for the terminal, a block per data set; with ``models``, of these only."""
    rows = summary[(summary["metric"] == metric) & (summary["model"].isin(models or summary["model"]))]
    blocks = []
    for dataset, part in rows.groupby("dataset", sort=False):
        text = with_rates(table(part, metric), part).rename_axis(None).to_string()
        notes = ["* best, + second best"] * bool(direction(part, metric)) + [f"† {ORACLE_NOTE}"] * ("†" in text)
        notes += rate_notes(part) + [spread(part)] * bool((part["n_folds"] > 0).any())
        blocks.append("\n".join([f"{dataset}, {label(metric)}", text, *notes]))
    return "\n\n".join(blocks)

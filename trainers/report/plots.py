"""Figures of scores: curves over missing rates, noise levels and epochs, and bars per scenario."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from datasets.missingness.base import MISSING_RATE
from trainers.report.curves import Panel, curve_panels
from trainers.report.runs import scenario_of
from trainers.report.style import COLOURS, LINES, RC, grid, legend, model_styles


def degradation(
    summary: pd.DataFrame,
    ylabel: str,
    styles: Mapping[str, Mapping[str, Any]],
    axis: str = MISSING_RATE,
    xlabel: str | None = None,
    at_rate_one: Mapping[tuple[str, str], str] | None = None,
    modalities: Mapping[str, Sequence[str]] | None = None,
) -> Figure | None:
    """Score against missing rate or noise level, one line per model with its SD (over folds: SE) band.

    Each data set has a row of panels, each family of scenarios a column.

    Args:
        summary: see :func:`curve_panels`, in the unit of ``ylabel``.
        xlabel: ``axis`` by default.

    Returns:
        None if no scenario lies on the axis.
    """
    panels = curve_panels(summary, axis, at_rate_one, modalities)
    return _curves(panels, xlabel or axis, ylabel, styles) if panels else None


@rc_context(RC)
def _curves(panels: Sequence[Panel], xlabel: str, ylabel: str, styles: Mapping[str, Mapping[str, Any]]) -> Figure:
    rows = len({panel.dataset for panel in panels})
    columns = len(panels) // rows
    width = max(4.2 * columns + 1, 6.4)
    figure, axes = grid(rows, columns, width, 3.6 * rows, sharey="row")
    for ax, panel in zip(axes.flat, panels):
        for model, style in styles.items():
            line = panel.points[panel.points["model"] == model]
            if not line.empty:
                _line_with_band(ax, line["x"], line["mean"], line["sd"], model, style)
        ax.set_title(textwrap.fill(panel.title, 44), fontsize=10)
        ax.set_xticks(sorted(panel.points["x"].round(3).unique()))
        ax.set_xlabel(xlabel)
        ax.grid(alpha=0.3)
    for row in axes:
        row[0].set_ylabel(ylabel)
    legend(figure, list(axes.flat), 2 if width < 8 else 4)
    return figure


def _line_with_band(
    ax: Axes, x: pd.Series | pd.Index, mean: pd.Series, sd: pd.Series, label: str, style: Mapping[str, Any]
) -> None:
    look = {key: value for key, value in style.items() if key != "hatch"}
    ax.plot(x, mean, label=label, markersize=5, linewidth=1.7, **look)
    ax.fill_between(x, mean - sd, mean + sd, color=style["color"], alpha=0.15, linewidth=0)


@rc_context(RC)
def scenario_bars(
    summary: pd.DataFrame,
    ylabel: str,
    styles: Mapping[str, Mapping[str, Any]],
    modalities: Mapping[str, Sequence[str]] | None = None,
) -> Figure | None:
    """Grouped bars for scenarios without modalities in all rows, SD as whiskers, wrapped over several rows of panels.

    Args:
        modalities: data set -> names of its modalities, for the labels.

    Returns:
        None if there are no such scenarios, or more than a page can show (96).
    """
    data = summary[summary["scenario"].map(has_bar)]
    models = [m for m in styles if (data["model"] == m).any()]
    per_row = max(60 // max(len(models), 1), 3)
    rows: list[tuple[str, list[str]]] = []
    for dataset, part in data.groupby("dataset", sort=False):
        names = list(part["scenario"].unique())
        rows += [(str(dataset), names[i : i + per_row]) for i in range(0, len(names), per_row)]
    if not rows or sum(len(names) for _, names in rows) > 96:
        return None
    slots = max(len(names) for _, names in rows)
    inches = min(max(0.2 * slots * (len(models) + 1.5) + 1.2, 6.4), 13)
    figure, axes = grid(len(rows), 1, inches, 2.6 * len(rows), sharey=True)
    for ax, (dataset, names) in zip(axes[:, 0], rows):
        panel = data[data["dataset"] == dataset].set_index(["model", "scenario"])
        for i, model in enumerate(models):
            position = (i - (len(models) - 1) / 2) / len(models)
            _bars(ax, panel.reindex([(model, name) for name in names]), position, 0.84 / len(models), styles[model])
        captions = [scenario_of(name).caption((modalities or {}).get(dataset, ())) for name in names]
        letters = max(int(10 * inches / slots), 8)
        ax.set_xticks(range(len(names)), [textwrap.fill(caption, letters) for caption in captions], fontsize=8)
        ax.set_xlim(-0.55, slots - 0.45)
        ax.set_title(dataset, fontsize=10)
        ax.set_ylabel(ylabel)
        ax.grid(axis="y", alpha=0.3)
        ax.set_axisbelow(True)
        if (data["mean"] >= 0).all():
            ax.set_ylim(bottom=0)
    legend(figure, list(axes.flat), 3 if inches < 8 else 5)
    return figure


def has_bar(name: str) -> bool:
    """Whether a scenario is one of :func:`scenario_bars`."""
    scenario = scenario_of(name)
    return bool(scenario.always_missing) and scenario.noise is None


def _bars(ax: Axes, values: pd.DataFrame, position: float, width: float, style: Mapping[str, Any]) -> None:
    """Bars of one model; ``values`` has a row per scenario, ``position`` is the model's place among the others."""
    x = np.arange(len(values)) + 0.84 * position
    look = {"color": style["color"], "hatch": style["hatch"], "edgecolor": "white"}
    ax.bar(x, values["mean"], width, label=values.index[0][0], linewidth=0.4, **look)
    known = values["sd"].notna().to_numpy()
    for colour, linewidth in (("white", 2.6), ("#222222", 1)):  # readable on dark bars too
        look = {"fmt": "none", "ecolor": colour, "lw": linewidth}
        ax.errorbar(x[known], values["mean"][known], values["sd"][known], **look)


@rc_context(RC)
def noise_curves(curves: pd.DataFrame, title: str) -> Figure:
    """Weight and predicted noise level of a modality against its noise level, with the other modalities clean.

    One line per modality: mean over the seeds with SD band.

    Args:
        curves: columns modality, level, seed, weight, predicted (means over the test rows; NaN = unknown).
    """
    panels = [("weight", "weight of the modality"), ("predicted", "predicted level")]
    panels = [(column, label) for column, label in panels if curves[column].notna().any()]
    figure, axes = grid(1, len(panels), 4.4 * len(panels), 3.2)
    figure.suptitle(title, fontsize=11)
    for ax, (column, label) in zip(axes[0], panels):
        for (name, style), (_, part) in zip(
            model_styles([str(m) for m in curves["modality"].unique()]).items(), curves.groupby("modality", sort=False)
        ):
            line = part.groupby("level")[column].agg(["mean", "std"])
            _line_with_band(ax, line.index, line["mean"], line["std"], name, style)
        ends = [curves["level"].min(), curves["level"].max()]
        ax.plot(ends, ends if column == "predicted" else [1, 1], color="#333333", linewidth=0.8, linestyle=":")
        ax.set_xlabel("level of its noise (1 = clean)")
        ax.set_ylabel(label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
    legend(figure, list(axes.flat), 4)
    return figure


@rc_context(RC)
def training_curves(frames: Mapping[Any, pd.DataFrame], title: str) -> Figure | None:
    """Losses (left) and validation metrics (right) against the epoch, a thin line per run.

    Args:
        frames: run -> ``metrics.csv`` of Lightning's CSVLogger; columns may be sparse.
    """
    names = list(dict.fromkeys(c for frame in frames.values() for c in frame if not c.endswith("_step")))
    losses = [c for c in names if re.fullmatch(r"(train|val)[_/]loss(_epoch)?", c)]
    scores = [c for c in names if re.match(r"val[_/]", c) and c not in losses][: len(COLOURS)]
    groups = [(label, group) for label, group in (("loss", losses), ("validation metric", scores)) if group]
    if not groups:
        return None
    figure, axes = grid(1, len(groups), 4.4 * len(groups), 3.2)
    figure.suptitle(title, fontsize=11)
    for ax, (label, group) in zip(axes[0], groups):
        for i, (column, colour) in enumerate(zip(group, COLOURS)):
            for j, frame in enumerate(f for f in frames.values() if column in f):
                values = pd.to_numeric(frame[column], errors="coerce")
                points = values.groupby(frame.get("epoch", frame.index.to_series())).last().dropna()
                look = {"color": colour, "linestyle": LINES[i % len(LINES)], "marker": "o" if len(points) == 1 else ""}
                ax.plot(points.index, points, alpha=0.8, linewidth=1.2, label=None if j else column, **look)
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_ylabel(label)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8.5, frameon=False)
    return figure


@rc_context(RC)
def cost_scatter(
    panels: Mapping[str, pd.DataFrame],
    quantities: Mapping[str, str],
    ylabel: str,
    styles: Mapping[str, Mapping[str, Any]],
    title: str,
) -> Figure:
    """Score against cost on logarithmic axes, one mark per model with its SD; a row of panels per scenario.

    Args:
        panels: caption of the scenario -> columns model, quantity, cost, mean, sd.
        quantities: quantity -> label of its column of panels.
    """
    costs = [q for q in quantities if any((rows["quantity"] == q).any() for rows in panels.values())]
    figure, axes = grid(len(panels), len(costs), max(3.6 * len(costs), 5), 3.2 * len(panels), sharey="row")
    figure.suptitle(title, fontsize=11)
    for line, (caption, rows) in zip(axes, panels.items()):
        for ax, quantity in zip(line, costs):
            for row in rows[rows["quantity"] == quantity].itertuples():
                look = {key: styles[row.model][key] for key in ("color", "marker")}
                error = None if np.isnan(row.sd) else row.sd
                ax.errorbar(row.cost, row.mean, error, label=row.model, linestyle="", markersize=6, **look)
            ax.set_xscale("log")
            ax.set_xlabel(quantities[quantity])
            ax.set_title(caption, fontsize=10)
            ax.grid(alpha=0.3)
        line[0].set_ylabel(ylabel)
    legend(figure, list(axes.flat), 4)
    return figure

"""Figures of the report. Each function returns a :class:`matplotlib.figure.Figure` and touches no global state.

Colours are those of Okabe and Ito, told apart with every common colour blindness; a second cue (marker, line style,
hatch, frame, word) always repeats what a colour says.
"""

from __future__ import annotations

import base64
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import patheffects, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h")
LINES = ("-", "--", "-.", (0, (3, 1, 1, 1, 1, 1)))
HATCHES = ("", "///", "...", "xxx")
BLUE, VERMILLION, GREEN = COLOURS[:3]
CLASSES_PER_PANEL = 36
# Scenarios with a rate, by what stands before it, in words.
FAMILIES = {
    "random_": "random (exact)",
    "random_global_": "random (global)",
    "random_bernoulli_": "random (Bernoulli)",
    "image_text_text_": "text or sound missing",
    "image_text_image_": "image or video missing",
    "image_text_both_": "either missing",
    "table_value_": "cells of the table missing",
    "table_feature_": "columns of the table missing",
    "table_MI_": "most important columns missing",
    "table_LI_": "least important columns missing",
}
ORACLE_NOTE = "uses labels: an upper bound, never marked"
RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def is_oracle(model: str) -> bool:
    """Whether a row of a table uses labels at test time."""
    return "oracle" in model.lower()


def with_dagger(model: str) -> str:
    """The name, marked where the model uses labels at test time."""
    return model + "†" * is_oracle(model)


def model_styles(models: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker, line style and hatch of each model, the same in all figures; oracles are grey and dotted."""
    styles: dict[str, dict[str, Any]] = {}
    plain = [m for m in models if not is_oracle(m)]
    for i, model in enumerate(sorted(plain, key=lambda m: "/" in m)):  # comparators take what is left of the colours
        turn = i // len(COLOURS) % len(LINES)
        styles[model] = {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": LINES[turn],
            "hatch": HATCHES[turn],
        }
    grey = {"color": "#777777", "linestyle": ":", "hatch": "\\\\\\"}
    return styles | {m: grey | {"marker": "x+12"[i % 4]} for i, m in enumerate(m for m in models if is_oracle(m))}


def save(figure: Figure, path: Path, pdf: bool = False) -> None:
    """Write ``path`` (.png) and, where asked, the same as .pdf."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    if pdf:
        figure.savefig(path.with_suffix(".pdf"))


def data_uri(path: Path) -> str:
    """A PNG as the value of ``src``."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _grid(rows: int, columns: int, width: float, height: float, **kwargs: Any) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def _legend(figure: Figure, axes: Sequence[Axes], columns: int) -> None:
    """One legend below all panels, for what any of them shows, at most ``columns`` wide; the figure grows by it."""
    shown = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels())}
    # In inches, about: a letter of the legend, and line and gaps of an entry.
    widest = 0.09 * max(map(len, shown), default=0) + 0.7
    columns = max(min(columns, int(figure.get_figwidth() / widest)), 1)
    look: dict[str, Any] = {"ncols": columns, "frameon": False, "handlelength": 3}
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", **look)
    figure.set_figheight(figure.get_figheight() + 0.21 * -(-len(shown) // columns))


def degradation(
    summary: pd.DataFrame,
    ylabel: str,
    styles: Mapping[str, Mapping[str, Any]],
    whole: Mapping[tuple[str, str], str] | None = None,
    modalities: Mapping[str, Sequence[str]] | None = None,
    xlabel: str = "missing rate",
) -> Figure | None:
    """Value against missing rate, one line a model with its SD (over folds: SE) band.

    Args:
        summary: columns dataset, model, scenario, mean, sd of one metric, in the unit of ``ylabel``. A row of panels
            for each data set, a column for each of :data:`FAMILIES` and each modality of nested ones; ``none`` is
            rate 0 in all. Where one of two modalities goes missing at a rate, the scenario that hides it in all rows is
            rate 1, if ``whole`` names it. The place on the x axis is the column ``missing_rate``, the realised rate;
            without it, or where it is NaN, the rate in the name.
        modalities: data set -> the names of its modalities, for titles.

    Returns:
        None where no scenario has a rate.
    """
    data = summary
    for (dataset, family), scenario in (whole or {}).items():
        all_rows = data[(data["dataset"] == dataset) & (data["scenario"] == scenario)]
        data = pd.concat([data, all_rows.assign(scenario=f"{family}1", missing_rate=1.0)], ignore_index=True)
    families: dict[str, dict[str, float]] = {}
    known = "|".join(sorted(FAMILIES, key=len, reverse=True))
    for name in data["scenario"].unique():
        if match := re.fullmatch(rf"({known}|nested_\d+_)([\d.]+)", name):
            families.setdefault(match[1], {"none": 0.0})[name] = float(match[2])
    nested = {family: f"modality {family.split('_')[1]} missing" for family in sorted(set(families) - set(FAMILIES))}
    places = {title: families[family] for family, title in (FAMILIES | nested).items() if family in families}
    titles = {
        (dataset, title): f"{names[i]} missing"
        for dataset, names in (modalities or {}).items()
        for family, title in nested.items()
        if (i := int(family.split("_")[1])) < len(names)
    }
    return _curves(data, places, xlabel, ylabel, styles, titles, is_missing_rate=True)


def noise_levels(summary: pd.DataFrame, ylabel: str, styles: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """Value against noise level, as :func:`degradation`; a column for each operator, modality that it hits, and pattern
    of missingness besides, whose score without noise is level 1.

    Returns:
        None where no scenario has noise.
    """
    places: dict[str, dict[str, float]] = {}
    for name in summary["scenario"].unique():
        if match := re.fullmatch(r"noise_([a-z_]+?)_(\d+)_([^+]+)\+?(.*)", name):
            operator, level, where, pattern = match.groups()
            title = f"{operator.replace('_', ' ')} on {where}" + (f", {pattern}" if pattern else "")
            places.setdefault(title, {pattern or "none": 1.0})[name] = float(level)
    return _curves(summary, places, "noise level", ylabel, styles)


@rc_context(RC)
def _curves(
    summary: pd.DataFrame,
    places: Mapping[str, Mapping[str, float]],
    xlabel: str,
    ylabel: str,
    styles: Mapping[str, Mapping[str, Any]],
    titles: Mapping[tuple[str, str], str] | None = None,
    is_missing_rate: bool = False,
) -> Figure | None:
    """A row of panels for each data set, a column for each of ``places``: title -> scenario -> place on the x axis, of
    which the first is what the others start from. ``titles``: (data set, title) -> what it says there instead.
    ``is_missing_rate``: the column ``missing_rate``, where it has a value, is the place of all but the start."""
    own = {scenario for panel in places.values() for scenario in list(panel)[1:]}
    datasets = summary.loc[summary["scenario"].isin(own), "dataset"].unique()
    if not len(datasets):
        return None
    width = max(4.2 * len(places) + 1, 6.4)
    figure, axes = _grid(len(datasets), len(places), width, 3.6 * len(datasets), sharey="row")
    for row, dataset in zip(axes, datasets):
        for ax, (title, panel) in zip(row, places.items()):
            start = next(iter(panel))
            data = summary[(summary["dataset"] == dataset) & summary["scenario"].isin(panel)]
            data = data.assign(x=data["scenario"].map(panel))
            if is_missing_rate and "missing_rate" in data:
                measured = data["missing_rate"].where(data["scenario"] != start)
                data = data.assign(x=measured.fillna(data["x"]))
            for model, style in styles.items():
                line = data[data["model"] == model].sort_values("x")
                if line.empty or (line["scenario"] == start).all():
                    continue
                look = {k: v for k, v in style.items() if k != "hatch"}
                ax.plot(line["x"], line["mean"], label=model, markersize=5, linewidth=1.7, **look)
                low, high = line["mean"] - line["sd"], line["mean"] + line["sd"]
                ax.fill_between(line["x"], low, high, color=style["color"], alpha=0.15, linewidth=0)
            ax.set_title(f"{dataset}, {(titles or {}).get((dataset, title), title)}", fontsize=10)
            ax.set_xticks(sorted(data["x"].round(3).unique()))
            ax.set_xlabel(xlabel)
            ax.grid(alpha=0.3)
        row[0].set_ylabel(ylabel)
    _legend(figure, list(axes.flat), 2 if width < 8 else 4)
    return figure


@rc_context(RC)
def scenario_bars(summary: pd.DataFrame, ylabel: str, styles: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """Grouped bars for the ``whole_*`` scenarios, SD as a whisker, wrapped over as many rows as are needed.

    Returns:
        None where there are no such scenarios, or more than a page can show (96).
    """
    data = summary[summary["scenario"].str.startswith("whole_")]
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
    figure, axes = _grid(len(rows), 1, inches, 2.4 * len(rows), sharey=True)
    bar = 0.84 / len(models)
    for ax, (dataset, names) in zip(axes[:, 0], rows):
        panel = data[data["dataset"] == dataset].set_index(["model", "scenario"])
        for i, model in enumerate(models):
            values = panel.reindex([(model, name) for name in names])
            x = np.arange(len(names)) + (i - (len(models) - 1) / 2) * bar
            look = {"color": styles[model]["color"], "hatch": styles[model]["hatch"], "edgecolor": "white"}
            ax.bar(x, values["mean"], bar, label=model, linewidth=0.4, **look)
            known = values["sd"].notna().to_numpy()
            for colour, width in (("white", 2.6), ("#222222", 1)):  # readable on dark bars too
                ax.errorbar(x[known], values["mean"][known], values["sd"][known], fmt="none", ecolor=colour, lw=width)
        ax.set_xticks(range(len(names)), names)
        ax.set_xlim(-0.55, slots - 0.45)
        ax.set_title(dataset, fontsize=10)
        ax.set_ylabel(ylabel)
        ax.grid(axis="y", alpha=0.3)
        ax.set_axisbelow(True)
        if (data["mean"] >= 0).all():
            ax.set_ylim(bottom=0)
    _legend(figure, list(axes.flat), 3 if inches < 8 else 5)
    return figure


def last_rewards(rewards: np.ndarray, accepted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The verdict on each recovery.

    Args:
        rewards: (N, T, M) of each selection step, NaN where not evaluated.
        accepted: (N, M) modalities in the order of their acceptance, padded with -1.

    Returns:
        (N, M) reward at the last step that evaluated the modality, NaN where none did; (N, M) bool, accepted.
    """
    n, steps, m = rewards.shape
    last = np.full((n, m), np.nan)
    for t in range(steps):
        last = np.where(np.isnan(rewards[:, t]), last, rewards[:, t])
    return last, (accepted[:, :, None] == np.arange(m)).any(axis=1)


@rc_context(RC)
def reward_histograms(panels: Mapping[str, Sequence[np.ndarray]], title: str) -> Figure:
    """Rewards of accepted against rejected recoveries, one row a scenario; left where the prediction ended right.

    Args:
        panels: scenario -> last rewards (N, M), accepted (N, M), prediction right (N,).
    """
    figure, axes = _grid(len(panels), 2, 8, 2.4 * len(panels) + 0.5, sharex="row")
    figure.suptitle(title, fontsize=11)
    for row, (scenario, (reward, accepted, right)) in zip(axes, panels.items()):
        judged = np.isfinite(reward)
        low, high = min(reward[judged].min(), 0), max(reward[judged].max(), 0)
        width = (high - low or 1) / 30
        bins = np.arange(np.floor(low / width), np.ceil(high / width) + 1) * width  # 0 parts two bins
        for ax, outcome in zip(row, ("right", "wrong")):
            rows = judged & (right == (outcome == "right"))[:, None]
            parts = {"accepted": reward[rows & accepted], "rejected": reward[rows & ~accepted]}
            for (verdict, values), colour, hatch in zip(parts.items(), (GREEN, VERMILLION), ("", "////")):
                look = {"facecolor": (colour, 0.35), "edgecolor": colour, "hatch": hatch, "linewidth": 1.4}
                ax.hist(values, bins, histtype="stepfilled", label=verdict, **look)
            ax.axvline(0, color="#333333", linewidth=0.8, linestyle=":")
            counts = ", ".join(f"{len(values)} {verdict}" for verdict, values in parts.items())
            ax.set_title(f"{scenario}, prediction {outcome}\n{counts}", fontsize=9.5)
            ax.set_xlabel("reward")
            ax.yaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        row[0].set_ylabel("recoveries")
    _legend(figure, axes[0], 2)
    return figure


@rc_context(RC)
def noise_curves(curves: pd.DataFrame, title: str) -> Figure:
    """Weight of a modality, and its predicted level, against the level of its noise while the others are clean; one
    line a modality, the mean over the seeds with its SD band.

    Args:
        curves: columns modality, level, seed, weight, predicted (means over the rows of a test; NaN = not known).
    """
    panels = [("weight", "weight of the modality"), ("predicted", "predicted level")]
    panels = [(column, label) for column, label in panels if curves[column].notna().any()]
    figure, axes = _grid(1, len(panels), 4.4 * len(panels), 3.2)
    figure.suptitle(title, fontsize=11)
    for ax, (column, label) in zip(axes[0], panels):
        for (name, style), (_, part) in zip(
            model_styles([str(m) for m in curves["modality"].unique()]).items(), curves.groupby("modality", sort=False)
        ):
            found = part.groupby("level")[column].agg(["mean", "std"])
            look = {k: v for k, v in style.items() if k != "hatch"}
            ax.plot(found.index, found["mean"], label=name, markersize=5, linewidth=1.7, **look)
            low, high = found["mean"] - found["std"], found["mean"] + found["std"]
            ax.fill_between(found.index, low, high, color=style["color"], alpha=0.15, linewidth=0)
        ends = [curves["level"].min(), curves["level"].max()]
        ax.plot(ends, ends if column == "predicted" else [1, 1], color="#333333", linewidth=0.8, linestyle=":")
        ax.set_xlabel("level of its noise (1 = clean)")
        ax.set_ylabel(label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
    _legend(figure, list(axes.flat), 4)
    return figure


@rc_context(RC)
def training_curves(frames: Mapping[Any, pd.DataFrame], title: str) -> Figure | None:
    """Losses on the left and validation metrics on the right against the epoch, a thin line for each run.

    Args:
        frames: run -> ``metrics.csv`` of Lightning's CSVLogger; columns may be sparse.
    """
    names = list(dict.fromkeys(c for frame in frames.values() for c in frame if not c.endswith("_step")))
    losses = [c for c in names if re.fullmatch(r"(train|val)[_/]loss(_epoch)?", c)]
    scores = [c for c in names if re.match(r"val[_/]", c) and c not in losses][: len(COLOURS)]
    groups = [(label, group) for label, group in (("loss", losses), ("validation metric", scores)) if group]
    if not groups:
        return None
    figure, axes = _grid(1, len(groups), 4.4 * len(groups), 3.2)
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


def _picture(
    ax: Axes, images: np.ndarray | None, k: int, colour: str, heavy: bool, dim: bool, empty: str = "no picture"
) -> None:
    """One framed cell; grey with the words ``empty`` where the modality is no picture, or has none in this row."""
    if images is None:
        ax.set_facecolor("#eeeeee")
        ax.text(0.5, 0.5, empty, ha="center", va="center", fontsize=7.5, color="#555555", transform=ax.transAxes)
    else:
        image = images[k].transpose(1, 2, 0)
        image = image[..., :3] if image.shape[-1] >= 3 else image[..., 0]
        ax.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest", alpha=0.3 if dim else 1, aspect="auto")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set(visible=True, color=colour, linewidth=3 if heavy else 1.2, linestyle="--" if dim else "-")


@rc_context(RC)
def samples(data: Mapping[str, np.ndarray], title: str, limit: int = 6) -> Figure:
    """One block a sample: originals (missing ones dimmed), recoveries, and the reward of each selection step.

    A modality that the source does not have in that row (``absent``, (R, M) bool, all False where it is not given) has
    no original.

    Args:
        data: the arrays of ``examples/<scenario>.npz``.
        limit: samples shown.
    """
    names, classes = [str(n) for n in data["modality_names"]], [str(c) for c in data["class_names"]]
    shown = range(min(len(data["index"]), limit))
    missing, accepted, rewards = data["missing"].astype(bool), data["accepted"], data["rewards"]
    absent = data.get("absent", np.zeros_like(missing)).astype(bool)
    tried = [[t for t in range(rewards.shape[1]) if np.isfinite(rewards[k, t]).any()] for k in shown]
    cell, gap, left, line = 1.15, 0.12, 1.05, 0.18
    heights = [0.62 + cell + missing[k].any() * (cell + gap + 0.2) + line * len(tried[k]) + 0.18 for k in shown]
    width, height = left + len(names) * (cell + gap) + 0.1, 0.4 + sum(heights)
    figure = Figure(figsize=(max(width, 5.2), height))

    def write(x: float, y: float, text: str, size: float = 8.5, **kwargs: Any) -> None:
        figure.text(x / figure.get_figwidth(), 1 - y / height, text, fontsize=size, va="center", **kwargs)

    def axes(column: int, y: float) -> Axes:
        x = left + column * (cell + gap)
        total = figure.get_figwidth()
        return figure.add_axes((x / total, 1 - (y + cell) / height, cell / total, cell / height))

    write(0.1, 0.2, title, 11, weight="bold")
    for k, top in zip(shown, 0.4 + np.cumsum([0, *heights[:-1]])):
        label = [classes[c] if 0 <= c < len(classes) else str(c) for c in (data["target"][k], data["prediction"][k])]
        right = data["target"][k] == data["prediction"][k]
        verdict = f"true: {label[0]}    predicted: {label[1]} ({'right' if right else 'wrong'})"
        write(0.1, top + 0.18, verdict, 10, weight="bold", color="#00694d" if right else "#a84700")
        order = [int(m) for m in accepted[k] if m >= 0]
        y = top + 0.54
        write(0.1, y + cell / 2, "original")
        for m, name in enumerate(names):
            centre = left + m * (cell + gap) + cell / 2
            gone = bool(missing[k, m])
            heading = name + (" – absent" if absent[k, m] else " – missing" * gone)
            write(centre, y - 0.12, heading, 8 * min(1, 18 / len(heading)), ha="center")
            original = None if absent[k, m] else data.get(f"original_{name}")
            empty = "not in the data" if absent[k, m] else "no picture"
            _picture(axes(m, y), original, k, VERMILLION if gone else "#999999", False, gone, empty)
        if not missing[k].any():
            continue
        y += cell + gap + 0.16
        write(0.1, y + cell / 2, "recovered")
        for m in np.flatnonzero(missing[k]).tolist():
            chosen, centre = m in order, left + m * (cell + gap) + cell / 2
            verdict = f"accepted ({order.index(m) + 1})" if chosen else "rejected" if tried[k] else "recovered"
            colour = "#00694d" if chosen else "#333333"
            write(centre, y - 0.11, verdict, 8, ha="center", color=colour, weight="bold" if chosen else "normal")
            _picture(axes(m, y), data.get(f"recovered_{names[m]}"), k, GREEN if chosen else "#999999", chosen, False)
        y += cell + 0.16
        for t in tried[k]:
            write(0.1, y, f"reward, step {t + 1}", 8)
            for m in np.flatnonzero(np.isfinite(rewards[k, t])).tolist():
                chosen = t < len(order) and order[t] == m
                look = {"weight": "bold", "color": "#00694d"} if chosen else {"color": "#333333"}
                write(left + m * (cell + gap) + cell / 2, y, f"{rewards[k, t, m]:+.3f}", 8.5, ha="center", **look)
            y += line
    return figure


@rc_context(RC)
def distance_histograms(
    values: np.ndarray, target: np.ndarray, sigma: np.ndarray, titles: Mapping[int, str], classes: Sequence[int]
) -> Figure:
    """Distances to the own class's prototype, with the half-normal density that the ICS score assumes.

    Args:
        values: (S, N) distances, NaN in rows that lack a modality of the subset, which count in no panel. target: (N,).
            sigma: (S, C).
        titles: subset id -> title, one row of panels each.
        classes: one column each.
    """
    figure, axes = _grid(len(titles), len(classes), 2.6 * len(classes), 2.1 * len(titles))
    for row, (s, title) in zip(axes, titles.items()):
        for ax, c in zip(row, classes):
            d, scale = values[s, target == c], float(sigma[s, c])
            d = d[~np.isnan(d)]
            x = np.linspace(0, max(d.max(initial=0), 3 * scale), 200)
            if len(d):
                ax.hist(d, bins=40, density=True, color="#0072B2", alpha=0.6)
            ax.plot(x, np.sqrt(2 / np.pi) / scale * np.exp(-0.5 * (x / scale) ** 2), color="#D55E00", linewidth=1.5)
            ax.set_title(f"{title}, class {c}", fontsize=8)
            ax.set_yticks([])
        row[0].set_ylabel("density")
    for ax in axes[-1]:
        ax.set_xlabel("distance")
    figure.tight_layout()
    return figure


@rc_context(RC)
def per_class(
    values: pd.DataFrame,
    xlabel: str,
    styles: Mapping[str, Mapping[str, Any]],
    title: str,
    gain: pd.Series | None = None,
) -> Figure:
    """A row for each class, in the order of the index, a mark for each column; many classes go into several panels.

    Args:
        values: index class names, columns models (or scenarios); NaN where a class has no rows.
        gain: class name -> number that is printed beside its row, in percentage points; None = nothing.
    """
    panels = -(-len(values) // CLASSES_PER_PANEL)
    rows = -(-len(values) // panels)
    figure, axes = _grid(1, panels, 6.4 if panels == 1 else 5.0 * panels, 0.22 * rows + 1.4, sharex=True)
    for k, ax in enumerate(axes[0]):
        part = values.iloc[k * rows : (k + 1) * rows]
        places = np.arange(len(part))
        ax.hlines(places, part.min(axis=1), part.max(axis=1), color="#bbbbbb", linewidth=1, zorder=0)
        for i, (model, style) in enumerate((m, style) for m, style in styles.items() if m in part):
            # Smaller one after the other, so that equal scores hide none.
            look = {"color": style["color"], "marker": style["marker"], "s": max(60 - 18 * i, 12)}
            ax.scatter(part[model], places, label=model, zorder=2 + i, **look)
        ax.set_yticks(places, part.index, fontsize=8)
        ax.set_ylim(rows - 0.4, -0.6)
        ax.set_xlabel(xlabel)
        ax.grid(axis="x", alpha=0.3)
        if gain is not None:
            texts = [
                "–" if np.isnan(gain[name]) else f"{round(gain[name], 1) + 0:+.1f}".replace("-", "−")
                for name in part.index
            ]
            right = ax.secondary_yaxis("right")
            right.set_yticks(places, texts, fontsize=8)
            right.tick_params(length=0)
            right.spines["right"].set_visible(False)
            ax.text(1.02, 1.0, "gain", fontsize=8, va="bottom", transform=ax.transAxes)
    figure.suptitle(title, fontsize=10)
    _legend(figure, [axes[0, 0]], 3)
    return figure


@rc_context(RC)
def embedding(
    points: Mapping[str, np.ndarray],
    target: np.ndarray,
    classes: Mapping[int, str],
    title: str,
    subtitle: str = "",
    unit: str = "t-SNE",
) -> Figure:
    """Sets of points in one map; colour and number tell the class, the marker tells the set.

    The number of a class stands at the median of its points of the first set.

    Args:
        points: name of a set -> positions (N, 2), the same rows in each.
        target: (N,) class of each row. Rows of other ``classes`` are not drawn.
        classes: number of a class -> name.
    """
    figure, axes = _grid(1, 1, 8.0, 6.2)
    ax = axes[0, 0]
    markers = dict(zip(points, ("o", "x", "^", "s", "D")))
    colours = (*COLOURS, "#999999", "#882255", "#B8A400")
    for name, marker in markers.items():
        ax.scatter([], [], s=30, color="#444444", marker=marker, label=name)
    for i, (c, label) in enumerate(classes.items()):
        colour = colours[i % len(colours)]
        for name, xy in points.items():
            ax.scatter(*xy[target == c].T, s=16, alpha=0.6, linewidths=0.8, color=colour, marker=markers[name])
        ax.scatter([], [], s=40, color=colour, marker="s", label=f"{i + 1}  {label}")
        first = next(iter(points.values()))[target == c]
        if len(first):
            edge = [patheffects.withStroke(linewidth=3, foreground="white")]
            look: dict[str, Any] = {"color": colour, "weight": "bold", "path_effects": edge, "zorder": 5}
            ax.text(*np.median(first, axis=0), str(i + 1), fontsize=12, ha="center", va="center", **look)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_xlabel(f"{unit} 1")
    ax.set_ylabel(f"{unit} 2")
    ax.set_title(subtitle, fontsize=10)
    figure.suptitle(title, fontsize=11)
    _legend(figure, [ax], 3)
    return figure


@rc_context(RC)
def attention_maps(
    groups: Mapping[str, Sequence[tuple[np.ndarray, Mapping[str, np.ndarray], str]]], title: str
) -> Figure:
    """A block for each group of samples, a line for each sample: its label, the image, and every map over it, each
    scaled by its own maximum.

    Args:
        groups: heading -> samples: image (H, W, 3) or (H, W) in [0, 1], name -> map (rows, columns) of attention to
            the patches, label (lines separated by a line feed).
    """
    names = next((list(sample[1]) for samples in groups.values() for sample in samples), [])
    lines = [max(len(samples), 1) for samples in groups.values()]
    heights = [0.35 + (1.8 * len(samples) or 0.4) for samples in groups.values()]
    width = max(1.8 + 1.9 * (1 + len(names)), 7.0)
    figure = Figure(figsize=(width, sum(heights) + 0.6), layout="constrained")
    figure.suptitle("\n".join(textwrap.wrap(title, int(11 * width))), fontsize=11)
    parts = figure.subfigures(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    widths = [0.9] + [1] * (1 + len(names))
    for part, (heading, samples), count in zip(parts, groups.items(), lines):
        part.suptitle(heading, fontsize=10, weight="bold", ha="left", x=0.02)
        axes = part.subplots(count, 2 + len(names), squeeze=False, width_ratios=widths)
        for ax in axes.flat:
            ax.set_axis_off()
        if not samples:
            axes[0, 0].text(0, 0.5, "no such row", fontsize=8, va="center")
        for line, (image, maps, label) in zip(axes, samples):
            wrapped = "\n".join(textwrap.fill(text, 22, subsequent_indent="   ") for text in label.split("\n"))
            line[0].text(0, 0.5, wrapped, fontsize=8, va="center", transform=line[0].transAxes)
            # Grey below a map, so that its colours are those of the attention alone.
            grey = image.mean(-1) if image.ndim == 3 else image
            place: dict[str, Any] = {"extent": (0, image.shape[1], image.shape[0], 0), "aspect": "auto"}
            for ax, name in zip(line[1:], ("input", *names)):
                ax.imshow(image if name == "input" else grey, cmap="gray", vmin=0, vmax=1, **place)
                if name != "input":
                    ax.imshow(maps[name], cmap="inferno", alpha=0.55, vmin=0, interpolation="bilinear", **place)
        for ax, name in zip(axes[0, 1:] if samples else (), ("input", *names)):
            ax.set_title(name, fontsize=9)
    return figure

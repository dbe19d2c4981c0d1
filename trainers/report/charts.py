"""Charts of the page as SVG: curves with bands, dots per scenario, and scores against costs.

A model has the colour, marker and dashes of :func:`trainers.report.style.model_styles`; colours are classes of
``page.css``, which has lighter ones for dark screens. ``page.js`` reads the values below the pointer from ``data-p`` of
a series: ``x|y|group|text`` per point, in units of the drawing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.ticker import LogLocator, MaxNLocator

from trainers.report.curves import Panel
from trainers.report.style import COLOURS, LINES
from trainers.report.tables import score_text

WIDTH, HEIGHT = 360, 250  # of curves; small, so that letters can be read on a phone
LEFT, RIGHT, TOP, BOTTOM = 38, 12, 24, 36  # margins
LABEL, DENSE = 18, 12  # in a chart of dots: height of a scenario's name; scenarios above which lines are closer
SHAPES = {  # relative paths of the markers, about 7 units wide
    "o": "m-3.2 0a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0-6.4 0z",
    "s": "m-3-3h6v6h-6z",
    "^": "m-3.6 3l3.6-6.6l3.6 6.6z",
    "D": "m0-4l4 4l-4 4l-4-4z",
    "v": "m-3.6-3l3.6 6.6l3.6-6.6z",
    "P": "m-1.3-3.6h2.6v2.3h2.3v2.6h-2.3v2.3h-2.6v-2.3h-2.3v-2.6h2.3z",
    "X": "m-3.4-1.9l1.5-1.5l1.9 1.9l1.9-1.9l1.5 1.5l-1.9 1.9l1.9 1.9l-1.5 1.5l-1.9-1.9l-1.9 1.9l-1.5-1.5l1.9-1.9z",
    "<": "m3-3.6l-6.6 3.6l6.6 3.6z",
    ">": "m-3-3.6l6.6 3.6l-6.6 3.6z",
    "*": "m0-4.4l1.2 3l3.2.3l-2.5 2l.8 3.1l-2.7-1.7l-2.7 1.7l.8-3.1l-2.5-2l3.2-.3z",
    "h": "m0-3.8l3.3 1.9v3.8l-3.3 1.9l-3.3-1.9v-3.8z",
    "x": "m-3-3l6 6m0-6l-6 6",
    "+": "m-3.6 0h7.2m-3.6-3.6v7.2",
    "1": "m0 0v4m0-4l3.4-2.4m-3.4 2.4l-3.4-2.4",
    "2": "m0 0v-4m0 4l3.4 2.4m-3.4-2.4l-3.4 2.4",
}
DASHES = {line: f"d{i}" for i, line in enumerate((*LINES, ":"))}


def style_class(style: Mapping[str, Any]) -> str:
    """Classes of ``page.css`` for the colour and dashes of a model."""
    colour = f"c{COLOURS.index(style['color'])}" if style["color"] in COLOURS else "c-grey"
    return f"{colour} {DASHES[style['linestyle']]}"


@dataclass(frozen=True)
class Scale:
    """Linear or logarithmic map of values to units of the drawing."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.is_log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / ((high - low) or 1) * (self.end - self.start)

    def ticks(self, number: int = 5) -> list[float]:
        """Round values within the range."""
        if self.is_log:
            values = LogLocator(subs=(1.0,)).tick_values(self.low, self.high)
        if not self.is_log or sum(self.low <= v <= self.high for v in values) < 2:
            values = MaxNLocator(number, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        slack = 1e-9 * (self.high - self.low)
        return [float(v) for v in values if self.low - slack <= v <= self.high + slack]


def padded(values: Sequence[float], share: float = 0.04) -> tuple[float, float]:
    """Range of the finite values with a margin."""
    finite = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    margin = share * (max(finite) - min(finite)) or 0.05 * abs(finite[0]) or 0.5
    return min(finite) - margin, max(finite) + margin


def number_text(value: float) -> str:
    """A tick or value in few letters: 1.5 M, 20 k, 0.25."""
    rounded = float(f"{value:.3g}")  # first, so that 999,700 is 1 M and not 1000 k
    for least, size, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(rounded) >= least:
            return f"{rounded / size:.4g} {letter}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def curve_chart(
    panel: Panel, ylabel: str, xlabel: str, styles: Mapping[str, Mapping[str, Any]], captions: Mapping[str, str]
) -> Markup:
    """One line per model with its band.

    Args:
        panel: in the unit of ``ylabel``; not empty.
        captions: scenario -> words for the values at its points.
    """
    points = panel.points
    sd = points["sd"].fillna(0)
    x = Scale(*padded([*points["x"], 0 if points["x"].min() < 0.5 else points["x"].min()]), LEFT, WIDTH - RIGHT)
    y = Scale(*padded([*(points["mean"] - sd), *(points["mean"] + sd)]), HEIGHT - BOTTOM, TOP)
    places = points.drop_duplicates("scenario")
    groups = {str(s): i for i, s in enumerate(places["scenario"])}
    names = [
        [round(x(at), 1), f"{captions.get(str(s), s)} ({xlabel} {at:.3g})"]
        for s, at in zip(places["scenario"], places["x"])
    ]
    parts = [_y_axis(y, WIDTH), _x_axis(x, sorted(points["x"].round(3).unique()), HEIGHT, xlabel)]
    digits = 2 if ylabel.endswith("(%)") else None
    for model, style in styles.items():
        line = points[points["model"] == model].dropna(subset="mean")
        if line.empty:
            continue
        xs, ys = [x(v) for v in line["x"]], [y(v) for v in line["mean"]]
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(xs, ys))
        low, high = ([y(v) for v in line["mean"] + sign * line["sd"].fillna(0)] for sign in (-1, 1))
        edge = [*zip(xs, high), *list(zip(xs, low))[::-1]]
        band = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in edge) + "z"
        band = f'<path class="band" d="{band}"/>' if line["sd"].notna().any() else ""
        texts = [score_text(m, s, digits) for m, s in zip(line["mean"], line["sd"])]
        indices = [groups[str(s)] for s in line["scenario"]]
        body = f'{band}<path class="line" d="{path}"/>'
        parts.append(_series(model, style, list(zip(xs, ys, indices, texts)), body))
    return _svg(parts, WIDTH, HEIGHT, f"{panel.title}: {ylabel} against {xlabel}", ylabel, names, "x")


def dot_chart(
    rows: pd.DataFrame,
    title: str,
    xlabel: str,
    styles: Mapping[str, Mapping[str, Any]],
    captions: Mapping[str, str],
) -> Markup:
    """One line per scenario with a mark per model, SD as whiskers.

    Args:
        rows: columns model, scenario, mean, sd of one data set and metric, in the unit of ``xlabel``.
    """
    rows = rows.dropna(subset="mean")
    sd = rows["sd"].fillna(0)
    x = Scale(*padded([*(rows["mean"] - sd), *(rows["mean"] + sd)]), 8, WIDTH - RIGHT)
    scenarios = [str(s) for s in rows["scenario"].unique()]
    shown = [model for model in styles if (rows["model"] == model).any()]
    spread = max(14, min(3.4 * len(shown), 96 if len(scenarios) <= DENSE else 24))  # of the marks of a scenario
    height = round(TOP + (LABEL + spread) * len(scenarios) + 28)
    middles = {s: round(TOP + (LABEL + spread) * i + LABEL + spread / 2, 1) for i, s in enumerate(scenarios)}
    parts, names = [], []
    for scenario, middle in middles.items():
        names.append([middle, captions.get(scenario, scenario)])
        text = escape(_shortened(captions.get(scenario, scenario), 52))
        parts.append(f'<text class="name" x="8" y="{middle - spread / 2 - 5:.1f}">{text}</text>')
        parts.append(f'<path class="grid" d="M8 {middle}H{WIDTH - RIGHT}"/>')
    parts.append(_x_axis(x, x.ticks(), height, "", top=TOP))
    digits = 2 if xlabel.endswith("(%)") else None
    for k, model in enumerate(shown):
        line = rows[rows["model"] == model]
        shift = spread * ((k + 0.5) / len(shown) - 0.5)  # marks of equal scores stay visible
        xs = [x(v) for v in line["mean"]]
        ys = [middles[str(s)] + shift for s in line["scenario"]]
        whiskers = "".join(
            f"M{x(m - s):.1f} {b:.1f}H{x(m + s):.1f}" for m, s, b in zip(line["mean"], line["sd"], ys) if s > 0
        )
        texts = [score_text(m, s, digits) for m, s in zip(line["mean"], line["sd"])]
        indices = [scenarios.index(str(s)) for s in line["scenario"]]
        body = f'<path class="whisker" d="{whiskers}"/>' if whiskers else ""
        parts.append(_series(model, styles[model], list(zip(xs, ys, indices, texts)), body))
    return _svg(parts, WIDTH, height, f"{title}: {xlabel} per scenario", xlabel, names, "y")


def cost_chart(
    rows: pd.DataFrame, title: str, xlabel: str, ylabel: str, styles: Mapping[str, Mapping[str, Any]]
) -> Markup:
    """One point per model: score against a cost on a logarithmic axis; a line joins the models that no other beats in
    both.

    Args:
        rows: columns model, cost (> 0), mean, sd in the unit of ``ylabel``, and better (the mean, or minus the mean if
            lower is better).
    """
    logs = padded(list(np.log10(rows["cost"])), 0.08)
    x = Scale(10 ** logs[0], 10 ** logs[1], LEFT, WIDTH - RIGHT, is_log=True)
    sd = rows["sd"].fillna(0)
    y = Scale(*padded([*(rows["mean"] - sd), *(rows["mean"] + sd)], 0.08), HEIGHT - BOTTOM, TOP)
    parts = [_y_axis(y, WIDTH), _x_axis(x, x.ticks(), HEIGHT, xlabel)]
    best = rows.loc[pareto(rows)].sort_values("cost")
    steps = "".join(f"H{x(c):.1f}V{y(m):.1f}" for c, m in zip(best["cost"].iloc[1:], best["mean"].iloc[1:]))
    parts.append(f'<path class="front" d="M{x(best["cost"].iloc[0]):.1f} {y(best["mean"].iloc[0]):.1f}{steps}"/>')
    digits = 2 if ylabel.endswith("(%)") else None
    for model, cost, mean, sd in rows[["model", "cost", "mean", "sd"]].itertuples(index=False):
        at = (x(cost), y(mean), 0, f"{score_text(mean, sd, digits)}, {number_text(cost)} {xlabel}")
        whisker = f'<path class="whisker" d="M{at[0]:.1f} {y(mean - sd):.1f}V{y(mean + sd):.1f}"/>' if sd > 0 else ""
        parts.append(_series(str(model), styles[model], [at], whisker))
    return _svg(parts, WIDTH, HEIGHT, f"{title}: {ylabel} against {xlabel}", ylabel, [[0, title]], "xy")


def pareto(rows: pd.DataFrame) -> pd.Series:
    """Rows than which no other has both a lower or equal cost and a better score."""
    ordered = rows.sort_values(["cost", "better"], ascending=[True, False])
    before = ordered["better"].cummax().shift(fill_value=-np.inf)
    return (ordered["better"] > before).reindex(rows.index)


def legend(styles: Mapping[str, Mapping[str, Any]]) -> Markup:
    """Buttons that show or hide a model."""
    items = []
    for model, style in styles.items():
        swatch = (
            f'<svg class="{style_class(style)}" width="34" height="14" aria-hidden="true"><path class="line" '
            f'd="M1 7H33"/><path class="{_mark_class(style)}" d="M17 7{SHAPES[style["marker"]]}"/></svg>'
        )
        name = escape(model)
        items.append(
            f'<li><button type="button" data-model="{name}" aria-pressed="true">{swatch}<span>{name}</span></button>'
        )
    return Markup(f'<ul class="legend" aria-label="Models: press to hide or show">{"</li>".join(items)}</li></ul>')


def _mark_class(style: Mapping[str, Any]) -> str:
    return "mark open" if style["marker"] in "x+12" else "mark"


def _series(model: str, style: Mapping[str, Any], points: Sequence[tuple[float, float, int, str]], body: str) -> str:
    """A model's marks and values.

    Args:
        points: position, number of the group, and value in words.
        body: what lies below the marks.
    """
    marks = "".join(f"M{a:.1f} {b:.1f}{SHAPES[style['marker']]}" for a, b, _, _ in points)
    values = ";".join(f"{a:.1f}|{b:.1f}|{group}|{text}" for a, b, group, text in points)
    return (
        f'<g class="series {style_class(style)}" data-model="{escape(model)}" data-p="{escape(values)}">'
        f'{body}<path class="{_mark_class(style)}" d="{marks}"/></g>'
    )


def _y_axis(y: Scale, width: int) -> str:
    lines = "".join(
        f'<path class="grid" d="M{LEFT} {y(v):.1f}H{width - RIGHT}"/>'
        f'<text x="{LEFT - 5}" y="{y(v) + 4:.1f}" text-anchor="end">{number_text(v)}</text>'
        for v in y.ticks()
    )
    return f"<g>{lines}</g>"


def _x_axis(x: Scale, ticks: Sequence[float], height: int, label: str, top: int | None = None) -> str:
    """Ticks that have room, and the label below them."""
    bottom = height - (BOTTOM if label else 20)
    parts, last = [], -math.inf
    for value in ticks:
        text = number_text(value)
        room = 3.3 * len(text) + 3
        if x(value) - room > last:
            parts.append(f'<text x="{x(value):.1f}" y="{bottom + 14}" text-anchor="middle">{text}</text>')
            last = x(value) + room
        line_class = "grid" if top is not None else "tick"
        start = top if top is not None else bottom
        parts.append(f'<path class="{line_class}" d="M{x(value):.1f} {start}V{bottom + 3}"/>')
    parts.append(f'<path class="axis" d="M{x.start} {bottom}H{x.end}"/>')
    if label:
        middle = (x.start + x.end) / 2
        parts.append(f'<text x="{middle}" y="{height - 5}" text-anchor="middle">{escape(label)}</text>')
    return f"<g>{''.join(parts)}</g>"


def _shortened(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"


def _svg(
    parts: Sequence[str], width: int, height: int, label: str, unit: str, groups: Sequence[Sequence[Any]], axis: str
) -> Markup:
    """
    Args:
        label: for screen readers.
        unit: of the values, written above the chart.
        groups: position and name of what the points at one place have in common.
        axis: along which the pointer chooses a group: x | y | xy (the nearest point).
    """
    return Markup(
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="group" tabindex="0" data-axis="{axis}" '
        f'data-groups="{escape(json.dumps(groups))}" aria-label="{escape(label)}. Arrow keys read the values.">'
        f'<text x="4" y="12">{escape(unit)}</text>{"".join(parts)}</svg>'
    )

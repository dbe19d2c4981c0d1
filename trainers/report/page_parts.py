"""Tables and charts of the page, per metric, by missing training data, and of costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from datasets.missingness.base import MISSING_RATE, NOISE_LEVEL, slug
from trainers.report.charts import cost_chart, curve_chart, dot_chart, legend
from trainers.report.content import Content
from trainers.report.costs import QUANTITIES, cost_rows
from trainers.report.curves import curve_panels
from trainers.report.figures import scenarios_at_rate_one
from trainers.report.html_tables import frame_table, score_table
from trainers.report.outcomes import extremes
from trainers.report.plots import has_bar
from trainers.report.runs import scenario_of
from trainers.report.tables import label, rows_of_metric

DOTS = 96  # scenarios up to which a chart shows scores per scenario
Styles = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Chart:
    """A chart of one data set."""

    heading: str
    dataset: str
    svg: Markup


@dataclass(frozen=True)
class MetricPart:
    """Tables and charts of one metric."""

    id: str
    name: str
    label: str
    tables: Sequence[tuple[str, Markup]]
    files: Sequence[str]
    charts: Sequence[Chart]
    legend: Markup
    figures: Sequence[str] = ()


def _files_of(stem: str, metric: str, files: Sequence[str]) -> list[str]:
    """CSV, Markdown and LaTeX of a metric."""
    return [f for f in (f"{stem}.csv", *(f"{stem}_{slug(metric)}.{kind}" for kind in ("md", "tex"))) if f in files]


def metric_parts(
    content: Content, styles: Styles, figures: Mapping[str, Sequence[str]], files: Sequence[str]
) -> list[MetricPart]:
    captions, at_rate_one = content.captions, scenarios_at_rate_one(content.runs)
    parts = []
    for metric in content.metrics:
        of_metric = content.summary[content.summary["metric"] == metric]
        tables = [
            (str(d), score_table(part, metric, captions[str(d)], f"{d}, {label(metric)}"))
            for d, part in of_metric.groupby("dataset", sort=False)
        ]
        rows = rows_of_metric(content.summary, metric)
        charts = _curve_charts(content, rows, metric, styles, MISSING_RATE, at_rate_one)
        charts += _curve_charts(content, rows, metric, styles, NOISE_LEVEL)
        charts += _dot_charts(rows, metric, styles, captions)
        shown = {m: style for m, style in styles.items() if (rows["model"] == m).any()}
        parts.append(
            MetricPart(
                id=f"metric-{slug(metric)}",
                name=metric,
                label=label(metric),
                tables=tables,
                files=_files_of("summary", metric, files),
                charts=charts,
                legend=legend(shown),
                figures=figures.get(metric, ()),
            )
        )
    return parts


def sweep_parts(content: Content, styles: Styles, files: Sequence[str]) -> list[MetricPart]:
    parts = []
    for metric in content.metrics if len(content.sweep) else ():
        rows = rows_of_metric(content.sweep, metric)
        captions = {
            str(d): {str(s): scenario_of(str(s)).caption(content.names.get(str(d), ())) for s in part["scenario"]}
            for d, part in rows.groupby("dataset", sort=False)
        }
        tables = [
            (str(d), score_table(part, metric, captions[str(d)], f"{d}, {label(metric)}, by training data"))
            for d, part in content.sweep[content.sweep["metric"] == metric].groupby("dataset", sort=False)
        ]
        charts = _curve_charts(content, rows, metric, styles, MISSING_RATE, xlabel="missing rate in training")
        shown = {m: style for m, style in styles.items() if (rows["model"] == m).any()}
        names = (f"sweep-{slug(metric)}", metric, label(metric))
        parts.append(MetricPart(*names, tables, _files_of("sweep", metric, files), charts, legend(shown)))
    return parts


def _curve_charts(
    content: Content,
    rows: pd.DataFrame,
    metric: str,
    styles: Styles,
    axis: str,
    at_rate_one: Mapping[tuple[str, str], str] | None = None,
    xlabel: str = "",
) -> list[Chart]:
    charts = []
    for panel in curve_panels(rows, axis, at_rate_one, content.names):
        names = content.names.get(panel.dataset, ())
        captions = {str(s): scenario_of(str(s)).caption(names) for s in panel.points["scenario"].unique()}
        if panel.points["mean"].notna().any():
            svg = curve_chart(panel, label(metric), xlabel or axis, styles, captions)
            charts.append(Chart(panel.title, panel.dataset, svg))
    return charts


def _dot_charts(
    rows: pd.DataFrame, metric: str, styles: Styles, captions: Mapping[str, Mapping[str, str]]
) -> list[Chart]:
    data = rows[rows["scenario"].map(has_bar) & rows["mean"].notna()]
    return [
        Chart(
            f"{dataset}, modalities missing in all rows",
            str(dataset),
            dot_chart(part, str(dataset), label(metric), styles, of_set),
        )
        for dataset, part in data.groupby("dataset", sort=False)
        if len(of_set := captions[str(dataset)]) and part["scenario"].nunique() <= DOTS
    ]


def cost_tables(costs: pd.DataFrame) -> list[tuple[str, Markup]]:
    """Data set and its costs; a quantity that no model has is left out."""
    tables = []
    for dataset, part in costs.groupby("dataset", sort=False):
        shown = part.drop(columns="dataset").dropna(axis="columns", how="all")
        shown = shown.rename(columns=lambda column: column.replace("_", " "))
        tables.append((str(dataset), frame_table(shown, f"Costs, {dataset}", {"model": list(shown["model"])})))
    return tables


def cost_charts(content: Content, styles: Styles) -> list[Chart]:
    charts = []
    for dataset in map(str, content.costs["dataset"].unique()):
        for scenario in extremes(content.summary[content.summary["dataset"] == dataset]):
            rows = cost_rows(content.costs, content.summary, dataset, scenario, content.primary)
            heading = f"{dataset}, {content.captions[dataset][scenario]}"
            for quantity, text in QUANTITIES.items():
                part = rows[rows["quantity"] == quantity]
                if len(part) > 1:
                    chart = cost_chart(part, heading, text, label(content.primary), styles)
                    charts.append(Chart(f"{heading}: {text}", dataset, chart))
    return charts

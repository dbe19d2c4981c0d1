"""Tables of the page: headers, numbers to sort by, and names of models and scenarios for the filters."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from markupsafe import Markup, escape

from trainers.report.tables import rate_notes, rows_of_metric, table, with_rates

BREAK = Markup("_<wbr>")  # where a name may be broken on a phone


@dataclass(frozen=True)
class HtmlTable:
    """A table whose first column names its rows.

    Attributes:
        label: what the table shows, for screen readers.
        heads: headings of all columns.
        rows: cells; text is escaped, Markup is not.
        numbers: (row, column) -> number to sort by, where the text is not one.
        scenarios: per column, the scenario that the filter hides it with; empty = never hidden.
        keys: per row, attributes ``data-<key>`` that the filters compare.
        foot: last row, which is not sorted.
        titles: per column, the tool tip of the heading.
        texts: numbers of the columns of text, aligned to the left.
    """

    label: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Mapping[tuple[int, int], float] = field(default_factory=dict)
    scenarios: Sequence[str] = ()
    keys: Sequence[Mapping[str, str]] = ()
    foot: Sequence[str] = ()
    titles: Sequence[str] = ()
    texts: Collection[int] = ()

    def __html__(self) -> str:
        """The table in a frame that scrolls."""
        body = "".join(self._row(i, cells) for i, cells in enumerate(self.rows))
        foot = f"<tfoot>{self._cells(self.foot)}</tr></tfoot>" if self.foot else ""
        label = escape(self.label)
        return (
            f'<div class="wide" role="region" tabindex="0" aria-label="{label}"><table aria-label="{label}">'
            f"<thead><tr>{''.join(self._head(j) for j in range(len(self.heads)))}</tr></thead>"
            f"<tbody>{body}</tbody>{foot}</table></div>"
        )

    def _head(self, column: int) -> str:
        attributes = {
            "class": "text" if column in self.texts else "",
            "title": self.titles[column] if self.titles else "",
            "data-scenario": self.scenarios[column] if self.scenarios else "",
        }
        return f'<th scope="col"{_attributes(attributes)}>{escape(self.heads[column])}</th>'

    def _row(self, row: int, cells: Sequence[str]) -> str:
        keys = {f"data-{key}": value for key, value in self.keys[row].items()} if self.keys else {}
        return self._cells(cells, _attributes(keys), row) + "</tr>"

    def _cells(self, cells: Sequence[str], attributes: str = "", row: int = -1) -> str:
        head = escape(cells[0]).replace("_", BREAK)
        texts = [f'<tr{attributes}><th scope="row">{head}</th>']
        for column, cell in enumerate(cells[1:], 1):
            number = self.numbers.get((row, column), math.nan)
            shown = f' data-v="{number:.10g}"' if math.isfinite(number) else ""
            look = f' class="text{" long" * (len(cell) > 60)}"' if column in self.texts else ""
            texts.append(f"<td{look}{shown}>{escape(cell)}</td>")
        return "".join(texts)


def _attributes(values: Mapping[str, str]) -> str:
    return "".join(f' {name}="{escape(value)}"' for name, value in values.items() if value)


def score_table(
    summary: pd.DataFrame, metric: str, captions: Mapping[str, str], label: str, rows_are: str = "model"
) -> Markup:
    """Scores of one data set with notes: rows are models, columns scenarios.

    Args:
        captions: scenario -> heading of its column.
        rows_are: what ``model`` holds: ``model``, or anything else, which the filters leave alone.
    """
    cells = with_rates(table(summary, metric, "html"), summary, "html")
    rows = rows_of_metric(summary, metric)
    means = rows.pivot(index="model", columns="scenario", values="mean")
    models, scenarios = list(rows["model"].unique()), [str(s) for s in rows["scenario"].unique()]
    numbers = {
        (i, j): float(means.loc[model, scenario])
        for i, model in enumerate(models)
        for j, scenario in enumerate(scenarios, 1)
    }
    texts = [[Markup(name), *map(Markup, line)] for name, line in zip(cells.index, cells.to_numpy().tolist())]
    html = HtmlTable(
        label,
        [rows_are, *(captions[name] for name in scenarios)],
        texts[: len(models)],
        numbers,
        ["", *scenarios],
        [{"model": model} for model in models] if rows_are == "model" else (),
        texts[-1] if len(texts) > len(models) else (),
        ["", *scenarios],
    )
    notes = [Markup('<p class="note">{}</p>').format(note) for note in rate_notes(summary, captions)]
    return Markup("").join([Markup(html.__html__()), *notes])


def frame_table(frame: pd.DataFrame, label: str, keys: Mapping[str, Sequence[str]] | None = None) -> Markup:
    """Any frame; numbers have three digits, nothing stands for NaN.

    Args:
        keys: name -> value per row, for the filters: ``model``, ``scenario``, ``dataset``.
    """
    is_number = [pd.api.types.is_numeric_dtype(frame[column]) for column in frame]
    numbers = {
        (i, j): float(value) for j, column in enumerate(frame) if is_number[j] for i, value in enumerate(frame[column])
    }
    texts = [j for j, number in enumerate(is_number) if not number]
    rows = [[_text(value) for value in line] for line in frame.itertuples(index=False, name=None)]
    by_row = [dict(zip(keys, map(str, values))) for values in zip(*keys.values())] if keys else ()
    heads = [str(column) for column in frame]
    return Markup(HtmlTable(label, heads, rows, numbers, keys=by_row, texts=texts).__html__())


def _text(value: Any) -> str:
    if pd.isna(value):
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() or abs(value) >= 1000 else f"{value:.3g}"
    return str(value)

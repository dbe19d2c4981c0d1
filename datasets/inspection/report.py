"""What a check found, as lines, Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd

from datasets.inspection.columns import Column
from datasets.inspection.files import Files
from datasets.inspection.findings import LEVELS, Finding, number_of
from datasets.inspection.layout import Layout, ModalityColumns
from datasets.inspection.leaks import GIVES_AWAY

MOSTLY = 0.8  # share of missing cells from which on a column is no input of a suggestion
NO_INPUT = {
    "identifier": "names the rows",
    "group": "names what the rows belong to",
    "date": "holds dates",
    "split": "names splits",
    "constant": "has one value",
    "empty": "has no values",
}


@dataclass
class Report:
    """What a check found.

    Attributes:
        layout: the settings that were checked, with what was guessed of them.
        columns: of the table.
        findings: errors first.
        cells: of the table.
        files: place of a column of files -> their state.
        shares: column -> share of the label's information in it.
        suspects: columns with a frequent value that one class only has.
        counts: split -> class -> rows.
        classes: of the rows that have one, indexed by spreadsheet rows.
        suggestion: settings that run with the table as it is, None = none.
    """

    layout: Layout
    columns: dict[str, Column]
    findings: list[Finding]
    cells: pd.DataFrame
    files: dict[str, Files] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    suspects: set[str] = field(default_factory=set)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    classes: pd.Series = field(default_factory=lambda: pd.Series(dtype=str))
    suggestion: Layout | None = None

    @property
    def group(self) -> pd.Series | None:
        """Cells of the column that divides the splits."""
        return self.cells[self.layout.group] if self.layout.group else None

    @property
    def decimal(self) -> str:
        return self.layout.dialect.decimal if self.layout.dialect else "."

    def left_out(self, layout: Layout) -> list[int]:
        """Spreadsheet rows that a layout does not use: those without an image, or of a mix without any content."""
        if layout.image is not None:
            return [] if layout.without_image == "missing" else self.files["images"].unusable
        gaps = [self._empty_rows(layout, modality) for modality in layout.modalities]
        return sorted(set.intersection(*map(set, gaps))) if gaps else []

    def without(self, layout: Layout, modality: ModalityColumns) -> list[int]:
        """Spreadsheet rows that lack a modality."""
        return [] if modality.is_filled else self._empty_rows(layout, modality)

    def _empty_rows(self, layout: Layout, modality: ModalityColumns) -> list[int]:
        """Spreadsheet rows without any content of a modality."""
        if modality.file is not None:
            return self.files[modality.name].unusable
        blank = self.cells[list(modality.columns)].isin(["", *layout.missing_values]).all(axis=1)
        return [int(row) for row in blank.index[blank]]

    def describe_modalities(self) -> list[dict[str, Any]]:
        """Kind of each modality of a mix, share of the rows without it, and share of missing cells in the others."""
        layout, described = self.suggestion or self.layout, []
        for modality in layout.modalities:
            rows = self.cells.drop(index=self.without(layout, modality))
            share = 0.0
            if modality.file is not None:
                share = sum(self.files[modality.name].missing_cells.values()) / max(len(rows), 1)
            elif modality.kind == "table" and len(rows):
                share = float(rows[list(modality.columns)].isin(["", *layout.missing_values]).to_numpy().mean())
            lacking = 1 - len(rows) / len(self.cells)
            described.append(
                {"modality": modality.name, "kind": modality.kind, "missing": lacking, "missing_cells": share}
            )
        return described

    def of_level(self, level: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == level]

    def role(self, name: str) -> str | None:
        """What a column is instead of an input, None = nothing."""
        layout = self.layout
        roles: dict[str | None, str] = {column.column: column.noun for column in layout.file_columns}
        roles |= {layout.group: "group", layout.split.get("split"): "split"}
        return "label" if name in layout.labels else roles.get(name)

    def unused(self, name: str) -> str | None:
        """Why a column should be no input, None if it may be one."""
        if role := self.role(name):
            return role
        if self.shares.get(name, 0) >= GIVES_AWAY:
            return "gives the label away"
        if name in self.suspects:
            return "may follow from the label"
        column, kind = self.columns[name], self.columns[name].kind
        if column.missing > MOSTLY:
            return "mostly missing"
        if kind == "continuous" and len(column.odd) > len(column.known) / 2:
            return "not numbers alone"
        return kind if kind in NO_INPUT or kind == "text" else None

    def rejected(self) -> dict[str, str]:
        """Column -> why the suggestion does not use it."""
        used = self.suggestion.inputs if self.suggestion else []
        return {name: str(self.unused(name)) for name in self.columns if name not in used and self.role(name) is None}

    def lines(self) -> list[tuple[str, str]]:
        """Level and text of each finding, errors first; missing cells, rows of each class and a summary."""
        counts = [number_of(n, level) for level in LEVELS if (n := len(self.of_level(level)))]
        rows = f"{number_of(len(self.cells), 'row')}, {number_of(len(self.columns), 'column')}"
        summary = f"{self.layout.csv}: {rows}: {', '.join(counts) or 'nothing to remark'}"
        lines = [(finding.level, finding.line()) for level in LEVELS for finding in self.of_level(level)]
        inputs = [self.columns[name] for name in (self.suggestion or self.layout).inputs if name in self.columns]
        gaps = [f"{column.name} {column.missing:.1%}" for column in inputs if column.missing]
        lines += [("summary", f"missing cells: {', '.join(gaps)}")] if gaps else []
        for m in self.describe_modalities():
            cells = f", {m['missing_cells']:.1%} of the cells of the others" if m["missing_cells"] else ""
            lines.append(
                ("summary", f"{m['modality']} ({m['kind']}): missing in {m['missing']:.1%} of the rows{cells}")
            )
        if self.suggestion:
            kinds = ", ".join(f"{column.name} ({column.kind})" for column in inputs)
            lines.append(("summary", f"suggested inputs: {kinds}"))
        for split, classes in self.counts.items():
            lines.append(("summary", f"{split}: {', '.join(f'{name} {n:,}' for name, n in classes.items())}"))
        return [*lines, ("summary", summary)]

    def describe_columns(self) -> list[dict[str, Any]]:
        inputs = (self.suggestion or self.layout).inputs
        return [
            {
                "column": name,
                "looks": column.kind,
                "use": "input" if name in inputs else self.role(name) or "none",
                "values": int(column.known.nunique()),
                "missing": round(column.missing, 4),
                "label_information": round(self.shares[name], 3) if name in self.shares else None,
            }
            for name, column in self.columns.items()
        ]

    def json(self) -> str:
        content = {
            "csv": str(self.layout.csv),
            "rows": len(self.cells),
            "findings": [asdict(finding) for finding in self.findings],
            "columns": self.describe_columns(),
            "class_counts": self.counts,
            **({"modalities": modalities} if (modalities := self.describe_modalities()) else {}),
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    def markdown(self) -> str:
        parts = [f"# {self.layout.name}: check of the table", self.lines()[-1][1]]
        for level in LEVELS:
            if listed := self.of_level(level):
                parts += [f"## {level.capitalize()}s", "\n".join(f"- **{f.place}** {_after_place(f)}" for f in listed)]
        rows = [
            (c["column"], c["looks"], c["use"], f"{c['values']:,}", f"{c['missing']:.1%}", _percent(c))
            for c in self.describe_columns()
        ]
        head = ("column", "looks", "use", "values", "missing cells", "label's information")
        parts += ["## Columns", _table(head, rows)]
        if modalities := self.describe_modalities():
            table = [(m["modality"], m["kind"], f"{m['missing']:.1%}", f"{m['missing_cells']:.1%}") for m in modalities]
            parts += [
                "## Modalities",
                _table(("modality", "kind", "rows without it", "missing cells of others"), table),
            ]
        if self.counts:
            names = list(next(iter(self.counts.values())))
            cells = [(name, *(str(split[name]) for split in self.counts.values())) for name in names]
            parts += ["## Rows of each class", _table(("class", *self.counts), cells)]
        return "\n\n".join(parts) + "\n"


def _after_place(finding: Finding) -> str:
    return finding.line().removeprefix(f"{finding.place}: ")


def _percent(column: dict[str, Any]) -> str:
    share = column["label_information"]
    return "" if share is None else f"{max(share, 0):.0%}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)

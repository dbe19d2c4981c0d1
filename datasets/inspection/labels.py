"""Labels that are missing, misspelled, unknown or too rare."""

from __future__ import annotations

import pandas as pd

from datasets.inspection.columns import mark_findings, spelling_findings, spelling_keys
from datasets.inspection.findings import Finding, number_of, quoted, row_numbers
from datasets.inspection.report import Report

FEW = 5  # rows or groups, below which a class cannot be learned and tested


def label_findings(report: Report) -> list[Finding]:
    layout, findings = report.layout, []
    for name in layout.labels:
        cells, column = report.cells[name], report.columns[name]
        blank = cells.isin(["", *layout.missing_values])
        if len(layout.labels) > 1:
            wrong = ~blank & ~pd.to_numeric(cells, errors="coerce").isin([1, 0, -1])
            if wrong.any():
                text = "label that is none of 1, 0 and -1 (no label)"
                findings.append(Finding("error", name, text, "correct them", row_numbers(wrong)))
            continue
        blank &= ~cells.isin([*layout.leave_out, *layout.value_classes])
        if blank.any():
            text = "no label"
            fix = "enter the labels, or leave these rows out: dataset.leave_out=['']"
            findings.append(Finding("error", name, text, fix, row_numbers(blank)))
        if not layout.classes:
            findings += mark_findings(column, "warning")
            findings += spelling_findings(name, column.known, "the suggestion merges them")
            continue
        unknown = ~blank & ~cells.isin([*layout.leave_out, *layout.value_classes])
        if unknown.any():
            text = f"label of no class: {quoted(dict.fromkeys(cells[unknown]))}"
            fix = "add them to dataset.classes or dataset.leave_out"
            findings.append(Finding("error", name, text, fix, row_numbers(unknown)))
        classes = cells.map(layout.value_classes)
        for key, values in cells.groupby(spelling_keys(cells)):
            if key and classes[values.index].nunique() > 1:
                text = f"spellings of one value are in several classes: {quoted(dict.fromkeys(values))}"
                rows = row_numbers(values.index)
                findings.append(Finding("warning", name, text, "merge them in dataset.classes", rows))
    return findings


def rare_findings(target: pd.Series, group: pd.Series | None) -> list[Finding]:
    units = pd.Series(target.index, index=target.index) if group is None else group[target.index]
    sizes = units.groupby(target).nunique()
    findings = []
    for name, size in sizes[sizes < FEW].items():
        what = number_of(size, "row") if group is None else f"{number_of(size, 'value')} of '{group.name}'"
        text = f"class '{name}' has {what}: too few to learn and test it"
        rows = row_numbers(target == name)
        findings.append(Finding("warning", str(target.name), text, "leave it out: dataset.leave_out", rows))
    return findings

"""Everything that is wrong with a CSV file and its images, at once."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace

from datasets.inspection.columns import Column, describe_column, mark_findings, number_findings, spelling_findings
from datasets.inspection.dialect import read_raw
from datasets.inspection.files import file_findings, inspect_files
from datasets.inspection.findings import LEVELS, Finding, quoted, row_numbers
from datasets.inspection.labels import label_findings, rare_findings
from datasets.inspection.layout import (
    Layout,
    class_of_rows,
    guess_group,
    guess_image,
    guess_label,
    guess_split,
    target_of,
)
from datasets.inspection.leaks import (
    crossing_findings,
    divide,
    duplicate_findings,
    leak_findings,
    same_file_findings,
    text_findings,
)
from datasets.inspection.report import NO_INPUT, Report
from datasets.inspection.suggestion import suggest
from datasets.readers.csv_files import Dialect
from utils.errors import UserError


def check_configured(layout: Layout) -> Report:
    """Check a table with the settings of a configuration.

    Raises:
        UserError: there is no table.
    """
    report = _read(layout, layout.dialect)
    files = [column.column for column in layout.file_columns]
    needed = [*files, *layout.labels, *layout.inputs, layout.group, layout.split.get("split")]
    if absent := _absent(report, [name for name in needed if name]):
        return _sorted(report, absent)
    for name in layout.inputs:
        report.findings += _input_findings(report, report.columns[name])
    _check_rows(report, layout.inputs)
    _check_division(report, layout)
    return _sorted(report)


def check_unknown(layout: Layout) -> Report:
    """Check a table of which little is known, and suggest settings for it.

    Args:
        layout: an empty ``image``, ``labels`` or ``group`` is guessed; inputs, classes and dialect always are.

    Raises:
        UserError: there is no table.
    """
    report = _read(layout, None)
    asked = [layout.image, *layout.labels, layout.group]
    if absent := _absent(report, [name for name in asked if name]):
        return _sorted(report, absent)
    layout = report.layout = _completed(report)
    problems = []
    if not layout.labels:
        text = f"no column is named like a label; the table has {quoted(report.columns, 20)}"
        problems.append(Finding("error", "file", text, "name it: check.label=COLUMN"))
    if not layout.file_columns:
        text = f"no column names files in {layout.images}"
        problems.append(Finding("error", "images", text, "give their folder: check.images=FOLDER"))
    for name, column in report.columns.items():
        if report.role(name) is None:
            report.findings += _column_findings(column, report.decimal)
    if not layout.labels:
        return _sorted(report, problems)
    _check_rows(report, [name for name in report.columns if report.role(name) is None])
    if not layout.file_columns:
        return _sorted(report, problems)
    try:
        report.suggestion = suggest(report)
    except UserError as error:
        text, _, fix = str(error).rpartition(": ")
        problems.append(Finding("error", "file", f"no configuration can be suggested: {text}", fix))
    else:
        _check_division(report, report.suggestion)
    return _sorted(report, problems)


# ----------------------------------------------------------------------------------------------------- parts of a check


def _read(layout: Layout, dialect: Dialect | None) -> Report:
    table = read_raw(layout.csv, dialect)
    columns = {
        str(name): describe_column(
            table.cells[name], table.dialect.decimal, layout.missing_values, name in layout.continuous
        )
        for name in table.cells
    }
    return Report(replace(layout, dialect=table.dialect), columns, list(table.findings), table.cells)


def _sorted(report: Report, more: Sequence[Finding] = ()) -> Report:
    report.findings = sorted([*more, *report.findings], key=lambda finding: LEVELS.index(finding.level))
    return report


def _absent(report: Report, needed: Sequence[str]) -> list[Finding]:
    findings = []
    for name in dict.fromkeys(needed):
        if name not in report.columns:
            near = difflib.get_close_matches(name, list(report.columns), 1)
            fix = f"did you mean '{near[0]}'?" if near else f"it has {quoted(report.columns, 20)}"
            findings.append(Finding("error", name, "the table has no such column", fix))
    return findings


def _completed(report: Report) -> Layout:
    """The layout with what the table tells of it."""
    layout, columns = report.layout, report.columns
    guessed = None if layout.labels else guess_label(list(columns.values()))
    labels = layout.labels or ((guessed,) if guessed else ())
    image, suffix = layout.image, layout.image_suffix
    if image is None or not suffix:
        cells = report.cells if image is None else report.cells[[image]]
        named, suffix = guess_image(cells, layout.images)
        image = image or named
    group = layout.group or guess_group(list(columns.values()), [*labels, image])
    split = guess_split(list(columns.values()))
    layout = replace(layout, labels=labels, group=group, split=split)
    if report.layout.image is None:
        from datasets.inspection.mixture import guess_modalities  # imports torch

        modalities = guess_modalities(report.cells.drop(columns=[*labels]), layout.images)
        if len(modalities) > 1 or any(modality.kind != "image" for modality in modalities):
            return replace(layout, modalities=modalities)
    return replace(layout, image=image, image_suffix=suffix)


def _input_findings(report: Report, column: Column) -> list[Finding]:
    """Remarks on an input of a configuration."""
    layout, name = report.layout, column.name
    option, findings = layout.option(name), _missing_findings(column)
    if column.kind in NO_INPUT and (name not in layout.text or column.kind in ("empty", "constant")):
        level = "error" if column.kind == "empty" else "warning"
        findings.append(Finding(level, name, f"is an input, and {NO_INPUT[column.kind]}", "take it out of the inputs"))
    if name in layout.continuous:
        findings += number_findings(column, report.decimal, "error") + mark_findings(column, "error")
    if name not in layout.categorical:
        return findings
    levels = layout.categorical[name]
    if levels is None:
        fix = f"merge them: {option}.categorical.{name}={{level: [value, value]}}"
        findings += spelling_findings(name, column.known, fix) + mark_findings(column, "note")
        if column.kind == "continuous":
            text = f"is categorical, and holds {column.known.nunique()} different numbers"
            findings.append(Finding("warning", name, text, f"move it to {option}.continuous"))
        return findings
    values = report.cells[name]
    unknown = ~values.isin(["", *layout.missing_values, *(v for listed in levels.values() for v in listed)])
    if unknown.any():
        others = quoted(dict.fromkeys(values[unknown]))
        text = f"none of the {len(levels)} levels: {others}"
        fix = f"list them in {option}.categorical.{name}"
        if name in layout.open_columns:
            findings.append(Finding("warning", name, text, f"they count as missing: {fix}", row_numbers(unknown)))
        else:
            findings.append(Finding("error", name, text, fix, row_numbers(unknown)))
    return findings


def _column_findings(column: Column, decimal: str) -> list[Finding]:
    """Remarks on a column of a table without a configuration."""
    findings = _missing_findings(column) + mark_findings(column, "note")
    if column.kind in NO_INPUT:
        findings.append(Finding("note", column.name, f"{NO_INPUT[column.kind]}: no input"))
    elif column.kind == "categorical":
        findings += spelling_findings(column.name, column.known, "the suggestion merges them")
    return findings + number_findings(column, decimal, "error")


def _missing_findings(column: Column) -> list[Finding]:
    if 0.5 < column.missing < 1:
        return [Finding("note", column.name, f"{column.missing:.0%} of its cells are missing")]
    return []


def _check_rows(report: Report, inputs: Sequence[str]) -> None:
    """Labels, groups, images, leaks and duplicates; adds to the report."""
    layout, cells, group, findings = report.layout, report.cells, report.group, report.findings
    findings += label_findings(report)
    columns_of_files = layout.file_columns
    for column in columns_of_files:
        report.files[column.place] = inspect_files(cells[column.column], column, layout.missing_values)
        same_folder = [other for other in columns_of_files if other.folder == column.folder]
        named = {f"{name}{other.suffix}" for other in same_folder for name in cells[other.column]}
        is_first = same_folder[0] == column  # files without a row are named once
        findings += file_findings(report.files[column.place], cells[column.column], column, named if is_first else None)
    if group is not None:
        blank = group.isin(["", *layout.missing_values])
        if blank.any():
            text = "no value, and the splits are divided by this column"
            findings.append(Finding("error", str(group.name), text, "complete it", row_numbers(blank)))
    report.classes = class_of_rows(layout, cells)
    is_text = {name: name in layout.text or report.columns[name].kind == "text" for name in inputs}
    texts = [report.columns[name] for name in inputs if is_text[name]]
    columns = [report.columns[name] for name in inputs if not is_text[name]]
    labels = report.classes
    if len(layout.labels) == 1:
        leaks, report.shares, report.suspects = leak_findings(columns, cells, labels, report.decimal)
        findings += leaks + text_findings(texts, labels, layout) + rare_findings(labels, group)
    else:
        for label in layout.labels:
            known = cells[label][cells[label].isin(["0", "1"])]
            leaks, shares, suspects = leak_findings(columns, cells, known, report.decimal)
            report.suspects |= suspects
            findings += [replace(leak, text=f"{leak.text} (label '{label}')") for leak in leaks]
            report.shares |= {name: max(share, report.shares.get(name, 0)) for name, share in shares.items()}
        labels = cells[list(layout.labels)].agg("|".join, axis=1)
    identifiers = [name for name, column in report.columns.items() if column.kind == "identifier"]
    file_names = [column.column for column in columns_of_files]
    content = cells.drop(columns=[name for name in identifiers if name not in file_names] if file_names else [])
    findings += duplicate_findings(content)
    for column in columns_of_files:
        findings += same_file_findings(column, report.files[column.place].digests, content, labels, group)


def _check_division(report: Report, layout: Layout) -> None:
    """Divide the rows that a layout uses; adds to the report."""
    cells, column = report.cells, layout.split.get("split")
    target = target_of(layout, class_of_rows(layout, cells), cells, report.left_out(layout))
    group = cells[layout.group] if layout.group else None
    division = divide(target, group, cells[column] if column else None, layout.split)
    report.counts = division.counts
    report.findings += division.findings
    digests = [(files, report.files[files.place].digests) for files in layout.file_columns]
    report.findings += crossing_findings(division.splits, digests, group if column else None)

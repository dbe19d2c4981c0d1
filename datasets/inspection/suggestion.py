"""A configuration that runs with a table as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from datasets.inspection.columns import Column, merged_levels
from datasets.inspection.labels import FEW
from datasets.inspection.layout import Layout, ModalityColumns, class_of_rows, target_of
from datasets.inspection.leaks import divide
from datasets.inspection.report import Report
from datasets.readers.csv_files import Dialect
from utils.errors import UserError

FRACTIONS = ((0.7, 0.1, 0.2), (0.6, 0.2, 0.2), (0.5, 0.2, 0.3), (0.4, 0.3, 0.3))  # the first is the default
SMALL = 1500  # rows, of which about 1,000 train; fewer are learned with the settings of parts/small.yaml
LISTED_LEVELS = 30  # a column with more takes the values of the training split


def suggest(report: Report) -> Layout:
    """Settings under which the table is read, divided and learned from without a change.

    Cells that are no numbers count as missing; rows without a label or a readable image, and classes too rare for every
    split, are left out.
    """
    layout, columns = report.layout, report.columns
    if layout.image is not None and len(report.files["images"].unusable) == len(report.cells):
        raise UserError("no row has an image that can be read: give the folder of the images")
    labels = [columns[name] for name in layout.labels]
    _check_labels(report, labels)
    usable = [name for name in columns if report.unused(name) is None]
    categorical = [name for name in usable if columns[name].kind == "categorical"]
    continuous = [name for name in usable if columns[name].kind == "continuous"]
    has_table = bool(categorical or continuous)
    is_mixture = layout.image is None
    text = [] if has_table and not is_mixture else [name for name in columns if report.unused(name) == "text"]
    if not (has_table or text or is_mixture):
        raise UserError("no column can be an input: add one, or correct the cells")
    unreadable = [] if is_mixture else report.cells.loc[list(report.files["images"].unreadable), layout.image]
    used = [columns[name] for name in (*categorical, *continuous, *text)]
    # Among several labels, a cell without a value says that this label is not known.
    marks = [value for column in (*used, *(labels if len(labels) > 1 else ())) for value in column.marks]
    odd = [cell for column in used for cell in column.odd.values()]
    group = layout.group
    if group and report.cells[group].isin(["", *marks]).any():
        group = None
    suggestion = replace(
        layout,
        categorical={name: _levels(columns[name]) for name in categorical},
        continuous=tuple(continuous),
        text=tuple(text),
        missing_values=tuple(dict.fromkeys([*layout.missing_values, *marks, *odd, *unreadable])),
        without_image="refuse" if is_mixture or not report.files["images"].unusable else "leave_out",
        without_text="missing" if text else layout.without_text,
        group=group,
        is_small=len(report.cells) < SMALL,
    )
    if group is None and not is_mixture and "split" not in layout.split:
        suggestion = replace(suggestion, group=_group_of_repeated_images(report, suggestion))
    if is_mixture:
        suggestion = replace(suggestion, modalities=_modalities(report, suggestion))
    if len(labels) > 1:
        return _divisible_labels(report, suggestion)
    blank = report.cells[labels[0].name] == ""
    left_out = (*([""] if blank.any() else []), *labels[0].marks)
    return _divisible(report, replace(suggestion, classes=merged_levels(labels[0].known), leave_out=left_out))


def _group_of_repeated_images(report: Report, layout: Layout) -> str | None:
    """The column that keeps the rows of one image in one split; None without repeated images or such a column."""
    names = report.cells[layout.image]
    is_repeated = names.duplicated(keep=False) & (names != "")
    kinds = {name: column.kind for name, column in report.columns.items() if name != layout.image}
    named = [name for name, kind in kinds.items() if kind in ("identifier", "group")]
    for name in [*named, str(layout.image)] if is_repeated.any() else []:
        values = report.cells[name]
        is_filled = not values.isin(["", *layout.missing_values]).any()
        if is_filled and values[is_repeated].groupby(names[is_repeated]).nunique().max() == 1:
            return name
    return None


def _modalities(report: Report, layout: Layout) -> tuple[ModalityColumns, ...]:
    """The files, the table and the text of a mix; without files that cannot be read in any row."""
    modalities = []
    for modality in layout.modalities:
        files = report.files[modality.name]
        if len(files.unusable) < len(report.cells):
            unusable = {"unreadable": "missing"} if files.missing or files.unreadable else {}
            modalities.append(replace(modality, options={**modality.options, **unusable}))
    names = {modality.name for modality in modalities}
    table = (*layout.categorical, *layout.continuous)
    for name, kind, columns in (("table", "table", table), ("text", "text", layout.text)):
        if columns:
            modalities.append(ModalityColumns(f"{name}_columns" if name in names else name, kind, columns))
    return tuple(modalities)


def _check_labels(report: Report, labels: Sequence[Column]) -> None:
    """
    Raises:
        UserError: a label of which there is nothing to learn, or one of several that is not written as 1, 0 and -1.
    """
    if len(labels) == 1 and len(set(report.classes)) < 2:
        raise UserError("all labels are the same: name another column, check.label")
    for column in labels if len(labels) > 1 else ():
        values = set(pd.to_numeric(column.known, errors="coerce"))
        if not values <= {1, 0, -1}:
            raise UserError(f"column '{column.name}' has labels other than 1, 0 and -1 (no label): correct them")
        if not {1, 0} <= values:
            raise UserError(f"column '{column.name}' has not both 1 and 0: take it out of check.label")


def _levels(column: Column) -> dict[str, list[str]] | None:
    levels = merged_levels(column.known)
    return levels if len(levels) <= LISTED_LEVELS else None


def _divisible(report: Report, layout: Layout) -> Layout:
    """The layout with every class in every split: larger validation and test splits, and no class too rare for that.

    Raises:
        UserError: there are too few rows.
    """
    if "split" in layout.split:
        return layout
    cells, group = report.cells, report.cells[layout.group] if layout.group else None
    while True:
        target = target_of(layout, class_of_rows(layout, cells), cells, report.left_out(layout))
        units = target.rows.to_series() if group is None else group[target.rows]
        sizes = [units[target.codes == code].nunique() for code in range(len(target.names))]
        is_last = len(layout.classes) <= 2
        for fractions in FRACTIONS if min(sizes) >= FEW or is_last else ():
            divided = layout if fractions == FRACTIONS[0] else replace(layout, split={"fractions": fractions})
            if divide(target, group, None, divided.split).is_complete:
                return divided
        if is_last:
            raise UserError("there are too few rows for three splits: add some")
        rarest = target.names[int(np.argmin(sizes))]
        classes = {name: values for name, values in layout.classes.items() if name != rarest}
        layout = replace(layout, classes=classes, leave_out=(*layout.leave_out, *layout.classes[rarest]))


def _divisible_labels(report: Report, layout: Layout) -> Layout:
    """The layout with positive rows of every label in every split where possible, and else in training at least;
    without the labels of which that is not so.

    Raises:
        UserError: fewer than two labels are left.
    """
    if "split" in layout.split:
        return layout
    cells, group = report.cells, report.cells[layout.group] if layout.group else None
    while True:
        target = target_of(layout, class_of_rows(layout, cells), cells, report.left_out(layout))
        layouts = [layout, *(replace(layout, split={"fractions": fractions}) for fractions in FRACTIONS[1:])]
        divisions = [divide(target, group, None, divided.split) for divided in layouts]
        complete = [divided for divided, division in zip(layouts, divisions) if division.is_complete]
        if complete:
            return complete[0]
        positive = divisions[0].counts.get("train", {})
        labels = tuple(name for name in layout.labels if positive.get(name))
        if labels == layout.labels:
            return layout
        if len(labels) < 2:
            raise UserError("there are too few rows for three splits: add some")
        layout = replace(layout, labels=labels)


def yaml_of(layout: Layout, unused: Mapping[str, str], data_folder: Path | None = None) -> str:
    """A configuration file for ``configs/dataset``.

    Args:
        unused: column -> why it is no input.
        data_folder: a path below it is written with ``${paths.data}``.
    """

    def path(value: Path) -> str:
        if data_folder and value.resolve().is_relative_to(data_folder.resolve()):
            return f"${{paths.data}}/{value.resolve().relative_to(data_folder.resolve())}"
        return str(value)

    lines = [
        f"# {layout.name}: suggested by stage check. Read it, and correct what it guessed.",
        "defaults:",
        *(f"  - {part}" for part in _presets(layout)),
        "  - _self_",
        f"name: {_flow(layout.name)}",
        f"csv: {_flow(path(layout.csv))}",
    ]
    usual = asdict(Dialect())
    lines += [f"{k}: {_flow(v)}" for k, v in asdict(layout.dialect or Dialect()).items() if v != usual[k]]
    lines.append(f"images: {_flow(path(layout.images))}")
    if layout.image is not None:
        lines.append(f"image: {_flow(layout.image)}")
    if layout.image_suffix:
        lines.append(f"image_suffix: {_flow(layout.image_suffix)}")
    if layout.image_bits:
        lines.append(f"image_bits: {layout.image_bits}")
    if layout.without_image != "refuse":
        lines.append(f"without_image: {layout.without_image} # rows whose image is missing or cannot be read")
    if len(layout.labels) > 1:
        lines.append(f"label: {_flow(list(layout.labels))} # 1, 0, and -1 or nothing where it is not known")
    else:
        lines += [f"label: {_flow(layout.labels[0])}", f"classes: {_flow(_short(layout.classes))}"]
    if layout.leave_out:
        lines.append(f"leave_out: {_flow(list(layout.leave_out))} # labels whose rows are not used")
    if layout.modalities:
        if layout.is_small:
            lines.append("encoder_set: small # default for more than about 1,000 training rows")
        lines.append("modalities:")
        for modality in layout.modalities:
            lines.append(f"  {modality.name}:")
            options = [f"{key}: {_flow(value)}" for key, value in modality.options.items()]
            if modality.kind == "table":
                options = ["kind: table", *_table_lines(layout)]
            if modality.kind == "text":
                options = ["kind: text", f"columns: {_flow(list(layout.text))}"]
            lines += [f"    {line}" for line in options]
    else:
        if layout.text:
            lines.append(f"text: {_flow(list(layout.text))}")
            lines.append(f"without_text: {layout.without_text} # rows whose text is empty")
        lines += _table_lines(layout)
    if layout.missing_values:
        names = "" if layout.modalities else ", and the names of images that cannot be read"
        lines.append(f"# Cells that count as missing{names}.")
        lines.append(f"missing_values: {_flow(list(layout.missing_values))}")
    if layout.group:
        lines.append(f"group: {_flow(layout.group)} # its rows stay in one split")
    if column := layout.split.get("split"):
        lines += [f"split: {_flow(column)}", f"split_values: {_flow(layout.split['split_values'])}"]
    if fractions := layout.split.get("fractions"):
        lines.append(f"fractions: {list(fractions)} # every class is in every split")
    if unused:
        lines.append(f"# Not used: {', '.join(f'{name} ({why})' for name, why in unused.items())}")
    return "\n".join(lines) + "\n"


def _presets(layout: Layout) -> list[str]:
    """What the configuration starts from."""
    if layout.modalities:
        return ["FromCSV", *["parts/small@_here_"] * layout.is_small]
    if layout.text:
        return ["ImageText"]
    small = "SmallImageTable # up to about 1,000 training rows; ImageTable for more"
    return [small if layout.is_small else "ImageTable"]


def _table_lines(layout: Layout) -> list[str]:
    """Options of the table."""
    lines = []
    if layout.categorical:
        lines.append("categorical: # level: [its spellings]")
        lines += [f"  {_flow(name)}: {_flow(_short(levels))}" for name, levels in layout.categorical.items()]
    if None in layout.categorical.values():
        lines.append("unseen: missing # values that no training row has")
    if layout.continuous:
        lines.append(f"continuous: {_flow(list(layout.continuous))}")
    return lines


def _short(levels: Mapping[str, list[str]] | None) -> Any:
    """A list of levels, or a mapping where one has another spelling than its name."""
    if levels is None or any(values != [name] for name, values in levels.items()):
        return None if levels is None else dict(levels)
    return list(levels)


def _flow(value: Any) -> str:
    """A value on one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")

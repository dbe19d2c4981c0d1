"""What the configuration of a table says of it, and a first guess where there is none."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from datasets.inspection.columns import MAX_LEVELS, SPLIT_OF, Column, spelling_keys
from datasets.readers.csv_files import Dialect
from datasets.readers.pictures import open_picture
from datasets.readers.spellings import as_texts, spellings

LABEL_NAME = re.compile(r"diagnos|label|class|target|outcome|finding|^dx$|^y$", re.IGNORECASE)
IMAGE_NAME = re.compile(r"image|img|photo|foto|picture|file|bild", re.IGNORECASE)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".npy")


@dataclass(frozen=True)
class FileColumn:
    """A column whose cells name files.

    Attributes:
        place: of findings: ``images``, or the name of a modality.
        column: of the table.
        root, folder: of all files, and of those of this column, below it.
        suffix: what to append to the names.
        noun, nouns: of a file, and of several.
        suffixes: of files of this kind.
        options: ``empty``, ``absent`` and ``unreadable`` -> key of the configuration, and ``refuse`` if such rows are
            refused.
        read: reads a file as stage prepare does, and returns the share of its numbers that are missing.
    """

    place: str
    column: str
    root: Path
    folder: Path
    suffix: str
    noun: str
    nouns: str
    suffixes: tuple[str, ...]
    options: Mapping[str, tuple[str, str]]
    read: Callable[[Path], float]


@dataclass(frozen=True)
class ModalityColumns:
    """A modality of :class:`datasets.from_csv.FromCSV` and its columns.

    Attributes:
        file: of a modality whose content is in files.
        is_filled: missing cells count as observed.
        options: that a suggestion has for a modality in files.
    """

    name: str
    kind: str
    columns: tuple[str, ...]
    file: FileColumn | None = None
    is_filled: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """The settings of a data set from one CSV file, as in ``configs/dataset/ImageTable.yaml``.

    Attributes:
        classes: class -> values of the label column; empty = unknown, or several labels.
        categorical: column -> level -> its spellings, or None = the values of the training split.
        open_columns: categorical columns of which other values than the levels count as missing.
        dialect: None = to be found out.
        split: keys of the configuration that say how rows are divided.
        modalities: of any mix (``configs/dataset/FromCSV.yaml``), then without ``image``; empty = an image, and a table
            or a text.
        is_small: a suggestion has the settings for few training rows.
    """

    name: str
    csv: Path
    images: Path
    image: str | None
    labels: tuple[str, ...]
    image_suffix: str = ""
    classes: dict[str, list[str]] = field(default_factory=dict)
    leave_out: tuple[str, ...] = ()
    min_groups: int = 0
    rare_class: str | None = None
    categorical: dict[str, dict[str, list[str]] | None] = field(default_factory=dict)
    open_columns: tuple[str, ...] = ()
    continuous: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    mask_words: tuple[str, ...] = ()
    missing_values: tuple[str, ...] = ()
    without_image: str = "refuse"
    without_text: str = "leave_out"
    image_bits: int | None = None
    channels: int = 3
    group: str | None = None
    dialect: Dialect | None = None
    split: dict[str, Any] = field(default_factory=dict)
    modalities: tuple[ModalityColumns, ...] = ()
    is_small: bool = False

    @property
    def file_columns(self) -> list[FileColumn]:
        """Columns that name files."""
        if self.image is None:
            return [m.file for m in self.modalities if m.file is not None]
        option = ("dataset.without_image", self.without_image)

        def read(path: Path) -> float:
            if path.suffix != ".npy":
                open_picture(path, self.channels, self.image_bits).load()
            return 0.0

        options = {"empty": option, "absent": option, "unreadable": ("", "refuse")}
        folder, suffix = self.images, self.image_suffix
        return [
            FileColumn("images", self.image, folder, folder, suffix, "image", "images", IMAGE_SUFFIXES, options, read)
        ]

    def option(self, column: str) -> str:
        """Key of the configuration below which the options of an input column are."""
        names = [m.name for m in self.modalities if m.file is None and column in m.columns]
        return f"dataset.modalities.{names[0]}" if names else "dataset"

    @property
    def inputs(self) -> list[str]:
        return [*self.categorical, *self.continuous, *self.text]

    @property
    def value_classes(self) -> dict[str, str]:
        """Value of the label column -> class."""
        return {value: name for name, values in self.classes.items() for value in values}


def layout_of(settings: Mapping[str, Any]) -> Layout:
    """The layout of a data set's configuration, ``cfg.dataset`` as plain values."""
    label, text = settings["label"], settings.get("text") or ()
    csv = Path(str(settings["csv"]))
    categorical = settings.get("categorical") or {}
    return Layout(
        name=str(settings["name"]),
        csv=csv,
        images=Path(str(settings["images"])) if settings.get("images") else csv.parent,
        image=settings["image"],
        labels=(label,) if isinstance(label, str) else tuple(map(str, label)),
        image_suffix=settings.get("image_suffix") or "",
        classes=spellings(settings.get("classes") or [], "classes", "class") if isinstance(label, str) else {},
        leave_out=tuple(as_texts(settings.get("leave_out") or ())),
        min_groups=settings.get("min_groups") or 0,
        rare_class=settings.get("rare_class"),
        categorical={
            str(name): None if levels is None else spellings(levels, f"categorical.{name}", "level")
            for name, levels in categorical.items()
        },
        open_columns=tuple(map(str, categorical)) if settings.get("unseen") == "missing" else (),
        continuous=tuple(settings.get("continuous") or ()),
        text=(text,) if isinstance(text, str) else tuple(text),
        mask_words=tuple(map(str, settings.get("mask_words") or ())),
        missing_values=tuple(as_texts(settings.get("missing_values") or ())),
        without_image=settings.get("without_image") or "refuse",
        without_text=settings.get("without_text") or "leave_out",
        image_bits=settings.get("image_bits"),
        channels=settings.get("channels") or 3,
        group=settings.get("group"),
        dialect=Dialect.of(
            separator=settings.get("separator"), decimal=settings.get("decimal"), encoding=settings.get("encoding")
        ),
        split={key: settings[key] for key in SPLIT_KEYS if settings.get(key) is not None},
    )


# fmt: off
SPLIT_KEYS = (
    "split", "split_values", "fractions", "stratify", "split_seed", "fold", "folds", "fold_validation", "fold_seed",
)
# fmt: on


@dataclass(frozen=True)
class Target:
    """Labels of the rows that are used.

    Attributes:
        rows: (N,) spreadsheet rows.
        codes: (N,) class numbers, or (N, C) with 1 for the labels that a row has.
        names: C names.
    """

    rows: pd.Index
    codes: np.ndarray
    names: list[str]

    def count(self, part: np.ndarray) -> list[int]:
        """Rows of each class among the given positions."""
        codes = self.codes[part]
        return ((codes == 1).sum(0) if codes.ndim == 2 else np.bincount(codes, minlength=len(self.names))).tolist()


def target_of(layout: Layout, classes: pd.Series, cells: pd.DataFrame, left_out: Collection[int] = ()) -> Target:
    """Labels under the class numbers of the configuration.

    Args:
        classes: of :func:`class_of_rows`.
        left_out: spreadsheet rows that are not used.
    """
    classes = classes[~classes.index.isin(list(left_out))]
    if len(layout.labels) > 1:
        values = cells.loc[classes.index, list(layout.labels)].apply(pd.to_numeric, errors="coerce")
        return Target(classes.index, values.fillna(-1).to_numpy(np.float32), list(layout.labels))
    known = set(classes)
    names = [*layout.classes, *([layout.rare_class] if layout.rare_class else [])] or sorted(known)
    if layout.min_groups:
        names = [name for name in names if name in known]
    codes = classes.map({name: i for i, name in enumerate(names)})
    return Target(classes.index, codes.to_numpy(np.int64), [str(name) for name in names])


def class_of_rows(layout: Layout, cells: pd.DataFrame) -> pd.Series:
    """Class of the rows that have one, as :class:`datasets.readers.csv_rows.CsvRows` assigns it."""
    blank = ["", *layout.missing_values]
    if len(layout.labels) != 1:
        known = ~(cells[list(layout.labels)].isin([*blank, "-1"])).all(axis=1)
        return pd.Series("", index=cells.index[known])
    label = cells[layout.labels[0]]
    if layout.classes:
        classes = label.map(layout.value_classes)[~label.isin(layout.leave_out)].dropna()
    else:
        classes = _first_spellings(label[~label.isin(blank)])
    if layout.min_groups:
        units = cells.loc[classes.index, layout.group] if layout.group else classes.index.to_series()
        rare = classes.map(units.groupby(classes).nunique()) < layout.min_groups
        classes = classes[~rare] if layout.rare_class is None else classes.where(~rare, layout.rare_class)
    return classes


def _first_spellings(labels: pd.Series) -> pd.Series:
    """The commonest spelling in place of each spelling."""
    keys = spelling_keys(labels)
    return keys.map(labels.groupby(keys).agg(lambda values: values.value_counts().index[0]))


def guess_label(columns: Sequence[Column]) -> str | None:
    """The column that is named like a label and holds few values."""
    for column in columns:
        distinct = column.known.nunique()
        if LABEL_NAME.search(column.name) and distinct <= min(MAX_LEVELS, max(2, len(column.known) / 2)):
            return column.name
    return None


def guess_image(cells: pd.DataFrame, images: Path) -> tuple[str | None, str]:
    """The column whose cells name the most files in the folder, and what is to be appended to them.

    Without any such file, the first column that seems to hold names of images.
    """
    best: tuple[int, str | None, str] = (0, None, "")
    files = {path.relative_to(images).as_posix() for path in images.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES}
    common = [suffix for suffix, _ in Counter(Path(name).suffix for name in files).most_common()]
    for name in cells:
        for suffix in ("", *common):
            count = int((cells[name] + suffix).isin(files).sum())
            if count > best[0]:
                best = (count, str(name), suffix)
    if best[0]:
        return best[1], best[2]
    with_suffix = [name for name in cells if cells[name].str.lower().str.endswith(IMAGE_SUFFIXES).mean() > 0.5]
    written = [str(name) for name in (*with_suffix, *filter(IMAGE_NAME.search, cells))]
    return (written[0], "") if written else (None, "")


def guess_split(columns: Sequence[Column]) -> dict[str, Any]:
    """Settings of a column that names training, validation and test rows; none without such a column."""
    for column in columns:
        values: dict[str, list[str]] = {}
        for value in column.known.unique() if column.kind == "split" and not column.missing else ():
            values.setdefault(SPLIT_OF[value.casefold()], []).append(value)
        if len(values) == 3:
            return {"split": column.name, "split_values": {split: values[split] for split in ("train", "val", "test")}}
    return {}


def guess_group(columns: Sequence[Column], used: Sequence[str | None]) -> str | None:
    """The column whose values stand in several rows and name what the rows belong to; the coarsest of them."""
    fitting = [c for c in columns if c.kind == "group" and c.name not in used and c.missing < 0.2]
    named = [c for c in fitting if re.search(r"patient|subject|person|proband|participant", c.name, re.IGNORECASE)]
    return min(named or fitting, key=lambda column: column.known.nunique()).name if fitting else None

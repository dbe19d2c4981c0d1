"""One modality of a data set that is composed of any mix: options, columns, packing, batches and new rows."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from datasets.batch import Modality
from datasets.content import Content
from datasets.loader import Choose, Transform
from datasets.readers.csv_rows import Rows
from datasets.readers.csv_table import CsvTable
from datasets.row_encoder import RowEncoder
from utils.errors import UserError

About = Mapping[str, Any]


@dataclass
class Packed:
    """One modality of the N rows of all splits.

    Attributes:
        arrays: suffix of the array's name -> (N, ...): ``""`` content, ``_missing``, ``.counts``.
        files: suffix -> ``.npy`` file (P, ...) of different items, in place of arrays that are too large for memory.
        items: (N,) number of the item of each row, with ``files``.
        of_splits: split -> ``.npy`` file with the content of its rows, in place of items.
        absent: (N,) bool, rows without this modality.
        left_out: (N,) bool, rows that are not used because they lack this modality; None = no such row.
        about: plain values that give the content its meaning, for ``meta.json``.
        counts: plain values about the rows, for ``meta.json``.
        changes: what READING_RULES 1 read otherwise.
        temporary: files that are not needed once the arrays are written.
    """

    arrays: dict[str, np.ndarray]
    absent: np.ndarray
    about: dict[str, Any]
    files: dict[str, Path] = field(default_factory=dict)
    items: np.ndarray | None = None
    of_splits: dict[str, Path] = field(default_factory=dict)
    left_out: np.ndarray | None = None
    counts: dict[str, Any] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)
    temporary: list[Path] = field(default_factory=list)


class Part(ABC):
    """A modality of a data set that is composed of parts; subclasses take their options as keyword arguments.

    Class attributes:
        kind: name in the configuration.
        read_time: options that apply when batches are read, not when rows are packed.

    Args:
        name: of the modality.
        keys: option -> its key below ``dataset``, of a preset, where it has another name than the option; None = the
            options are below ``dataset.modalities.<name>``.

    Raises:
        UserError: all problems of the options, one line each.
    """

    kind: ClassVar[str]
    modality_kind: ClassVar[str]
    read_time: ClassVar[tuple[str, ...]] = ()

    def __init__(self, name: str, keys: Mapping[str, str] | None = None) -> None:
        self.name, self.keys = name, keys

    @property
    def prefix(self) -> str:
        """Where the options of this part are in the configuration, below ``dataset``."""
        return f"modalities.{self.name}." if self.keys is None else ""

    def key(self, option: str) -> str:
        """Key of an option in the configuration."""
        return f"dataset.{self.prefix}{(self.keys or {}).get(option, option)}"

    def refuse(self, problems: Sequence[str]) -> None:
        """
        Args:
            problems: ``option=value: what is wrong`` of this part.

        Raises:
            UserError: there are problems.
        """
        if problems:
            raise UserError("\n".join(re.sub(r"^\w+", lambda m: self.key(m.group()), p) for p in problems))

    @property
    @abstractmethod
    def columns(self) -> list[str]:
        """Columns of the CSV file that it reads."""

    @property
    def file_column(self) -> str | None:
        """The column that names files, if there is one."""
        return None

    @abstractmethod
    def settings(self) -> Any:
        """Plain values that the packed content depends on, for a signature."""

    def unusable(self, table: CsvTable, folder: Path) -> np.ndarray:
        """Rows to leave out before the splits are drawn, (N,) bool.

        Args:
            folder: that the names of files start from.

        Raises:
            UserError: rows are to be refused.
        """
        return np.zeros(len(table), dtype=bool)

    @abstractmethod
    def load(self, rows: Rows, folder: Path) -> Any:
        """The loaded form of the rows, see :class:`Content`; whatever is fitted is fitted on the training rows.

        Args:
            folder: that the names of files start from.

        Raises:
            UserError: everything in the rows that does not fit.
        """

    @abstractmethod
    def pack(self, content: Content, scratch: Path, shared: Path | None = None) -> Packed:
        """Pack the rows of all splits.

        Args:
            scratch: folder for unfinished work.
            shared: beginning of the path of a folder for decoded files that stores of other folds use, too; None = they
                are for this store only.

        Raises:
            UserError: everything in the rows that does not fit.
        """

    @abstractmethod
    def modality(self, about: About) -> Modality:
        """The modality of packed content."""

    @abstractmethod
    def encode(self, encoder: RowEncoder, folder: Path, about: About) -> dict[str, np.ndarray]:
        """New rows in the form of :class:`datasets.new_rows.NewRows`."""

    def input_settings(self, about: About) -> dict[str, Any]:
        """See :meth:`datasets.base.MultimodalDataModule.input_settings`."""
        return {}

    def transform(self, about: About, train: bool) -> Transform | None:
        """Transform of the stored content in gathered batches."""
        return None

    def choose(self) -> Choose | None:
        """Function that chooses the frames of multi-frame items."""
        return None

    def pixels(self, images: Tensor, about: About) -> Tensor:
        """Convert pictures of a batch to pixel values in [0, 1]."""
        return self.modality(about).scale.read(images).clamp(0, 1)


def one_of(key: str, value: Any, known: Sequence[str]) -> list[str]:
    """A problem, unless an option has one of the ``known`` values."""
    return [] if value in known else [f"{key}={value}: must be {', '.join(known[:-1])} or {known[-1]}"]


def positive(key: str, value: Any) -> list[str]:
    """A problem, unless an option is a whole number of 1 or more."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return [] if is_whole and value >= 1 else [f"{key}={value}: must be a whole number of 1 or more"]

"""Base of the modalities whose content is one file per row: decoded once, absent in rows without a file."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path, PurePath
from typing import Any, ClassVar

import numpy as np

from datasets.content import Content
from datasets.modality_parts.base import About, Packed, Part, one_of
from datasets.readers.csv_rows import Rows, warn_of_crossing_files
from datasets.readers.csv_table import CsvTable
from datasets.readers.images import Bad, decode_rows, file_stat
from datasets.row_encoder import RowEncoder
from datasets.source import sha256
from utils.errors import UserError, first_line
from utils.files import alone

log = logging.getLogger(__name__)

Spec = Mapping[str, tuple[tuple[int, ...], Any]]


class FilePart(Part):
    """A modality whose content is in files that a column names.

    Args:
        column: with the names of the files.
        folder: below the folder of the data set's files.
        suffix: what to append to the names, for example ``.jpg``.
        empty: rows with an empty cell lack the modality (``missing``), are left out before the splits are drawn
            (``leave_out``), or are refused (``refuse``).
        absent: the same for rows whose file does not exist; None = as ``unreadable``.
        unreadable: rows whose file cannot be read lack the modality (``missing``), or are refused (``refuse``).
    """

    noun: ClassVar[str]  # of a file, for messages

    def __init__(
        self,
        name: str,
        keys: Mapping[str, str] | None = None,
        *,
        column: str,
        folder: str = "",
        suffix: str = "",
        empty: str = "missing",
        absent: str | None = None,
        unreadable: str = "refuse",
    ) -> None:
        super().__init__(name, keys)
        self.column, self.folder, self.suffix = str(column), str(folder), str(suffix)
        self.empty, self.absent, self.unreadable = empty, absent, unreadable

    def file_problems(self) -> list[str]:
        """Problems of the options of files."""
        problems = one_of("empty", self.empty, ("missing", "refuse", "leave_out"))
        if self.absent is not None:
            problems += one_of("absent", self.absent, ("missing", "refuse", "leave_out"))
        problems += one_of("unreadable", self.unreadable, ("missing", "refuse"))
        if PurePath(self.folder).is_absolute() or ".." in PurePath(self.folder).parts:
            problems.append(f"folder={self.folder}: name a folder below dataset.images")
        return problems

    @property
    def columns(self) -> list[str]:
        return [self.column]

    @property
    def file_column(self) -> str:
        return self.column

    def settings(self) -> Any:
        files = [self.column, self.folder, self.suffix, self.empty, self.unreadable]
        files += [] if self.absent is None else [self.absent]
        return [self.kind, files, self.reading_settings()]

    @abstractmethod
    def reading_settings(self) -> Any:
        """Plain values that :meth:`read` depends on."""

    @property
    @abstractmethod
    def spec(self) -> Spec:
        """Suffix -> shape and type of the values of a file."""

    @abstractmethod
    def read(self, path: Path) -> Sequence[Any]:
        """Values of a file, in the order of :attr:`spec`; raises one of UNREADABLE."""

    def fit(self, items: Mapping[str, np.ndarray], train: np.ndarray) -> dict[str, Any]:
        """Plain values fitted on training items.

        Args:
            items: suffix -> (P, ...), memory-mapped.
            train: sorted numbers of the different items of training rows; empty if no training row has the modality.
        """
        return {}

    @property
    def decoded_name(self) -> str:
        """Beginning of the names of decoded files."""
        return self.name

    def exists(self, path: Path) -> bool:
        """Whether a path may be content of this modality."""
        return path.exists()

    def unusable(self, table: CsvTable, folder: Path) -> np.ndarray:
        names, unnamed = table.frame[self.column], table.missing[self.column].to_numpy(bool)
        if self.empty == "refuse":
            table.refuse(
                unnamed,
                f"rows without {'an' if self.noun[0] in 'aeiou' else 'a'} {self.noun} name in column '{self.column}'",
                f"correct or remove these rows, or set {self.key('empty')}",
            )
        if self.empty != "leave_out" and self.absent in (None, "refuse"):
            return np.zeros(len(table), dtype=bool)
        paths = [folder / self.folder / f"{name}{self.suffix}" for name in names]
        lost = np.zeros(len(table), dtype=bool)
        if self.absent not in (None, "refuse"):
            lost = ~unnamed & np.array([not self.exists(path) for path in paths], dtype=bool)
        lacks = unnamed | lost
        if lacks.all():
            raise UserError(
                f"{table.path}: no {self.noun} is in {folder / self.folder}, for example {paths[0]}: set dataset.images"
            )
        leaves_out = (unnamed & (self.empty == "leave_out")) | (lost & (self.absent == "leave_out"))
        if lacks.any():
            n = int(leaves_out.sum())
            log.warning(
                "%s: %d of %d rows have no %s (%d without a name), %s",
                table.path,
                lacks.sum(),
                len(lacks),
                self.noun,
                unnamed.sum(),
                "used without it" if not n else "left out" if n == lacks.sum() else f"{n} of them left out",
            )
        return leaves_out

    def load(self, rows: Rows, folder: Path) -> list[Path | None]:
        names, absent = rows.table.frame[self.column], rows.table.missing[self.column].to_numpy(bool, copy=True)
        paths = [folder / self.folder / f"{name}{self.suffix}" for name in names]
        if self.absent == "missing":
            absent |= [not self.exists(path) for path in paths]
        warn_of_crossing_files(names.mask(absent, ""), rows.splits, f"files of '{self.name}'")
        return [None if is_absent else path for path, is_absent in zip(paths, absent)]

    def pack(self, content: Content, scratch: Path, shared: Path | None = None) -> Packed:
        paths: list[Path | None] = content.inputs[self.name]
        used = np.unique(np.concatenate(list(content.splits.values())))
        files = sorted({path for i in used if (path := paths[i]) is not None})
        if not files:
            raise UserError(f"column '{self.column}' names no {self.noun} of '{self.name}': correct the column")
        decoded, bad = self._decode(files, scratch, shared)
        number_of = {path: i for i, path in enumerate(files)}
        items = np.array([-1 if path is None else number_of.get(path, -1) for path in paths], dtype=np.int64)
        absent = (items < 0) | np.isin(items, sorted(bad))
        train = content.splits.get("train", np.zeros(0, dtype=np.int64))
        opened = {suffix: np.load(file, mmap_mode="r") for suffix, file in decoded.items()}
        about = self.fit(opened, np.unique(items[train][~absent[train]]))
        items[absent] = next(i for i in range(len(files)) if i not in bad)  # content that is never used
        packed = self.packed(decoded, opened, items, absent, about)
        packed.temporary = [] if shared is not None else list(decoded.values())
        return packed

    def _decode(self, files: Sequence[Path], scratch: Path, shared: Path | None) -> tuple[dict[str, Path], Bad]:
        """Decode files once; the folder of ``shared`` depends on the files and how they are read."""
        name, key = self.decoded_name, [self.reading_settings(), [str(path) for path in files]]
        folder = scratch if shared is None else shared.with_name(f"{shared.name}-{name}-{sha256(key)[:10]}")
        # Another fold may be decoding into the shared folder; of its scratch folder this process has the lock.
        with nullcontext() if shared is None else alone(folder):
            stats = np.array([file_stat(path) for path in files], dtype=np.int64)
            decoded, bad = decode_rows(
                name, key, stats, folder, lambda row: self.read(files[row]), self.spec, f"'{self.name}'", self.noun
            )
        bad |= {int(row): FileNotFoundError("there is no such file") for row in np.flatnonzero(stats[:, 0] < 0)}
        self._judge(bad, files)
        return decoded, bad

    def packed(
        self,
        decoded: Mapping[str, Path],
        opened: Mapping[str, np.ndarray],
        items: np.ndarray,
        absent: np.ndarray,
        about: dict[str, Any],
    ) -> Packed:
        """Which decoded files become arrays of the rows; by default the content alone, as items.

        Args:
            decoded, opened: suffix -> file (P, ...), and its memory map.
            items: (N,) number of the item of each row.
            absent: (N,) bool.
        """
        return Packed({}, absent, about, files={"": decoded[""]}, items=items)

    def _judge(self, bad: Bad, files: Sequence[Path]) -> None:
        """Log or refuse files that are absent or cannot be read."""
        if not bad:
            return
        rows = sorted(bad)
        shown = "; ".join(f"{files[row]} ({first_line(bad[row])})" for row in rows[:3])
        more = f", and {len(rows) - 3} more" if len(rows) > 3 else ""
        problem = f"{len(rows)} of {len(files)} {self.noun} files of '{self.name}' cannot be read: {shown}{more}"
        if len(rows) == len(files):
            *keys, last = dict.fromkeys(["dataset.images", self.key("folder"), self.key("suffix")])
            raise UserError(
                f"no {self.noun} file of '{self.name}' can be read: {shown}: set {', '.join(keys)} or {last}"
            )
        lost = any(isinstance(error, FileNotFoundError) for error in bad.values())
        if self.unreadable == "refuse" or (lost and self.absent == "refuse"):
            option = f"set {self.key('unreadable')}=missing" if self.keys is None else "remove their rows"
            raise UserError(f"{problem}: restore these files, or {option}")
        log.warning("%s; these rows lack '%s'", problem, self.name)

    def encode(self, encoder: RowEncoder, folder: Path, about: About) -> dict[str, np.ndarray]:
        arrays, absent = encoder.files(self.column, folder / self.folder, self.suffix, self.read, self.spec, self.noun)
        content = {f"{self.name}{suffix}": array for suffix, array in arrays.items()}
        return content | ({f"{self.name}_absent": absent} if absent.any() else {})


def channel_statistics(chunks: Iterable[np.ndarray], channels: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel, for ``(x - mean) / deviation``.

    Args:
        chunks: arrays (..., channels); NaN is left out.

    Returns:
        Means and deviations; a channel without values, or with a single one, has deviation 1.
    """
    n, mean, squares = np.zeros(channels), np.zeros(channels), np.zeros(channels)
    lowest, highest = np.full(channels, np.inf), np.full(channels, -np.inf)
    for chunk in chunks:
        values = chunk.reshape(-1, channels).astype(np.float64)
        is_value = ~np.isnan(values)
        count = is_value.sum(0)
        if not count.any():
            continue
        lowest = np.fmin(lowest, np.where(is_value, values, np.inf).min(0))
        highest = np.fmax(highest, np.where(is_value, values, -np.inf).max(0))
        # Chan's update of mean and sum of squared deviations
        total = np.where(is_value, values, 0).sum(0)
        of_chunk = total / np.maximum(count, 1)
        deviations = np.where(is_value, (values - of_chunk) ** 2, 0).sum(0)
        delta, n_total = of_chunk - mean, np.maximum(n + count, 1)
        mean = mean + delta * count / n_total
        squares = squares + deviations + delta**2 * n * count / n_total
        n = n + count
    varies = (n > 1) & (highest > lowest)
    mean = np.where(varies | (n == 0), mean, lowest)
    deviation = np.where(varies, np.sqrt(squares / np.maximum(n, 1)), 1.0)
    return mean.tolist(), deviation.tolist()


def chunks_of(array: np.ndarray, rows: np.ndarray, size: int = 256) -> Iterable[np.ndarray]:
    """Rows of a memory-mapped array, ``size`` at a time."""
    return (array[rows[start : start + size]] for start in range(0, len(rows), size))


def normalisation_problems(normalisation: Any, channels: int) -> list[str]:
    """Problems of the option ``normalisation``."""
    if not isinstance(normalisation, Mapping):
        return one_of("normalisation", normalisation, ("train", "none"))
    values = [normalisation.get(key, ()) for key in ("mean", "deviation")]
    if set(normalisation) != {"mean", "deviation"} or any(len(v) != channels for v in values) or min(values[1]) <= 0:
        return [
            f"normalisation={dict(normalisation)}: give mean and deviation, {channels} numbers each, the deviations "
            "above 0"
        ]
    return []


def fitted_normalisation(normalisation: Any, chunks: Any, channels: int) -> dict[str, list[float]]:
    """``mean`` and ``deviation`` per channel.

    Args:
        normalisation: the option.
        chunks: arrays (..., channels) of the training items; only read for ``train``.
    """
    if isinstance(normalisation, Mapping):
        return {key: [float(value) for value in normalisation[key]] for key in ("mean", "deviation")}
    if normalisation == "none":
        return {"mean": [0.0] * channels, "deviation": [1.0] * channels}
    mean, deviation = channel_statistics(chunks, channels)
    return {"mean": mean, "deviation": deviation}

"""From raw files to the packed store, which is made again whenever its source or settings changed."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.base import MultimodalDataModule, PackedSample
from datasets.readers.pictures import changed_pictures
from datasets.storage import check_replaceable
from utils.errors import UserError
from utils.files import alone

log = logging.getLogger(__name__)

# Version of the rules that turn raw content into packed content. A store of an earlier version stays valid where the
# versions agree on its content, and is packed again otherwise. 2: deep images, EXIF orientation, natural order of frame
# files, constant columns, texts without tokens.
READING_RULES = 2

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Source:
    """Raw data that can be packed.

    Attributes:
        kind: in one word (folder | mnist | ...).
        signature: changes whenever the packed arrays would.
        about: plain values for ``meta.json``.
        load: reads or builds the content that :meth:`SourcedDataModule.pack` turns into arrays.
        pictures: image files, and folders of frames, that :func:`datasets.readers.pictures.open_picture` reads.
    """

    kind: str
    signature: str
    about: dict[str, Any]
    load: Callable[[], Any]
    pictures: Callable[[], Iterable[Path]] = tuple


class SourcedDataModule(MultimodalDataModule):
    """Data set whose store is made again whenever its source or settings changed; subclasses find the source."""

    def find_source(self) -> Source:
        """Find the raw data to pack.

        Raises:
            UserError: no raw data; names what was looked for.
        """
        raise AssertionError("a data set implements find_source()")

    @property
    def scratch(self) -> Path:
        """Folder for unfinished work, from which an interrupted run continues.

        Only one process at a time works in it, and it is removed once the arrays are packed.
        """
        return self.store.folder.with_name(f".{self.store.folder.name}.decoding")

    def pack(self, source: Source) -> tuple[Mapping[str, Mapping[str, Any]], dict[str, Any]]:
        """Turn the loaded source into arrays.

        Returns:
            Split -> name of the array (a modality, ``target`` and, where rows have names, ``name``) -> array, or for
            arrays that are too large for memory the path of a ``.npy`` file; and plain values for ``meta.json``.
        """
        return source.load(), {"class_names": self.class_names, "source": {"kind": source.kind, **source.about}}

    def packed_meta(self) -> dict[str, Any]:
        """Content of ``meta.json`` of the packed store.

        Raises:
            UserError: the data are not packed yet.
        """
        meta = self.store.meta()
        if meta is None:
            raise UserError(f"no packed data in {self.store.folder}: run the stage 'prepare' first (stages=[prepare])")
        return meta

    def prepare(self) -> None:
        """Pack the raw files, unless the store was made from these very files and settings.

        Raises:
            UserError: no source, or a bad file in it.
        """
        source = self.find_source()
        if self._is_packed(source):
            if self.scratch.exists():  # of a process that was killed while it removed it
                with alone(self.scratch):
                    shutil.rmtree(self.scratch, ignore_errors=True)
            return
        with alone(self.scratch):
            if not self._is_packed(source):  # another process may have packed it meanwhile
                self._prepare(source)
            shutil.rmtree(self.scratch, ignore_errors=True)

    def is_packed(self) -> bool:
        return self._is_packed(self.find_source())

    def shorten(self, content: Any, rows: int) -> tuple[Any, dict[str, int]] | None:
        """Cut loaded content to at most ``rows`` rows per split, with every class in training, see :meth:`pack_sample`.

        Returns:
            The shortened content, and split -> number of rows of the complete one; None if content cannot be cut.
        """
        return shorten_arrays(content, rows) if is_arrays(content) else None

    def pack_sample(self, rows: int) -> PackedSample | None:
        start = time.perf_counter()
        source = self.find_source()
        loaded = source.load()
        shortened = self.shorten(loaded, rows)
        if shortened is None:
            return None
        _picture_changes(source)
        begun = time.perf_counter()
        content, counts = shortened
        splits, about = self.pack(replace(source, load=lambda: content))
        about.pop("reading_changes", None)
        self.store.write(splits, about)
        end = time.perf_counter()
        scale = sum(counts.values()) / sum(len(self.store.split(split)) for split in counts)
        # Splits that share items have links to one file.
        sizes = {(stat := file.stat()).st_ino: stat.st_size for file in self.store.folder.rglob("*.npy")}
        nbytes = scale * sum(sizes.values())
        if is_arrays(loaded):
            nbytes = sum(array.nbytes for arrays in loaded.values() for array in arrays.values())
        return PackedSample(counts, begun - start + scale * (end - begun), nbytes)

    def may_read_differently(self) -> bool:
        """Whether the store, packed under earlier READING_RULES, may hold content that the current rules change."""
        return False

    def _is_packed(self, source: Source) -> bool:
        meta = self.store.meta()
        if meta is None:
            return False
        if meta.get("reading_rules") == READING_RULES:
            if meta.get("source_signature") != source.signature:
                return False
        elif meta.get("signature") != source.signature or not self._is_read_alike(source):
            return False
        log.info("%s: packed store %s is up to date (%s)", self.name, self.store.folder, meta["counts"])
        return True

    def _is_read_alike(self, source: Source) -> bool:
        """Whether a store that earlier rules packed has the content of READING_RULES; if so, the store notes it."""
        folder = self.store.folder
        try:
            changes = _picture_changes(source)
        except UserError as error:  # the raw files are needed only for packing, and may have been removed
            log.warning(
                "%s: the pictures of %s cannot be checked, the store is used unchanged: %s", self.name, folder, error
            )
            return True
        if self.may_read_differently():
            changes.append("table cells or texts")
        if changes:
            log.warning(
                "%s: earlier rules read some content of %s wrongly (%s): packing it again",
                self.name,
                folder,
                "; ".join(changes),
            )
            return False
        self.store.note(reading_rules=READING_RULES, source_signature=source.signature)
        return True

    def _prepare(self, source: Source) -> None:
        check_replaceable(self.store.folder)
        reason = "" if self.store.meta() is None else " again: the source or its settings changed"
        log.info("%s: packing (source: %s) into %s%s", self.name, source.kind, self.store.folder, reason)
        splits, about = self.pack(source)
        changes = [*_picture_changes(source), *about.pop("reading_changes", [])]
        names = about["class_names"]
        class_counts = {split: _class_counts(arrays["target"], names) for split, arrays in splits.items()}
        counts = {split: len(arrays["target"]) for split, arrays in splits.items()}
        self._splits.clear()
        meta = {
            "dataset": self.name,
            "class_counts": class_counts,
            # Runs on a store that earlier rules packed with other content are not continued.
            "signature": sha256([READING_RULES, source.signature]) if changes else source.signature,
            "source_signature": source.signature,
            "reading_rules": READING_RULES,
            **({"reading_changes": changes} if changes else {}),
            **about,
        }
        self.store.write(splits, meta)
        log.info("%s: packed %s", self.name, counts)


def _picture_changes(source: Source) -> list[str]:
    """Pictures that version 1 of the rules read wrongly: their number and the first file."""
    changed = changed_pictures(source.pictures())
    return [f"{len(changed)} pictures or folders of frames, first {changed[0].name}"] if changed else []


def _class_counts(target: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    counts = (target == 1).sum(0) if target.ndim == 2 else np.bincount(target, minlength=len(names))
    return dict(zip(names, counts.tolist()))


def sample_rows(target: np.ndarray, rows: int) -> np.ndarray:
    """Numbers of at most ``rows`` rows, sorted: the first of each class, then evenly spaced ones; more where there are
    more classes.

    Args:
        target: (N,) labels, or (N, C) of several labels.
    """
    first = np.unique(target, return_index=True)[1] if target.ndim == 1 else np.zeros(0, dtype=np.int64)
    spaced = np.linspace(0, len(target) - 1, min(rows, len(target))).round().astype(np.int64)
    others = spaced[~np.isin(spaced, first)]
    return np.sort(np.concatenate([first, others[: max(0, rows - len(first))]]))


def is_arrays(content: Any) -> bool:
    """Whether content is in memory as it is packed: split -> name -> array."""
    return isinstance(content, Mapping) and all(
        isinstance(arrays, Mapping) and all(isinstance(array, np.ndarray) for array in arrays.values())
        for arrays in content.values()
    )


def shorten_arrays(content: Mapping[str, Arrays], rows: int) -> tuple[dict[str, Arrays], dict[str, int]]:
    """Arrays in memory, cut as :meth:`SourcedDataModule.shorten` says; of shared items, those that the rows use."""
    splits: dict[str, Arrays] = {}
    for split, arrays in content.items():
        chosen = sample_rows(arrays["target"], rows)
        shared = {name.removesuffix(".rows") for name in arrays if name.endswith(".rows")}
        splits[split] = {
            name: array[chosen] for name, array in arrays.items() if name.removesuffix(".rows") not in shared
        }
        for name in shared:
            used, pointers = np.unique(arrays[f"{name}.rows"][chosen], return_inverse=True)
            splits[split] |= {name: arrays[name][used], f"{name}.rows": pointers.astype(np.int64)}
    return splits, {split: len(arrays["target"]) for split, arrays in content.items()}


def check_classes(split: str, target: np.ndarray, num_classes: int, where: object) -> None:
    """Check that every class is in the training split; in other splits, an absent class is logged.

    Args:
        target: (N,) labels.
        where: name of the source, for messages.

    Raises:
        UserError: names the absent class.
    """
    absent = [str(c) for c in np.flatnonzero(np.bincount(target, minlength=num_classes) == 0)]
    if not absent:
        return
    problem = f"no image of class {', '.join(absent)} in split '{split}' ({where})"
    if split == "train":
        raise UserError(f"{problem}: it cannot be learned, restore its files and prepare again")
    log.warning("%s: scores of this split leave it out", problem)


def sha256(value: object) -> str:
    """SHA-256 of an array (shape, type and content), or of plain values (as JSON with sorted keys)."""
    if isinstance(value, np.ndarray):
        head = f"{value.dtype.str}{value.shape}".encode()
        return hashlib.sha256(head + np.ascontiguousarray(value).tobytes()).hexdigest()
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_stats(files: Mapping[str, Path]) -> dict[str, list[int]]:
    """Name -> bytes and time of the last change (ns) of the file, for a signature."""
    return {name: [(s := file.stat()).st_size, s.st_mtime_ns] for name, file in files.items()}

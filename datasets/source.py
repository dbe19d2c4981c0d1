"""From raw files to the packed store: what a data set reads, and whether the store was made from exactly that."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.base import MultimodalDataModule
from utils.errors import UserError

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Source:
    """Raw data that can be packed.

    Attributes:
        kind: what it is, in a word (folder | mnist | ...).
        signature: changes whenever the packed arrays would.
        about: plain values for ``meta.json``.
        load: reads or builds the arrays, split -> modality names, ``target`` and, where rows have names, ``name``; an
            array too large for memory may be the path of a ``.npy`` file.
        scratch: a folder of half-finished work, which an interrupted run leaves for the next one; only one process at a
            time works on it, and it is removed once the arrays are packed.
    """

    kind: str
    signature: str
    about: dict[str, Any]
    load: Callable[[], Mapping[str, Mapping[str, Any]]]
    scratch: Path | None = None


class SourcedDataModule(MultimodalDataModule):
    """A data set whose store is made again whenever its source or settings changed; subclasses find the source."""

    def find_source(self) -> Source:
        """The raw data to pack.

        Raises:
            UserError: there are none; names what was looked for.
        """
        raise AssertionError("a data set implements find_source()")

    def prepare(self) -> None:
        """Raw files -> packed store, unless the store was made from these very files and settings.

        Raises:
            UserError: no source, or a bad file in it.
        """
        source = self.find_source()
        with _alone(source.scratch) if source.scratch else nullcontext():
            self._prepare(source)
            if source.scratch:
                shutil.rmtree(source.scratch, ignore_errors=True)

    def _prepare(self, source: Source) -> None:
        meta = self.store.meta()
        if meta is not None and meta.get("signature") == source.signature:
            log.info("%s: packed store %s is up to date (%s)", self.name, self.store.folder, meta["counts"])
            return
        changed = "" if meta is None else " again: the source or its settings changed"
        log.info("%s: packing (source: %s) into %s%s", self.name, source.kind, self.store.folder, changed)
        splits = source.load()
        class_counts = {
            split: dict(zip(self.class_names, np.bincount(arrays["target"], minlength=self.num_classes).tolist()))
            for split, arrays in splits.items()
        }
        counts = {split: len(arrays["target"]) for split, arrays in splits.items()}
        self._splits.clear()
        self.store.write(
            splits,
            {
                "dataset": self.name,
                "class_names": self.class_names,
                "class_counts": class_counts,
                "source": {"kind": source.kind, **source.about},
                "signature": source.signature,
            },
        )
        log.info("%s: packed %s", self.name, counts)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is at work on ``folder``; the system frees the lock of a process that dies."""
    lock = folder.with_name(f"{folder.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        lock.unlink(missing_ok=True)  # whoever waited for it, or comes now, finds the work done


def check_classes(split: str, target: np.ndarray, num_classes: int, where: object) -> None:
    """Every class must be in the training split; in the others an absent class is only a warning.

    Args:
        target: (N,) labels.
        where: the source, for messages.

    Raises:
        UserError: names the class.
    """
    absent = [str(c) for c in np.flatnonzero(np.bincount(target, minlength=num_classes) == 0)]
    if not absent:
        return
    found = f"no image of class {', '.join(absent)} in split '{split}' ({where})"
    if split == "train":
        raise UserError(f"{found}: it cannot be learned, restore its files and prepare again")
    log.warning("%s: scores of this split leave it out", found)


def sha256(value: object) -> str:
    """Of an array (shape, type and content), or of plain values (as JSON with sorted keys)."""
    if isinstance(value, np.ndarray):
        head = f"{value.dtype.str}{value.shape}".encode()
        return hashlib.sha256(head + np.ascontiguousarray(value).tobytes()).hexdigest()
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_stats(files: Mapping[str, Path]) -> dict[str, list[int]]:
    """Name -> bytes and time of the last change (ns) of each file, for a signature."""
    return {name: [(s := file.stat()).st_size, s.st_mtime_ns] for name, file in files.items()}

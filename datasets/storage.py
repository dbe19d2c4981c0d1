"""The packed store: one memory-mapped ``.npy`` array per modality and split, and a ``meta.json`` written last.

::

    <store>/meta.json                      counts, checksums, class names, seed, source, format version
    <store>/<split>/<modality>.npy         (N, *shape), uint8 for images (0..255), int32 token ids, else float32
    <store>/<split>/target.npy             (N,) int64, or (N, C) float32
    <store>/<split>/name.npy               (N,) file stems of the source, optional
    <store>/<split>/<table>_missing.npy    (N, F) bool, cells without a value in the source, optional
    <store>/<split>/<modality>_absent.npy  (N,) bool, rows without this modality in the source, optional

Rows may share items: ``<modality>.npy`` then holds the P different items and ``<modality>.rows.npy`` (N,) the number of
the item of each row (MST pairs every image twenty times; the folds of a cross-validation share one file of images, a
hard link). With ``<modality>.counts.npy`` (N,), an item is (K, *shape), of which a row uses the first ``counts`` parts
(frames of a clip).

The store is written to a temporary name and renamed, so that an existing folder is complete.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from utils.checksums import checksums, open_seal, sealed, verify
from utils.errors import UserError
from utils.files import BROKEN, replace_folder, replacing, temporary_beside

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
META = "meta.json"


class PackedSplit:
    """The arrays of one split, read lazily.

    Args:
        folder: of the arrays.
        rows: use only these rows (sorted), None = all.
        files: checksums of the arrays by file name, verified when an array is opened; absent in older stores.
    """

    def __init__(self, folder: Path, rows: np.ndarray | None = None, files: Mapping[str, str] | None = None) -> None:
        self.folder, self.rows, self.files = folder, rows, files or {}
        self._n = len(self._load("target", mmap_mode="r"))
        self.nan_rows = None
        if self.has("nan_rows"):
            self.nan_rows = self._load("nan_rows")
            if rows is not None:
                self.nan_rows = self.nan_rows[rows]

    def _load(self, name: str, mmap_mode: Literal["r", "c"] | None = None) -> np.ndarray:
        """
        Raises:
            UserError: the file is absent, damaged, or not as it was written.
        """
        file = self.folder / f"{name}.npy"
        fix = f"delete the folder {self.folder.parent}, and stage 'prepare' writes it again"
        if file.name in self.files:
            verify(file, self.files[file.name], fix)
        try:
            return np.load(file, mmap_mode=mmap_mode)
        except (OSError, ValueError, *BROKEN) as error:
            raise UserError(f"{file} cannot be read ({error}): {fix}") from None

    def __len__(self) -> int:
        return self._n if self.rows is None else len(self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays on disk."""
        return sum(f.stat().st_size for f in self.folder.glob("*.npy"))

    def has(self, name: str) -> bool:
        """Whether an array of this name exists."""
        return (self.folder / f"{name}.npy").exists()

    def array(self, name: str) -> np.ndarray:
        """Memory-mapped array (copy on write) with all rows of the file."""
        return self._load(name, mmap_mode="c")

    def _pointers(self, name: str) -> np.ndarray | None:
        """Number of the item of each row; None = row i has item i."""
        pointers = self._load(f"{name}.rows") if self.has(f"{name}.rows") else None
        return pointers if pointers is None or self.rows is None else pointers[self.rows]

    def counts(self, name: str) -> Tensor | None:
        """Number of parts of each row (N,), at most K; None = the items have no parts."""
        if not self.has(f"{name}.counts"):
            return None
        counts = torch.from_numpy(self._load(f"{name}.counts"))
        return counts if self.rows is None else counts[torch.from_numpy(self.rows)]

    def pool(self, name: str, in_memory: bool) -> tuple[Tensor, Tensor | None]:
        """Different items of an array, and the number of the item of each row.

        Args:
            in_memory: read the items instead of mapping the file.

        Returns:
            Items (P, ...); numbers (N,), or None where row i has item i.
        """
        array, pointers = self.array(name), self._pointers(name)
        if pointers is None and self.rows is not None:
            array = array[self.rows]
        if in_memory and pointers is not None and len(used := np.unique(pointers)) < len(array):
            array, pointers = array[used], np.searchsorted(used, pointers)  # items of other splits stay on disk
        items = torch.from_numpy(np.array(array) if in_memory else array)
        return items, None if pointers is None else torch.from_numpy(pointers)

    def memory_map(self, name: str) -> Tensor:
        """Array with one entry per row over the memory map (in memory where rows share items)."""
        items, pointers = self.pool(name, in_memory=False)
        return items if pointers is None else items[pointers]

    def read(self, name: str) -> Tensor:
        """Array with one entry per row, in memory."""
        items, pointers = self.pool(name, in_memory=True)
        return items if pointers is None else items[pointers]

    def names(self) -> list[str]:
        """File stems of the source rows, or their numbers where the source has none."""
        names = self._load("name") if self.has("name") else np.arange(self._n).astype(str)
        return list(names if self.rows is None else names[self.rows])

    def head(self, fraction: float, seed: int) -> PackedSplit:
        """Select a random ``fraction`` of the rows (rounded down), in their order."""
        keep = int(len(self) * fraction)
        if keep < 1:
            raise UserError(f"dataset.train_fraction={fraction} keeps no row of {len(self)}: raise it")
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self))[:keep])
        return PackedSplit(self.folder, chosen if self.rows is None else self.rows[chosen], self.files)


@lru_cache(16)
def _check_seal(text: str) -> None:
    """Check the seal of ``meta.json``, once per process and content: stages read the file again and again.

    Raises:
        ValueError: the values are not those that were sealed.
    """
    open_seal(json.loads(text), META)


class PackedStore:
    """A folder of packed splits."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def meta(self) -> dict[str, Any] | None:
        """Content of ``meta.json``, or None without a complete store of this format.

        Raises:
            UserError: the file is damaged.
        """
        file = self.folder / META
        if not file.exists():
            return None
        try:
            text = file.read_text()
            meta = json.loads(text)
            if meta.get("format_version") != FORMAT_VERSION:
                return None
            _check_seal(text)
            if isinstance(meta.get("files"), dict):
                meta["files"].pop(META, None)  # the seal
            return meta
        except (ValueError, AttributeError):
            raise UserError(
                f"{file} is damaged: delete the folder {self.folder}, and stage 'prepare' writes it again"
            ) from None

    def has_split(self, name: str) -> bool:
        return self.meta() is not None and (self.folder / name / "target.npy").exists()

    def split(self, name: str) -> PackedSplit:
        """Packed arrays of one split.

        Raises:
            UserError: the split does not exist, or has another number of rows than were packed; names the stage that
                makes it.
        """
        meta = self.meta()
        if meta is None:
            raise UserError(f"no packed data in {self.folder}: run the stage 'prepare' first (stages=[prepare])")
        if not self.has_split(name):
            existing = sorted(p.parent.name for p in self.folder.glob("*/target.npy"))
            raise UserError(
                f"the data in {self.folder} have no split '{name}' (only {', '.join(existing)}): add its folder to the "
                "source and prepare again, or leave out the stages that need it"
            )
        split = PackedSplit(self.folder / name, files=self._files(meta, name))
        count = (meta.get("counts") or {}).get(name, len(split))
        if len(split) != count:
            raise UserError(
                f"{self.folder / name} has {len(split)} rows, of which {count} were packed: delete the folder "
                f"{self.folder}, and stage 'prepare' writes it again"
            )
        return split

    @staticmethod
    def _files(meta: Mapping[str, Any], split: str) -> dict[str, str]:
        files = {Path(name): text for name, text in (meta.get("files") or {}).items()}
        return {path.name: text for path, text in files.items() if path.parent.name == split}

    def digest(self, split: str) -> dict[str, str]:
        """Checksums of the arrays of a split, by name; empty in older stores."""
        return {
            f"{split}/{name}": text.rpartition("-")[2][:16]
            for name, text in sorted(self._files(self.meta() or {}, split).items())
        }

    def write(self, splits: Mapping[str, Mapping[str, np.ndarray | Path]], meta: Mapping[str, Any]) -> None:
        """Write all splits at once, replacing an older store atomically.

        Args:
            splits: split -> array name -> array, or a ``.npy`` file, which is moved; ``target`` is required.
            meta: plain values, stored in ``meta.json``.
        """
        with self.writing(meta) as folder:
            for split, arrays in splits.items():
                (folder / split).mkdir()
                for name, array in arrays.items():
                    if isinstance(array, Path):
                        shutil.move(array, folder / split / f"{name}.npy")
                    else:
                        np.save(folder / split / f"{name}.npy", array)

    def note(self, **values: Any) -> None:
        """Add plain values to ``meta.json`` of a complete store."""
        meta = self.meta()
        assert meta is not None, f"no packed store in {self.folder}"
        with replacing(self.folder / META) as file:
            file.write_text(json.dumps(sealed(meta | values, META), indent=2) + "\n")

    def writing(self, meta: Mapping[str, Any]) -> _Writing:
        """Context manager that yields a temporary folder; on success it becomes the store."""
        return _Writing(self.folder, meta)


def check_replaceable(folder: Path) -> None:
    """Check that a folder is a packed store or absent, since it could hold raw files.

    Raises:
        UserError: names a file that does not belong to a packed store.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: name a folder for the packed store")
    for entry in folder.iterdir():
        if entry.name != META and not (entry / "target.npy").exists():
            raise UserError(
                f"{folder} holds '{entry.name}', which is no part of a packed store: name another folder as the store, "
                "this one is not overwritten"
            )


def link_file(file: Path, link: Path) -> Path:
    """A hard link to a file, which it replaces at ``link``: the same bytes under another name, and either may be
    deleted. Where the file system has no hard links, the file is copied."""
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    try:
        os.link(file, link)
    except OSError as error:
        log.warning("%s: the file system has no hard links (%s): the file is copied", link, error.strerror)
        shutil.copyfile(file, link)
    return link


class _Writing:
    def __init__(self, folder: Path, meta: Mapping[str, Any]) -> None:
        self.folder, self.meta = folder, meta
        self.temporary = temporary_beside(folder)

    def __enter__(self) -> Path:
        check_replaceable(self.folder)
        self.temporary.mkdir(parents=True)
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self.temporary, ignore_errors=True)

    def _finish(self) -> None:
        counts = {p.parent.name: len(np.load(p, mmap_mode="r")) for p in sorted(self.temporary.glob("*/target.npy"))}
        files = checksums(self.temporary, [path.name for path in sorted(self.temporary.iterdir())])
        meta = {"format_version": FORMAT_VERSION, "counts": counts, **self.meta, "files": files}
        (self.temporary / META).write_text(json.dumps(sealed(meta, META), indent=2) + "\n")
        replace_folder(self.temporary, self.folder)

"""Image files that are missing, cannot be read, or show the same."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from datasets.inspection.findings import Finding, number_of, quoted, row_numbers
from datasets.inspection.layout import IMAGE_SUFFIXES, Layout
from datasets.readers.pictures import UNREADABLE, open_picture
from utils.progress import Progress


@dataclass
class Pictures:
    """State of the image file of each row; rows are those of a spreadsheet.

    Attributes:
        unnamed: rows without an image name.
        missing: row -> file that does not exist.
        unreadable: row -> why its file cannot be read.
        digests: row -> digest of the content of its file.
    """

    unnamed: list[int] = field(default_factory=list)
    missing: dict[int, Path] = field(default_factory=dict)
    unreadable: dict[int, str] = field(default_factory=dict)
    digests: dict[int, str] = field(default_factory=dict)

    @property
    def unusable(self) -> list[int]:
        return sorted([*self.unnamed, *self.missing, *self.unreadable])


def inspect_pictures(names: pd.Series, layout: Layout, missing_values: Sequence[str]) -> Pictures:
    """Open the image file of each row as stage prepare does.

    Args:
        names: cells of the image column, indexed by spreadsheet rows.
    """
    pictures = Pictures()
    rows_of: dict[Path, list[int]] = {}
    for row, name in names.items():
        if name in ("", *missing_values):
            pictures.unnamed.append(int(row))
        else:
            rows_of.setdefault(layout.images / f"{name}{layout.image_suffix}", []).append(int(row))

    def look(path: Path) -> tuple[str | None, str]:
        """Reason why it cannot be read, and digest."""
        try:
            digest = hashlib.file_digest(path.open("rb"), "sha256").hexdigest()
            if path.suffix != ".npy":
                open_picture(path, layout.channels, layout.image_bits).load()
        except UNREADABLE as error:
            return str(error).splitlines()[0] if str(error) else type(error).__name__, ""
        return None, digest

    existing = [path for path in rows_of if path.is_file()]
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        states = dict(zip(existing, Progress(pool.map(look, existing), "reading images", len(existing), unit="image")))
    for path, rows in rows_of.items():
        for row in rows:
            if path not in states:
                pictures.missing[row] = path
            elif (reason := states[path][0]) is not None:
                pictures.unreadable[row] = reason
            else:
                pictures.digests[row] = states[path][1]
    return pictures


def _near_files(missing: Iterable[Path], images: Path) -> str | None:
    """What to correct where files have nearly the missing names: capital letters, folders or suffixes."""
    files = {path.name.casefold(): path for path in images.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES}
    stems = {path.stem.casefold(): path for path in files.values()}
    for path in missing:
        name = re.split(r"[/\\]", str(path))[-1]
        near = files.get(name.casefold()) or stems.get(Path(name).stem.casefold())
        if near:
            return f"write '{near.relative_to(images)}' instead of '{_below(path, images)}', as the file is called"
    return None


def _below(path: Path, folder: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def picture_findings(pictures: Pictures, names: pd.Series, layout: Layout) -> list[Finding]:
    """What is wrong with the images, and files that no row names."""
    findings = []
    level = "error" if layout.without_image == "refuse" else "note"
    handled = "remove these rows, or set dataset.without_image" if level == "error" else ""
    if pictures.unnamed:
        text = "no image name"
        findings.append(Finding(level, "images", text, handled, row_numbers(pictures.unnamed)))
    if pictures.missing:
        files = quoted(dict.fromkeys(path.name for path in pictures.missing.values()), 3)
        text = f"not in {layout.images}: {files}"
        fix = _near_files(pictures.missing.values(), layout.images) or "restore the files"
        if handled:
            fix += ", or set dataset.without_image"
        findings.append(Finding(level, "images", text, fix, row_numbers(pictures.missing)))
    if pictures.unreadable:
        rows = sorted(pictures.unreadable)
        files = quoted(dict.fromkeys(names[row] for row in rows), 3)
        reason = pictures.unreadable[rows[0]].replace(f"{layout.images}/", "")
        text = f"cannot be read: {files} (the first: {reason})"
        findings.append(Finding("error", "images", text, "restore the files, or remove these rows", row_numbers(rows)))
    if layout.images.is_dir():
        named = {f"{name}{layout.image_suffix}" for name in names}
        unused = [
            path.name
            for path in sorted(layout.images.iterdir())
            if path.suffix.lower() in IMAGE_SUFFIXES and path.name not in named
        ]
        if unused and not any("/" in name for name in named):
            findings.append(
                Finding("note", "images", f"{number_of(len(unused), 'file')} without a row: {quoted(unused, 3)}")
            )
    return findings

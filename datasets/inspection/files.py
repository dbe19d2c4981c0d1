"""Files that a table names: which are missing, cannot be read, or have the same content."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from datasets.inspection.findings import Finding, number_of, quoted, row_numbers
from datasets.inspection.layout import FileColumn
from datasets.readers.pictures import UNREADABLE
from utils.errors import first_line
from utils.progress import Progress


@dataclass
class Files:
    """State of the file of each row; rows are those of a spreadsheet.

    Attributes:
        unnamed: rows without a file name.
        missing: row -> file that does not exist.
        unreadable: row -> why its file cannot be read.
        digests: row -> digest of the content of its file.
        missing_cells: row -> share of the numbers of its file that are missing (series and vectors).
    """

    unnamed: list[int] = field(default_factory=list)
    missing: dict[int, Path] = field(default_factory=dict)
    unreadable: dict[int, str] = field(default_factory=dict)
    digests: dict[int, str] = field(default_factory=dict)
    missing_cells: dict[int, float] = field(default_factory=dict)

    @property
    def unusable(self) -> list[int]:
        return sorted([*self.unnamed, *self.missing, *self.unreadable])


def inspect_files(names: pd.Series, column: FileColumn, missing_values: Sequence[str]) -> Files:
    """Read the file of each row as stage prepare does.

    Args:
        names: cells of the column, indexed by spreadsheet rows.
    """
    files = Files()
    rows_of: dict[Path, list[int]] = {}
    for row, name in names.items():
        if name in ("", *missing_values):
            files.unnamed.append(int(row))
        else:
            rows_of.setdefault(column.folder / f"{name}{column.suffix}", []).append(int(row))

    def look(path: Path) -> tuple[str | None, str, float]:
        """Reason why it cannot be read, digest, and share of missing numbers."""
        try:
            digest = _digest(path)
            share = column.read(path)
        except UNREADABLE as error:
            return first_line(error), "", 0.0
        return None, digest, share

    existing = [path for path in rows_of if path.is_file() or (column.noun == "clip" and path.is_dir())]
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        looks = Progress(pool.map(look, existing), f"reading {column.nouns}", len(existing), unit=column.noun)
        states = dict(zip(existing, looks))
    for path, rows in rows_of.items():
        for row in rows:
            if path not in states:
                files.missing[row] = path
            elif (reason := states[path][0]) is not None:
                files.unreadable[row] = reason
            else:
                files.digests[row] = states[path][1]
                if states[path][2]:
                    files.missing_cells[row] = states[path][2]
    return files


def _digest(path: Path) -> str:
    """SHA-256 of a file, or of the files of a folder."""
    parts = sorted(path.iterdir()) if path.is_dir() else [path]
    digests = [hashlib.file_digest(part.open("rb"), "sha256").hexdigest() for part in parts if part.is_file()]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def share_of_nan(values: Sequence[np.ndarray]) -> float:
    """Share of missing cells in what a part with cells reads: values, and where they are missing."""
    return float(values[1].mean())


def _near_files(missing: Iterable[Path], column: FileColumn) -> str | None:
    """What to correct where files have nearly the missing names: capital letters, folders or suffixes."""
    files = {path.name.casefold(): path for path in column.root.rglob("*") if path.suffix.lower() in column.suffixes}
    stems = {path.stem.casefold(): path for path in files.values()}
    for path in missing:
        name = re.split(r"[/\\]", str(path))[-1]
        near = files.get(name.casefold()) or stems.get(Path(name).stem.casefold())
        if near:
            written = _below(path, column.root)
            return f"write '{near.relative_to(column.root)}' instead of '{written}', as the file is called"
    return None


def _below(path: Path, folder: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def file_findings(files: Files, names: pd.Series, column: FileColumn, named: Collection[str] | None) -> list[Finding]:
    """What is wrong with the files of a column, and files that no row names.

    Args:
        named: names that any column has for files in this folder, with suffixes; None = do not look for others.
    """
    findings = []

    def add(option: tuple[str, str], text: str, fix: str, rows: Iterable[int]) -> None:
        level = "error" if option[1] == "refuse" else "note"
        if level == "error":
            fix += f", or set {option[0]}" if option[0] else ", or remove these rows"
        findings.append(Finding(level, column.place, text, fix, row_numbers(rows)))

    is_error = {key: option[1] == "refuse" for key, option in column.options.items()}
    if files.unnamed and (is_error["empty"] or column.place == "images"):
        fix = "remove these rows" if is_error["empty"] else ""
        add(column.options["empty"], f"no {column.noun} name", fix, files.unnamed)
    if files.missing:
        shown = quoted(dict.fromkeys(path.name for path in files.missing.values()), 3)
        fix = _near_files(files.missing.values(), column) or "restore the files"
        add(column.options["absent"], f"not in {column.folder}: {shown}", fix, files.missing)
    if files.unreadable:
        rows = sorted(files.unreadable)
        shown = quoted(dict.fromkeys(names[row] for row in rows), 3)
        reason = files.unreadable[rows[0]].replace(f"{column.folder}/", "")
        add(column.options["unreadable"], f"cannot be read: {shown} (the first: {reason})", "restore the files", rows)
    if named is not None and column.folder.is_dir():
        unused = [
            path.name
            for path in sorted(column.folder.iterdir())
            if path.suffix.lower() in column.suffixes and path.name not in named
        ]
        if unused and not any("/" in name for name in named):
            text = f"{number_of(len(unused), 'file')} without a row: {quoted(unused, 3)}"
            findings.append(Finding("note", column.place, text))
    return findings

"""Any mix of modalities: the columns of a configuration of ``FromCSV``, and a guess of the columns that name files."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile

from datasets.inspection.columns import MAX_CODES
from datasets.inspection.files import share_of_nan
from datasets.inspection.layout import FileColumn, Layout, ModalityColumns, layout_of
from datasets.modality_parts.arrays import read_numbers
from datasets.modality_parts.base import Part
from datasets.modality_parts.files import FilePart
from datasets.modality_parts.options import build_parts
from datasets.modality_parts.table import TablePart
from datasets.modality_parts.text import TextPart
from datasets.readers.pictures import FRAME_SUFFIXES, UNREADABLE

SUFFIXES = {
    "image": (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"),
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".m4a"),
    "video": (".mp4", ".avi", ".mov", ".mkv", ".webm", ".flv"),
    "array": (".npy", ".npz"),
}
PLURALS = {"image": "images", "sound": "sounds", "clip": "clips", "series": "series", "vector": "vectors"}
SAMPLE = 50  # files that a guess opens per column
LEAST_NAMED = 0.5  # share of the cells of a column that name files


def mixture_layout(settings: Mapping[str, Any]) -> Layout:
    """The layout of a configuration of ``FromCSV``, ``cfg.dataset`` as plain values.

    Raises:
        UserError: all impossible options of the modalities.
    """
    parts = build_parts(settings["modalities"], settings.get("tokenizer"))
    tables = [settings["modalities"][part.name] for part in parts if isinstance(part, TablePart)]
    texts = [part for part in parts if isinstance(part, TextPart)]
    inputs = {
        "categorical": {k: levels for table in tables for k, levels in (table.get("categorical") or {}).items()},
        "continuous": [name for table in tables for name in table.get("continuous") or ()],
        "text": [name for part in texts for name in part.texts],
        "mask_words": [word for part in texts for word in part.mask_words],
    }
    layout = layout_of({**settings, "image": None, **inputs})
    open_columns = (k for table in tables if table.get("unseen") == "missing" for k in table.get("categorical") or {})
    modalities = tuple(modality_columns(part, layout.images) for part in parts)
    return replace(layout, modalities=modalities, open_columns=tuple(map(str, open_columns)))


def modality_columns(part: Part, images: Path, options: Mapping[str, Any] | None = None) -> ModalityColumns:
    """What a check has to know of a modality.

    Args:
        images: folder that the names of files start from.
        options: for a suggestion.
    """
    is_filled = getattr(part, "natural_missing", "keep") == "fill"
    file = _file_column(part, images) if isinstance(part, FilePart) else None
    return ModalityColumns(part.name, part.kind, tuple(part.columns), file, is_filled, options or {})


def _file_column(part: FilePart, images: Path) -> FileColumn:
    def read(path: Path) -> float:
        values = part.read(path)
        return share_of_nan(values) if "_missing" in part.spec else 0.0

    unreadable = (f"{part.key('unreadable')}=missing", part.unreadable)
    absent = unreadable if part.absent is None else (f"{part.key('absent')}=missing", part.absent)
    return FileColumn(
        place=part.name,
        column=part.column,
        root=images,
        folder=images / part.folder,
        suffix=part.suffix,
        noun=part.noun,
        nouns=PLURALS[part.noun],
        suffixes=SUFFIXES.get(part.kind, SUFFIXES["array"]),
        options={
            "empty": (f"{part.key('empty')}=missing", part.empty),
            "absent": absent,
            "unreadable": unreadable,
        },
        read=read,
    )


# ------------------------------------------------------------------------------------------------------------ a guess


def guess_modalities(cells: pd.DataFrame, images: Path) -> tuple[ModalityColumns, ...]:
    """The columns of which at least half of the cells name files, with options for them."""
    names = _names_of_files(images)
    modalities = []
    for column in map(str, cells):
        known = cells[column][cells[column] != ""]
        counts = {place: int(known.isin(named).sum()) for place, named in names.items()}
        place = max(counts, key=lambda key: counts[key], default=None)
        if place is None or counts[place] < max(2, LEAST_NAMED * len(known)):
            continue
        if known.str.isdecimal().all() and known.nunique() <= MAX_CODES:  # codes, not the names of files
            continue
        folder, suffix, kind = place
        paths = [images / folder / f"{name}{suffix}" for name in dict.fromkeys(known[known.isin(names[place])])]
        options = {"column": column} | ({"folder": folder} if folder else {}) | ({"suffix": suffix} if suffix else {})
        options = _kind_of_arrays(paths[:SAMPLE], options) if kind == "array" else {"kind": kind, **options}
        if options.get("kind") == "audio":
            options |= _length_of_sounds(paths[:SAMPLE])
        if "kind" in options:
            name = "".join(sign if sign.isalnum() else "_" for sign in column)
            (part,) = build_parts({name if name.isidentifier() else f"m_{name}": options}, None)
            modalities.append(modality_columns(part, images, options))
    return tuple(modalities)


def _names_of_files(images: Path) -> dict[tuple[str, str, str], set[str]]:
    """Folder, suffix and kind -> the names that cells may have for these files and folders of frames."""
    names: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    frames = set()
    for path in sorted(images.rglob("*")):
        kind = next((kind for kind, suffixes in SUFFIXES.items() if path.suffix.lower() in suffixes), None)
        if kind is None or not path.is_file():
            continue
        if path.suffix.lower() in FRAME_SUFFIXES and path.parent != images:
            frames.add(path.parent)
        for folder in dict.fromkeys((images, path.parent)):
            at, name = folder.relative_to(images).as_posix(), path.relative_to(folder).as_posix()
            at = "" if at == "." else at
            names[at, "", kind].add(name)
            names[at, path.suffix, kind].add(name.removesuffix(path.suffix))
    for path in frames:
        at = path.parent.relative_to(images).as_posix()
        names["" if at == "." else at, "", "video"].add(path.name)
    return names


def _kind_of_arrays(paths: Sequence[Path], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a vector or series, as most files are; without ``kind`` where they are neither."""
    shapes = []
    for path in paths:
        try:
            shapes.append(read_numbers(path).shape)
        except UNREADABLE:
            continue
    usual = max(Counter(map(len, shapes)).items(), key=lambda item: item[1], default=(0, 0))[0]
    shapes = [shape for shape in shapes if len(shape) == usual]
    if usual == 1:
        length, count = Counter(shape[0] for shape in shapes).most_common(1)[0]
        if count > len(shapes) / 2:
            return {"kind": "vector", **options, "features": length}
    if usual in (1, 2):
        channels = Counter(shape[1] if usual == 2 else 1 for shape in shapes).most_common(1)[0][0]
        lengths = [shape[0] for shape in shapes if usual == 1 or shape[1] == channels]
        return {"kind": "series", **options, "channels": channels, "length": max(lengths)}
    return dict(options)


def _length_of_sounds(paths: Sequence[Path]) -> dict[str, Any]:
    """The longest duration, up to 10.24 s, and the highest rate, up to 16 kHz, where the files state them."""
    infos = []
    for path in paths:
        try:
            infos.append(soundfile.info(path))
        except (RuntimeError, OSError):
            continue
    if not infos:
        return {}
    seconds = min(10.24, max(0.01, float(np.ceil(100 * max(info.duration for info in infos))) / 100))
    return {"seconds": seconds, "rate": min(16_000, max(info.samplerate for info in infos))}

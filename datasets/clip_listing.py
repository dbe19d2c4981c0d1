"""Clips of a data set: the published lists, and the files that hold sound and frames of each clip."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.readers.audio import SOUND_SUFFIXES
from datasets.readers.pictures import FRAME_SUFFIXES
from datasets.readers.video import VIDEO_SUFFIXES
from utils.errors import UserError, first_line
from utils.files import natural_key

log = logging.getLogger(__name__)
_FPS_FOLDER = re.compile(r"Image-(\d+)-FPS")

Stat = tuple[int, int]  # bytes, time of the last change in ns


@dataclass(frozen=True)
class Media:
    """A file, or a folder of frames, with its size and time (of a folder: their sum and the latest)."""

    path: Path
    stat: Stat


@dataclass(frozen=True)
class Clip:
    """One row.

    Attributes:
        name: in the list.
        label: number of the class.
        audio: a sound file or a video with a sound track; None = no such file.
        visual: a video, or a folder of frames; None = neither exists.
        start, end: of the part to take from sound and video files, in seconds; None = the complete file.
    """

    name: str
    label: int
    audio: Media | None
    visual: Media | None
    start: float | None = None
    end: float | None = None

    def plain_values(self) -> list[Any]:
        """Name, label, files with their sizes and times, and part, for a signature."""
        media = [None if m is None else [_place(m.path), *m.stat] for m in (self.audio, self.visual)]
        return [self.name, self.label, *media, self.start, self.end]


@dataclass(frozen=True)
class Listing:
    """The clips of a data set.

    Attributes:
        kind: of the source, in one word.
        class_names: in the order of the labels.
        clips: split -> clips; without ``val``, validation clips are drawn from ``train``.
        about: plain values for ``meta.json``.
    """

    kind: str
    class_names: list[str]
    clips: dict[str, list[Clip]]
    about: dict[str, Any]


class MediaFolder:
    """Every sound file, video and folder of frames below a folder, by stem.

    Where several files of a kind have the same stem, the first of SOUND_SUFFIXES or VIDEO_SUFFIXES counts, then the
    first by path. Folders ``Image-<fps>-FPS`` of another frame rate are skipped.

    Args:
        root: need not exist.
        fps: frames per second of the folders to take.
    """

    def __init__(self, root: Path, fps: int = 1) -> None:
        self.sounds: dict[str, Media] = {}
        self.videos: dict[str, Media] = {}
        self.frames: dict[str, Media] = {}
        ranks: dict[tuple[int, str], tuple[int, tuple[str, str]]] = {}
        suffixes = {suffix: (0, i) for i, suffix in enumerate(SOUND_SUFFIXES)}
        suffixes |= {suffix: (1, i) for i, suffix in enumerate(VIDEO_SUFFIXES)}
        for folder, names, files in os.walk(root, followlinks=True):
            names[:] = sorted(
                (n for n in names if not (m := _FPS_FOLDER.match(n)) or int(m[1]) == fps), key=natural_key
            )
            pictures = []
            for file in files:
                stem, suffix = os.path.splitext(file)
                suffix = suffix.lower()
                if file.startswith("."):
                    continue
                if suffix in FRAME_SUFFIXES:
                    pictures.append(file)
                elif suffix in suffixes:
                    kind, rank = suffixes[suffix]
                    path = os.path.join(folder, file)
                    order = rank, natural_key(path)
                    if (kind, stem) not in ranks or order < ranks[kind, stem]:
                        ranks[kind, stem] = order
                        (self.sounds, self.videos)[kind][stem] = Media(Path(path), _stat(path))
            # An empty folder of frames is a clip without frames; other empty folders are never looked up.
            if (pictures or not files) and not names:
                stats = [_stat(os.path.join(folder, file)) for file in pictures]
                total = sum(size for size, _ in stats) + len(stats)
                latest = max((time for _, time in stats), default=0)
                self.frames.setdefault(os.path.basename(folder), Media(Path(folder), (total, latest)))

    def __bool__(self) -> bool:
        return bool(self.sounds or self.videos or self.frames)

    def clip(self, name: str, label: int, start: float | None = None, end: float | None = None) -> Clip:
        """The clip of that name; prefers sound files to sound tracks, and folders of frames to videos."""
        video = self.videos.get(name)
        visual, audio = self.frames.get(name, video), self.sounds.get(name, video)
        return Clip(name, label, audio, visual, start, end)


def _stat(path: str) -> Stat:
    try:
        status = os.stat(path)
    except OSError:  # a broken link
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _place(path: Path) -> str:
    """A path as it stands in signatures: the same, whether it was given as relative or as absolute."""
    absolute, current = Path(os.path.abspath(path)), Path.cwd()
    return str(absolute.relative_to(current) if absolute.is_relative_to(current) else absolute)


def read_lines(path: Path) -> list[tuple[int, str]]:
    """(number, text) of the lines of a list that are not empty; UTF-8, with or without a byte order mark.

    Raises:
        UserError: the file does not exist, or is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): restore it from the published lists") from None
    return [(i, line.strip()) for i, line in enumerate(text.splitlines(), 1) if line.strip()]


def find_file(name: str, folders: Sequence[Path], content: str, key: str) -> Path:
    """The first file of that name in some folders.

    Args:
        content: of the file, for the message.
        key: of the configuration that names its folder, for the message.

    Raises:
        UserError: no such file; names the folders and the ``key`` to set.
    """
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"no {name} ({content}) in {' or '.join(map(str, folders)) or 'any folder'}: put it there, or set {key} to "
        "its folder"
    )


def refuse_repeated(clips: Mapping[str, Sequence[Clip]], lists: str) -> None:
    """Check that every clip is listed once, in one split.

    Args:
        lists: names of the lists, for the message.

    Raises:
        UserError: clips are repeated; names the first and their number.
    """
    split_of: dict[str, str] = {}
    repeated = []
    for split, part in clips.items():
        for clip in part:
            if clip.name in split_of:
                repeated.append(f"{clip.name} (in {split_of[clip.name]} and {split})")
            split_of.setdefault(clip.name, split)
    if repeated:
        raise UserError(f"{lists} list {repeated[0]} twice ({len(repeated)} such clips): remove the repeated lines")


def note_counts(name: str, clips: Mapping[str, Sequence[Clip]], published: Mapping[str, int | Sequence[int]]) -> None:
    """Log where the numbers of clips differ from the published list.

    Args:
        name: of the data set.
        published: split -> number of clips, or number of clips of each class.
    """
    for split, counts in published.items():
        n = counts if isinstance(counts, int) else sum(counts)
        if len(clips[split]) != n:
            log.warning("%s: %d clips are listed for %s, %d were published", name, len(clips[split]), split, n)
        elif not isinstance(counts, int):
            per_class = np.bincount([clip.label for clip in clips[split]], minlength=len(counts)).tolist()
            if per_class != list(counts):
                log.warning(
                    "%s: %s has %s clips per class, the published list %s: were labels changed?",
                    name,
                    split,
                    per_class,
                    list(counts),
                )

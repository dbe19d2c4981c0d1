"""Clips with sound and pictures: what CREMA-D, Kinetics-Sound and AVE have in common.

A data set lists its clips; here the files that hold their sound and frames are found and decoded once into the packed
store (:mod:`datasets.readers.audio`, :mod:`datasets.readers.video`), resumably, and clips that cannot be used are
counted, named, and refused or left out as the configuration says. Batches hold ``audio`` as the front end gives it and
``visual``, (B, T, 3, side, side).
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.batch import Modality
from datasets.loader import Choose, Transform
from datasets.readers.audio import SOUND_SUFFIXES, ClipProblem, FrontEnd, hear
from datasets.readers.images import decode_rows, reason
from datasets.readers.pictures import FRAME_SUFFIXES
from datasets.readers.video import VIDEO_SUFFIXES, ClipReader, Frames
from datasets.scale import Scale
from datasets.source import Source, SourcedDataModule, check_classes, sha256
from datasets.splits import stratified_split
from utils.errors import UserError
from utils.files import natural_key

log = logging.getLogger(__name__)

RECIPE_VERSION = 1
CHUNK = 32  # clips between two notes of progress
# What can be wrong with a clip, and how it is called in messages.
PROBLEMS = {
    "absent": "without any file",
    "unreadable": "unreadable",
    "no_audio": "without sound",
    "silent": "silent",
    "short": "with too little sound",
    "no_frames": "without frames",
    "few_frames": "with too few frames",
}
_FPS_FOLDER = re.compile(r"Image-(\d+)-FPS")

Stat = tuple[int, int]  # bytes, time of the last change in ns


@dataclass(frozen=True)
class Media:
    """A file, or a folder of frames, with its size and time (of a folder: sum and latest)."""

    path: Path
    stat: Stat


@dataclass(frozen=True)
class Clip:
    """One row.

    Attributes:
        name: as it is listed.
        label: number of the class.
        audio: a sound file or a video with a sound track; None = nothing found.
        visual: a video, or a folder of frames.
        start, end: of the part to take from sound and video files, in seconds; None = all.
    """

    name: str
    label: int
    audio: Media | None
    visual: Media | None
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Listing:
    """The clips of a data set.

    Attributes:
        kind: of the source, in a word.
        class_names: in the order of the labels.
        clips: split -> clips; without ``val`` one is taken from ``train``.
        about: plain values for ``meta.json``.
    """

    kind: str
    class_names: list[str]
    clips: dict[str, list[Clip]]
    about: dict[str, Any]


class MediaFolder:
    """Every sound file, video and folder of frames below a folder, by stem.

    Where there are several of a kind, the first of SOUND_SUFFIXES or VIDEO_SUFFIXES counts, then the first by path.
    Folders ``Image-<other>-FPS`` are passed over.

    Args:
        root: need not exist.
        fps: frames a second of the folders to take.
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
            # An empty folder of frames is a clip without frames; an empty folder elsewhere is never asked for.
            if (pictures or not files) and not names:
                stats = [_stat(os.path.join(folder, file)) for file in pictures]
                total = sum(size for size, _ in stats) + len(stats)
                self.frames.setdefault(
                    os.path.basename(folder), Media(Path(folder), (total, max((t for _, t in stats), default=0)))
                )

    def __bool__(self) -> bool:
        return bool(self.sounds or self.videos or self.frames)

    def clip(self, name: str, label: int, start: float | None = None, end: float | None = None) -> Clip:
        """The clip of that name: sound files before sound tracks, folders of frames before videos."""
        video = self.videos.get(name)
        visual, audio = self.frames.get(name, video), self.sounds.get(name, video)
        return Clip(name, label, audio, visual, start, end)


def _stat(path: str) -> Stat:
    try:
        status = os.stat(path)
    except OSError:  # a link that leads nowhere
        return -1, -1
    return status.st_size, status.st_mtime_ns


def refuse_repeated(clips: Mapping[str, Sequence[Clip]], where: object) -> None:
    """Every clip is listed once, in one split.

    Raises:
        UserError: names the first that is not, and how many there are.
    """
    seen: dict[str, str] = {}
    twice = []
    for split, part in clips.items():
        for clip in part:
            if clip.name in seen:
                twice.append(f"{clip.name} (in {seen[clip.name]} and {split})")
            seen.setdefault(clip.name, split)
    if twice:
        raise UserError(f"{where} list {twice[0]} twice ({len(twice)} such clips): remove the repeated lines")


class BadClips:
    """What is done about clips that cannot be used.

    Args:
        rules: kind of problem -> refuse | skip (leave the clip out) | keep (``silent`` alone); refuse where not named.

    Raises:
        UserError: another kind or rule.
    """

    def __init__(self, rules: Mapping[str, str] | None = None) -> None:
        self.rules = dict.fromkeys(PROBLEMS, "refuse") | dict(rules or {})
        for kind, rule in self.rules.items():
            if kind not in PROBLEMS:
                raise UserError(f"dataset.bad_clips.{kind}: there is no such problem, only {', '.join(PROBLEMS)}")
            allowed = ("refuse", "skip", "keep") if kind == "silent" else ("refuse", "skip")
            if rule not in allowed:
                raise UserError(f"dataset.bad_clips.{kind}={rule}: must be {' or '.join(allowed)}")

    @property
    def keep_silent(self) -> bool:
        return self.rules["silent"] == "keep"

    def judge(
        self, name: str, clips: Mapping[str, Sequence[str]], problems: Mapping[str, Mapping[int, ClipProblem]]
    ) -> dict[str, list[str]]:
        """Refuse what is not to be left out.

        Args:
            name: of the data set.
            clips: split -> names of its clips.
            problems: split -> row -> what is wrong.

        Returns:
            kind of problem -> names of the clips that are left out.

        Raises:
            UserError: counts and first names of each kind.
        """
        found: dict[str, list[str]] = defaultdict(list)
        said: dict[str, str] = {}
        for split, rows in problems.items():
            for row, problem in sorted(rows.items()):
                found[problem.kind].append(clips[split][row])
                said.setdefault(problem.kind, f"{clips[split][row]} in {split}: {problem}")
        total = sum(map(len, clips.values()))
        texts = {
            kind: f"{len(names)} {PROBLEMS[kind]} ({said[kind]}{', ...' if len(names) > 1 else ''})"
            for kind, names in found.items()
        }
        refused = [kind for kind in found if self.rules[kind] == "refuse"]
        if refused:
            keys = ", ".join(f"dataset.bad_clips.{kind}=skip" for kind in refused)
            raise UserError(
                f"{name}: of {total} clips {'; '.join(texts[kind] for kind in refused)}: restore their files, or leave "
                f"them out with {keys}"
            )
        for text in texts.values():
            log.warning("%s: of %d clips left out: %s", name, total, text)
        return dict(found)


class ClipModule(SourcedDataModule):
    """A data set of clips; subclasses list them.

    Args:
        store: folder of the packed store; not the folder of the raw files.
        root: folder with the clips.
        lists: folder with the published lists, None = ``root``.
        demo: ``root`` holds demo data, whose counts are not those of the real ones.
        audio: the front end, see :mod:`datasets.readers.audio`.
        frames: which frames a batch gets, and how.
        stored_side: of the frames in the store, in pixels, from which training crops are cut.
        stored_frames: most frames to keep of a clip.
        least_frames: fewer are a problem of the kind ``few_frames``.
        fps: frames a second.
        bad_clips: see :class:`BadClips`.
        validation: share of the training clips that becomes the validation split, drawn by class; ``test``: the test
            clips, on which the original works choose their checkpoint; ``list``: those that the source lists.
        validation_seed: of that draw.
        **kwargs: see :class:`MultimodalDataModule`.
    """

    paths = ("root", "lists")
    read_time = ("frames",)
    modalities = [Modality("audio", "audio", ()), Modality("visual", "video", ())]
    task = "multiclass"

    def __init__(
        self,
        store: str,
        *,
        root: str | None = None,
        lists: str | None = None,
        demo: bool = False,
        audio: FrontEnd,
        frames: Frames,
        stored_side: int = 256,
        stored_frames: int = 10,
        least_frames: int = 1,
        fps: int = 1,
        bad_clips: Mapping[str, str] | None = None,
        validation: float | str = 0.1,
        validation_seed: int = 2025,
        **kwargs: Any,
    ) -> None:
        super().__init__(store, **kwargs)
        for key, value in (("stored_frames", stored_frames), ("stored_side", stored_side), ("fps", fps)):
            if value < 1:
                raise UserError(f"dataset.{key}={value}: it must be 1 or more")
        if validation not in ("test", "list") and not (isinstance(validation, float) and 0 < validation < 1):
            raise UserError(f"dataset.validation={validation}: must be a share between 0 and 1, or test, or list")
        self.root = None if root is None else Path(root)
        self.lists, self.demo = None if lists is None else Path(lists), demo
        self.bad_clips = BadClips(bad_clips)
        self.audio, self.frames, self.validation, self.validation_seed = audio, frames, validation, validation_seed
        self.fps = fps
        self.reader = ClipReader(stored_side, stored_frames, least_frames, fps)
        shape = (frames.count, 3, frames.side, frames.side)
        self.modalities = [
            Modality("audio", "audio", audio.shape, scale=audio.scale),
            Modality("visual", "video", shape, scale=Scale(tuple(frames.mean), tuple(frames.deviation))),
        ]

    def places(self) -> tuple[Path | None, list[Path]]:
        """The folder with the clips, and the folders to look for lists in."""
        return self.root, [place for place in (None if self.demo else self.lists, self.root) if place]

    # ---- what subclasses do ------------------------------------------------------------------------------------------

    def find_clips(self) -> Listing:
        """
        Raises:
            UserError: no clips; names what was looked for. Or a list that cannot be read.
        """
        raise AssertionError("a data set of clips implements find_clips()")

    # ---- the store ---------------------------------------------------------------------------------------------------

    def find_source(self) -> Source:
        listing = self.find_clips()
        self.class_names = listing.class_names
        settings = {
            "audio": {"front_end": type(self.audio).__name__, **asdict(self.audio)},  # type: ignore[call-overload]
            "frames": asdict(self.reader),
            "bad_clips": self.bad_clips.rules,
            "validation": self.validation,
            "validation_seed": self.validation_seed,
            "recipe_version": RECIPE_VERSION,
        }
        rows = {split: [_plain(clip) for clip in clips] for split, clips in listing.clips.items()}
        signature = sha256([listing.kind, listing.class_names, settings, rows])
        folders = [m.path for part in listing.clips.values() for c in part if (m := c.visual) and m.path.is_dir()]
        about = {**settings, **listing.about}
        return Source(listing.kind, signature, about, lambda: self._with_validation(listing), lambda: folders)

    def _with_validation(self, listing: Listing) -> Listing:
        clips = listing.clips
        if ("val" in clips) != (self.validation == "list") and self.validation != "test":
            mend = "list or test" if "val" in clips else "a share of the training clips, or test"
            raise UserError(f"dataset.validation={self.validation}: {self.name} takes {mend}")
        if self.validation == "test":
            log.warning(
                "%s: validation=test chooses checkpoints on the test clips, as the original works do: such a score is "
                "no estimate for unseen clips, report it beside one with a share",
                self.name,
            )
        if not isinstance(self.validation, float):
            kept = {split: part for split, part in clips.items() if split != "val" or self.validation == "list"}
            return replace(listing, clips=kept)
        labels = np.array([clip.label for clip in clips["train"]])
        n_val = round(self.validation * len(labels))
        parts = stratified_split(labels, (len(labels) - n_val, n_val), self.validation_seed)
        carved = {split: [clips["train"][i] for i in rows] for split, rows in zip(("train", "val"), parts)}
        return replace(listing, clips={**carved, "test": clips["test"]})

    def pack(self, source: Source) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        listing = source.load()
        problems = {split: {i: p for i, c in enumerate(v) if (p := _lacks(c))} for split, v in listing.clips.items()}
        names = {split: [clip.name for clip in clips] for split, clips in listing.clips.items()}
        self.bad_clips.judge(self.name, names, problems)
        decoded = {split: self._decode(split, clips, problems[split]) for split, clips in listing.clips.items()}
        left_out = self.bad_clips.judge(self.name, names, problems)
        splits = {}
        for split, clips in listing.clips.items():
            rows = np.array([i for i in range(len(clips)) if i not in problems[split]], dtype=np.int64)
            target = np.array([clips[i].label for i in rows], dtype=np.int64)
            if not len(rows):
                raise UserError(f"{self.name}: no clip of split '{split}' can be used, see the messages above")
            check_classes(split, target, len(listing.class_names), f"the clips of {self.name}")
            files = decoded[split]
            splits[split] = {
                "audio": files["audio"],
                "audio.rows": rows,
                "visual": files["visual"],
                "visual.rows": rows,
                "visual.counts": np.load(files["visual.counts"])[rows],
                "target": target,
                "name": np.array([clips[i].name for i in rows]),
            }
        if self.validation == "test" and "val" not in splits:
            # The store moves its files, so that each split needs its own.
            copies = {name: _copy(part) if isinstance(part, Path) else part for name, part in splits["test"].items()}
            splits["val"] = copies
        about = {"kind": source.kind, **source.about}
        return splits, {"class_names": listing.class_names, "source": about, "left_out": left_out}

    def _decode(self, split: str, clips: Sequence[Clip], problems: dict[int, ClipProblem]) -> dict[str, Path]:
        """Decode the good clips of a split; adds to the ``problems`` of its rows."""
        keep_silent = self.bad_clips.keep_silent

        def sound(row: int) -> tuple[np.ndarray]:
            clip, media = clips[row], clips[row].audio
            assert media
            # A sound file beside frames is cut already.
            whole = media.path.suffix.lower() in SOUND_SUFFIXES
            start, end = (None, None) if whole else (clip.start, clip.end)
            return (hear(self.audio, media.path, start, end, keep_silent),)

        def sight(row: int) -> tuple[np.ndarray, np.int64]:
            clip, media = clips[row], clips[row].visual
            assert media
            return self.reader(media.path, clip.start, clip.end)

        found: dict[str, Path] = {}
        jobs: list[tuple[str, Callable[[int], Sequence[Any]], dict[str, Any], object]] = [
            ("audio", sound, {"": self.audio.stored}, [self.audio, keep_silent]),
            ("visual", sight, self.reader.arrays, self.reader),
        ]
        for name, read, arrays, settings in jobs:
            media = [clip.audio if name == "audio" else clip.visual for clip in clips]
            nothing = (-1, -1)
            stats = [m.stat if m and i not in problems else nothing for i, m in enumerate(media)]
            files, bad = decode_rows(
                f"{split}-{name}",
                [repr(settings), [[clip.name, clip.start, clip.end] for clip in clips]],
                np.array(stats, dtype=np.int64),
                self.scratch,
                read,
                arrays,
                f"{name} of split '{split}'",
                "clip",
                CHUNK,
            )
            found |= {name + suffix: path for suffix, path in files.items()}
            for row, error in bad.items():
                problem = error if isinstance(error, ClipProblem) else ClipProblem("unreadable", reason(error))
                problems.setdefault(row, problem)
        return found

    def input_settings(self) -> dict[str, dict[str, Any]]:
        audio = {"front_end": {"name": type(self.audio).__name__, **asdict(self.audio)}}  # type: ignore[call-overload]
        return {"audio": audio, "visual": {"fps": self.fps, "skip_first": self.frames.skip_first}}

    # ---- batches -----------------------------------------------------------------------------------------------------

    def pixels(self, name: str, images: Tensor) -> Tensor:
        mean, deviation = (images.new_tensor(v)[:, None, None] for v in (self.frames.mean, self.frames.deviation))
        return (images * deviation + mean).clamp(0, 1)

    def choose(self) -> Mapping[str, Choose]:
        return {"visual": self.frames.choose}

    def transform(self, train: bool) -> Transform:
        def finish(inputs: dict[str, Tensor], generator: torch.Generator | None) -> dict[str, Tensor]:
            audio, visual = inputs["audio"], inputs["visual"]
            return {"audio": self.audio.finish(audio, generator), "visual": self.frames(visual, generator)}

        return finish


def _plain(clip: Clip) -> list[Any]:
    media = [None if m is None else [_place(m.path), *m.stat] for m in (clip.audio, clip.visual)]
    return [clip.name, clip.label, *media, clip.start, clip.end]


def _place(path: Path) -> str:
    """A path as it stands in signatures: the same, whether it was given as relative or as absolute."""
    absolute, here = Path(os.path.abspath(path)), Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)


def _lacks(clip: Clip) -> ClipProblem | None:
    if clip.audio is None and clip.visual is None:
        return ClipProblem("absent", "it is listed, but there is no file of that name")
    if clip.audio is None:
        return ClipProblem("no_audio", f"there is {clip.visual.path.name} alone")  # type: ignore[union-attr]
    if clip.visual is None:
        return ClipProblem("no_frames", f"there is {clip.audio.path.name} alone")
    return None


def _copy(path: Path) -> Path:
    return Path(shutil.copyfile(path, path.with_name(f"copy-{path.name}")))


def read_lines(path: Path) -> list[tuple[int, str]]:
    """(number, text) of the lines of a list that are not empty; UTF-8, with or without a byte order mark.

    Raises:
        UserError: not there, or not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}): restore it from the published lists") from None
    return [(i, line.strip()) for i, line in enumerate(text.splitlines(), 1) if line.strip()]


def find_file(name: str, folders: Sequence[Path], what: str, key: str) -> Path:
    """The first file of that name in some folders.

    Raises:
        UserError: none; names the folders and the ``key`` to set.
    """
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"no {name} ({what}) in {' or '.join(map(str, folders)) or 'any folder'}: put it there, or set {key} to "
        "its folder"
    )


def note_counts(name: str, clips: Mapping[str, Sequence[Clip]], published: Mapping[str, int | Sequence[int]]) -> None:
    """Say in the log where a list is not the published one.

    Args:
        published: split -> number of clips, or of those of each class.
    """
    for split, counts in published.items():
        n = counts if isinstance(counts, int) else sum(counts)
        if len(clips[split]) != n:
            log.warning("%s: %d clips are listed for %s, %d were published", name, len(clips[split]), split, n)
        elif not isinstance(counts, int):
            found = np.bincount([clip.label for clip in clips[split]], minlength=len(counts)).tolist()
            if found != list(counts):
                log.warning(
                    "%s: %s has %s clips a class, the published list %s: were labels changed?",
                    name,
                    split,
                    found,
                    list(counts),
                )

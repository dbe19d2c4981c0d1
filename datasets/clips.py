"""Base of the data sets of clips with sound and frames: CREMA-D, Kinetics-Sound and AVE.

A data set lists its clips (:mod:`datasets.clip_listing`). Here their sound and frames are decoded once into the packed
store (:mod:`datasets.readers.audio`, :mod:`datasets.readers.video`), resumably; clips that cannot be used are counted,
named, and refused or left out as the configuration specifies (:mod:`datasets.bad_clips`). Batches hold ``audio`` as the
front end makes it and ``visual``, (B, T, 3, side, side).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.bad_clips import BadClips
from datasets.batch import Modality
from datasets.clip_listing import Clip, Listing
from datasets.loader import Choose, Transform
from datasets.readers.audio import SOUND_SUFFIXES, ClipProblem, FrontEnd, hear
from datasets.readers.images import decode_rows
from datasets.readers.video import ClipReader, Frames
from datasets.scale import Scale
from datasets.source import Source, SourcedDataModule, check_classes, sample_rows, sha256
from datasets.splits import stratified_split
from utils.errors import UserError, first_line

log = logging.getLogger(__name__)

RECIPE_VERSION = 1
CHUNK = 32  # clips between two updates of the progress file


class ClipModule(SourcedDataModule):
    """Data set of clips; subclasses list them with :meth:`find_clips`.

    Args:
        store: folder of the packed store; not the folder of the raw files.
        root: folder with the clips.
        lists: folder with the published lists, None = ``root``.
        demo: ``root`` holds demo data, whose counts differ from the published ones.
        audio: the front end, see :mod:`datasets.readers.audio`.
        frames: which frames a batch gets, and their transforms.
        stored_side: of the frames in the store, in pixels, from which training crops are cut.
        stored_frames: maximum number of frames to store per clip.
        least_frames: a clip with fewer frames has the problem ``few_frames``.
        fps: frames per second.
        bad_clips: see :class:`BadClips`.
        validation: share of the training clips that becomes the validation split, drawn by class; ``test``: the test
            clips, on which the original works choose their checkpoint; ``list``: the clips that the source lists.
        validation_seed: of that draw.
        **kwargs: see :class:`datasets.base.MultimodalDataModule`.
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
        """The folder with the clips, and the folders in which lists are looked up."""
        return self.root, [folder for folder in (None if self.demo else self.lists, self.root) if folder]

    def find_clips(self) -> Listing:
        """List the clips of the data set.

        Raises:
            UserError: no clips, with what was looked for; or a list that cannot be read.
        """
        raise AssertionError("a data set of clips implements find_clips()")

    def find_source(self) -> Source:
        listing = self.find_clips()
        if empty := [split for split, clips in listing.clips.items() if not clips]:
            raise UserError(f"{self.name}: no clips are listed for {', '.join(empty)}: restore the published lists")
        self.class_names = listing.class_names
        settings = {
            "audio": {"front_end": type(self.audio).__name__, **asdict(self.audio)},  # type: ignore[call-overload]
            "frames": asdict(self.reader),
            "bad_clips": self.bad_clips.rules,
            "validation": self.validation,
            "validation_seed": self.validation_seed,
            "recipe_version": RECIPE_VERSION,
        }
        rows = {split: [clip.plain_values() for clip in clips] for split, clips in listing.clips.items()}
        signature = sha256([listing.kind, listing.class_names, settings, rows])
        folders = [m.path for part in listing.clips.values() for c in part if (m := c.visual) and m.path.is_dir()]
        about = {**settings, **listing.about}
        return Source(listing.kind, signature, about, lambda: self._with_validation(listing), lambda: folders)

    def _with_validation(self, listing: Listing) -> Listing:
        clips = listing.clips
        if ("val" in clips) != (self.validation == "list") and self.validation != "test":
            options = "list or test" if "val" in clips else "a share of the training clips, or test"
            raise UserError(f"dataset.validation={self.validation}: {self.name} takes {options}")
        if self.validation == "test":
            log.warning(
                "%s: validation=test chooses checkpoints on the test clips, as the original works do: such a score is "
                "no estimate for unseen clips, report it beside one with a share",
                self.name,
            )
        if not isinstance(self.validation, float):
            used = {split: part for split, part in clips.items() if split != "val" or self.validation == "list"}
            return replace(listing, clips=used)
        labels = np.array([clip.label for clip in clips["train"]])
        n_val = round(self.validation * len(labels))
        parts = stratified_split(labels, (len(labels) - n_val, n_val), self.validation_seed)
        train, val = ([clips["train"][i] for i in rows] for rows in parts)
        return replace(listing, clips={"train": train, "val": val, "test": clips["test"]})

    def shorten(self, content: Listing, rows: int) -> tuple[Listing, dict[str, int]]:
        clips = {
            split: [part[i] for i in sample_rows(np.array([clip.label for clip in part]), rows)]
            for split, part in content.clips.items()
        }
        return replace(content, clips=clips), {split: len(part) for split, part in content.clips.items()}

    def pack(self, source: Source) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        listing = source.load()
        problems = {
            split: {i: problem for i, clip in enumerate(clips) if (problem := _absent_media(clip))}
            for split, clips in listing.clips.items()
        }
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
            # The store moves files, so that every split needs its own copy.
            splits["val"] = {
                name: _copy(part) if isinstance(part, Path) else part for name, part in splits["test"].items()
            }
        about = {"kind": source.kind, **source.about}
        return splits, {"class_names": listing.class_names, "source": about, "left_out": left_out}

    def _decode(self, split: str, clips: Sequence[Clip], problems: dict[int, ClipProblem]) -> dict[str, Path]:
        """Decode the clips of a split without a problem; adds to the ``problems`` of its rows."""
        keeps_silent = self.bad_clips.keeps_silent

        def sound(row: int) -> tuple[np.ndarray]:
            clip, media = clips[row], clips[row].audio
            assert media
            # A sound file beside frames is already cut.
            is_cut = media.path.suffix.lower() in SOUND_SUFFIXES
            start, end = (None, None) if is_cut else (clip.start, clip.end)
            return (hear(self.audio, media.path, start, end, keeps_silent),)

        def sight(row: int) -> tuple[np.ndarray, np.int64]:
            clip, media = clips[row], clips[row].visual
            assert media
            return self.reader(media.path, clip.start, clip.end)

        decoded: dict[str, Path] = {}
        jobs: list[tuple[str, Callable[[int], Sequence[Any]], dict[str, Any], object]] = [
            ("audio", sound, {"": self.audio.stored}, [self.audio, keeps_silent]),
            ("visual", sight, self.reader.arrays, self.reader),
        ]
        for name, read, arrays, settings in jobs:
            media = [clip.audio if name == "audio" else clip.visual for clip in clips]
            stats = [m.stat if m and i not in problems else (-1, -1) for i, m in enumerate(media)]
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
            decoded |= {name + suffix: path for suffix, path in files.items()}
            for row, error in bad.items():
                problem = error if isinstance(error, ClipProblem) else ClipProblem("unreadable", first_line(error))
                problems.setdefault(row, problem)
        return decoded

    def input_settings(self) -> dict[str, dict[str, Any]]:
        audio = {"front_end": {"name": type(self.audio).__name__, **asdict(self.audio)}}  # type: ignore[call-overload]
        return {"audio": audio, "visual": {"fps": self.fps, "skip_first": self.frames.skip_first}}

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


def _absent_media(clip: Clip) -> ClipProblem | None:
    if clip.audio is None and clip.visual is None:
        return ClipProblem("absent", "it is listed, but no file has its name")
    if clip.audio is None:
        return ClipProblem("no_audio", f"only {clip.visual.path.name} exists")  # type: ignore[union-attr]
    if clip.visual is None:
        return ClipProblem("no_frames", f"only {clip.audio.path.name} exists")
    return None


def _copy(path: Path) -> Path:
    return Path(shutil.copyfile(path, path.with_name(f"copy-{path.name}")))

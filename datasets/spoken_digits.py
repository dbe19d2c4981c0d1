"""Spoken and written digits: a recording and an image of a digit, paired by class.

Recordings of the Free Spoken Digit Dataset (https://github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0):
``{digit}_{speaker}_{take}.wav``, 8 kHz, 6 speakers with 50 takes of each digit; images of MNIST. The modalities share
only the label, and no item is in two splits: validation and test have their own images, and recordings by held-out
speakers (``protocol=speakers``) or held-out takes of the same speakers (``official``: takes 0 to 4 are the test split
of the authors, 5 to 9 our validation split).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.bad_clips import BadClips
from datasets.base import SPLITS
from datasets.batch import Modality
from datasets.loader import Transform
from datasets.readers.audio import ClipProblem, FrontEnd, hear
from datasets.readers.images import decode_rows
from datasets.readers.mnist import CLASSES, SIDE, mnist_files, read_mnist
from datasets.source import Arrays, Source, SourcedDataModule, check_classes, file_stats, sample_rows, sha256
from datasets.splits import stratified_split
from utils.errors import UserError, first_line

RECIPE_VERSION = 1
VAL_IMAGES = 1 / 12  # of the training images of MNIST: 5,000
OFFICIAL_TEST, OFFICIAL_VAL = 5, 10  # takes 0 to 4 are the test split, 5 to 9 the validation split
_FILE_NAME = re.compile(r"(\d)_(.+)_(\d+)\.wav")


@dataclass(frozen=True)
class Recording:
    """A file with one digit, 0 to 9."""

    path: Path
    digit: int
    speaker: str
    take: int


def find_recordings(folder: Path) -> list[Recording]:
    """Recordings in a folder, sorted by name.

    Raises:
        UserError: no recording, or a sound file of another name.
    """
    recordings, others = [], []
    for file in sorted(folder.glob("*.wav")) if folder.is_dir() else []:
        match = _FILE_NAME.fullmatch(file.name)
        if match:
            recordings.append(Recording(file, int(match[1]), match[2], int(match[3])))
        elif not file.name.startswith("."):
            others.append(file.name)
    if others:
        raise UserError(
            f"{folder} holds {others[0]} ({len(others)} such files), expected {{digit}}_{{speaker}}_{{take}}.wav: move "
            "them away"
        )
    if not recordings:
        raise UserError(f"{folder} holds no {{digit}}_{{speaker}}_{{take}}.wav: name the folder 'recordings'")
    return recordings


def speakers_of(
    recordings: Sequence[Recording], option: Sequence[int] | Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """Split -> its speakers.

    Args:
        option: number of speakers of train, val and test, in alphabetical order; or split -> names.

    Raises:
        UserError: an unknown speaker, a speaker in two splits, a split without speakers, or too few speakers.
    """
    speakers = sorted({recording.speaker for recording in recordings})
    if not isinstance(option, Mapping):
        sizes = list(option)
        if len(sizes) != len(SPLITS) or min(sizes) < 1 or sum(sizes) > len(speakers):
            raise UserError(
                f"dataset.speakers={sizes}: there are {len(speakers)} speakers ({', '.join(speakers)}), give the "
                "numbers of speakers of train, val and test, 1 or more each"
            )
        ends = np.cumsum(sizes)
        return {split: speakers[end - n : end] for split, n, end in zip(SPLITS, sizes, ends)}
    chosen = {split: list(option.get(split, [])) for split in SPLITS}
    names = [name for part in chosen.values() for name in part]
    unknown, repeated = sorted(set(names) - set(speakers)), sorted({n for n in names if names.count(n) > 1})
    empty = [split for split, part in chosen.items() if not part]
    if unknown or repeated or empty or set(option) - set(SPLITS):
        problem = (
            f"there is no speaker {unknown[0]}, only {', '.join(speakers)}"
            if unknown
            else f"{repeated[0]} is named twice"
            if repeated
            else f"no speaker for {empty[0]}"
            if empty
            else f"splits are {', '.join(SPLITS)}"
        )
        raise UserError(f"dataset.speakers: {problem}; name each speaker once, one or more for each split")
    return chosen


def pair_with_images(
    digits: np.ndarray, labels: np.ndarray, pairings: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Pair every recording with ``pairings`` images of its class; images repeat once all of the class were used.

    Args:
        digits: (N,) of the recordings.
        labels: (I,) of the images.

    Returns:
        Row numbers of the recordings and of the images, (pairings N,) each; the recordings repeat in their order.

    Raises:
        UserError: no image of a class.
    """
    images = np.empty((pairings, len(digits)), dtype=np.int64)
    for digit in np.unique(digits):
        rows, candidates = np.flatnonzero(digits == digit), rng.permutation(np.flatnonzero(labels == digit))
        if not len(candidates):
            raise UserError(f"no image of the digit {digit} to pair its recordings with: restore the files of MNIST")
        images[:, rows] = np.resize(candidates, (pairings, len(rows)))
    return np.tile(np.arange(len(digits)), pairings), images.flatten()


class SpokenDigits(SourcedDataModule):
    """Recordings of the Free Spoken Digit Dataset paired with images of MNIST.

    Args:
        store: folder of the packed store; not the folder of the raw files.
        audio: the front end, see :mod:`datasets.readers.audio`.
        recordings: folder with the wav files.
        mnist: folder with the four idx files, plain or .gz.
        root: folder of the demo data, with ``demo`` only.
        demo: use demo data.
        protocol: ``speakers`` or ``official``, see the module.
        speakers: see :func:`speakers_of`; for ``protocol=speakers``.
        pairings: images per training recording; validation and test recordings have one.
        pair_seed: of the pairs and of the division of the training images.
        bad_clips: see :class:`datasets.bad_clips.BadClips`.
        **kwargs: see :class:`datasets.base.MultimodalDataModule`.
    """

    paths = ("recordings", "mnist", "root")
    folders = ("mnist",)
    name = "SpokenDigits"
    modalities = [Modality("audio", "audio", ()), Modality("image", "image", (1, SIDE, SIDE))]
    class_names = [str(digit) for digit in range(CLASSES)]
    task = "multiclass"

    def __init__(
        self,
        *,
        store: str,
        audio: FrontEnd,
        recordings: str | None = None,
        mnist: str | None = None,
        root: str | None = None,
        demo: bool = False,
        protocol: str = "speakers",
        speakers: Sequence[int] | Mapping[str, Sequence[str]] = (4, 1, 1),
        pairings: int = 5,
        pair_seed: int = 2025,
        bad_clips: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(store, **kwargs)
        if protocol not in ("speakers", "official"):
            raise UserError(f"dataset.protocol={protocol}: must be speakers or official")
        if pairings < 1:
            raise UserError(f"dataset.pairings={pairings}: it must be 1 or more")
        self.audio, self.demo = audio, demo
        self.recordings = None if recordings is None else Path(recordings)
        self.mnist = None if mnist is None else Path(mnist)
        self.root = None if root is None else Path(root)
        self.protocol, self.speakers, self.pairings, self.pair_seed = protocol, speakers, pairings, pair_seed
        self.bad_clips = BadClips(bad_clips)
        self.modalities = [
            Modality("audio", "audio", audio.shape, scale=audio.scale),
            Modality("image", "image", (1, SIDE, SIDE)),
        ]

    def find_source(self) -> Source:
        """
        Raises:
            UserError: no recordings or no images, or ``speakers`` does not fit the recordings.
        """
        recordings_folder, mnist = self.recordings, self.mnist
        if self.demo:
            assert self.root is not None
            recordings_folder, mnist = self.root / "recordings", self.root / "mnist"
        if recordings_folder is None or mnist is None:
            raise UserError(
                "no spoken digits: set dataset.recordings to the folder with {digit}_{speaker}_{take}.wav of the Free "
                "Spoken Digit Dataset and dataset.mnist to one with the four idx files of MNIST, or dataset.demo=true "
                "to try it"
            )
        files, recordings = mnist_files(mnist), find_recordings(recordings_folder)
        split_of = self._division(recordings)
        settings = {
            "audio": {"front_end": type(self.audio).__name__, **asdict(self.audio)},  # type: ignore[call-overload]
            "protocol": self.protocol,
            "speakers": {split: sorted({r.speaker for r in recordings if split_of(r) == split}) for split in SPLITS},
            "pairings": self.pairings,
            "pair_seed": self.pair_seed,
            "bad_clips": self.bad_clips.rules,
            "recipe_version": RECIPE_VERSION,
        }
        stats = file_stats({**files, **{r.path.name: r.path for r in recordings}})
        return Source(
            "recordings+mnist",
            sha256([settings, stats]),
            settings,
            lambda: (files, [(r, split) for r in recordings if (split := split_of(r))]),
        )

    def input_settings(self) -> dict[str, dict[str, Any]]:
        return {"audio": {"front_end": {"name": type(self.audio).__name__, **asdict(self.audio)}}}  # type: ignore[call-overload]

    def _division(self, recordings: Sequence[Recording]) -> Any:
        """Function from a recording to its split, None = not used."""
        if self.protocol == "speakers":
            chosen = speakers_of(recordings, self.speakers)
            split = {speaker: s for s, speakers in chosen.items() for speaker in speakers}
            return lambda r: split.get(r.speaker)
        return lambda r: "test" if r.take < OFFICIAL_TEST else "val" if r.take < OFFICIAL_VAL else "train"

    def shorten(self, content: Any, rows: int) -> tuple[Any, dict[str, int]]:
        files, divided = content
        short, counts = [], {}
        for split in SPLITS:
            part = [(recording, s) for recording, s in divided if s == split]
            short += [part[i] for i in sample_rows(np.array([recording.digit for recording, _ in part]), rows)]
            counts[split] = len(part) * (self.pairings if split == "train" else 1)
        return (files, short), counts

    def pack(self, source: Source) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        files, divided = source.load()
        recordings = [recording for recording, _ in divided]
        stored, problems = self._decode(recordings)
        rows_of = {split: [i for i, (_, s) in enumerate(divided) if s == split] for split in SPLITS}
        left_out = self.bad_clips.judge(
            self.name,
            {split: [recordings[i].path.stem for i in rows] for split, rows in rows_of.items()},
            {split: {k: problems[i] for k, i in enumerate(rows) if i in problems} for split, rows in rows_of.items()},
        )
        images, labels = read_mnist(files, "train")
        n_val = max(CLASSES, round(VAL_IMAGES * len(labels)))
        parts = stratified_split(labels, (len(labels) - n_val, n_val), self.pair_seed)
        written = {split: (images[rows], labels[rows]) for split, rows in zip(("train", "val"), parts)}
        written["test"] = read_mnist(files, "test")
        splits = {}
        for number, split in enumerate(SPLITS):
            good = [i for i in rows_of[split] if i not in problems]
            if not good:
                raise UserError(f"{self.name}: no recording for split '{split}': give more takes or speakers")
            digits = np.array([recordings[i].digit for i in good], dtype=np.int64)
            check_classes(split, digits, CLASSES, "the recordings")
            rng = np.random.default_rng([self.pair_seed, number])
            pairings = self.pairings if split == "train" else 1
            audio_rows, image_rows = pair_with_images(digits, written[split][1], pairings, rng)
            used, pointers = np.unique(image_rows, return_inverse=True)
            arrays: Arrays = {
                "audio": stored[good],
                "audio.rows": audio_rows,
                "image": written[split][0][used][:, None],
                "image.rows": pointers.astype(np.int64),
                "target": digits[audio_rows],
                "name": np.array([recordings[i].path.stem for i in good])[audio_rows],
            }
            splits[split] = arrays
        about = {"kind": source.kind, **source.about}
        return splits, {"class_names": self.class_names, "source": about, "left_out": left_out}

    def _decode(self, recordings: Sequence[Recording]) -> tuple[np.ndarray, dict[int, ClipProblem]]:
        """Stored values of the recordings, and the problem of each row that has one."""
        keeps_silent = self.bad_clips.keeps_silent

        def sound(row: int) -> tuple[np.ndarray]:
            return (hear(self.audio, recordings[row].path, None, None, keeps_silent),)

        statuses = [os.stat(r.path) for r in recordings]
        stats = np.array([(s.st_size, s.st_mtime_ns) for s in statuses], dtype=np.int64).reshape(-1, 2)
        key = [repr(self.audio), keeps_silent, [r.path.name for r in recordings]]
        files, bad = decode_rows(
            "recordings", key, stats, self.scratch, sound, {"": self.audio.stored}, "recordings", "file"
        )
        problems = {
            row: error if isinstance(error, ClipProblem) else ClipProblem("unreadable", first_line(error))
            for row, error in bad.items()
        }
        return np.load(files[""], mmap_mode="r"), problems

    def transform(self, train: bool) -> Transform:
        def finish(inputs: dict[str, Tensor], generator: torch.Generator | None) -> dict[str, Tensor]:
            return {**inputs, "audio": self.audio.finish(inputs["audio"], generator)}

        return finish

"""Sound and video of a data set from one CSV file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.batch import Modality
from datasets.loader import Choose, Transform
from datasets.modality_parts.base import About, Packed, one_of, positive
from datasets.modality_parts.files import (
    FilePart,
    Spec,
    chunks_of,
    fitted_normalisation,
    normalisation_problems,
)
from datasets.readers.audio import LogMel, hear
from datasets.readers.video import ClipReader, Frames
from datasets.row_encoder import RowEncoder
from datasets.scale import Scale


class AudioPart(FilePart):
    """Sound files, or the sound of videos, as log-mel spectrograms (:class:`datasets.readers.audio.LogMel`).

    Args:
        seconds: of every recording; longer ones are cut, shorter ones padded.
        rate: samples per second (Hz) to which recordings are resampled.
        mel_bins: number of mel filters.
        silent: silent recordings count as content (``keep``), or as files that cannot be read (``refuse``).
        normalisation: of the logarithms, see :class:`datasets.modality_parts.image.ImagePart`.
        **files: see :class:`FilePart`.
    """

    kind = modality_kind = "audio"
    noun = "sound"

    def __init__(
        self,
        name: str,
        keys: Mapping[str, str] | None = None,
        *,
        seconds: float = 10.24,
        rate: int = 16_000,
        mel_bins: int = 128,
        silent: str = "keep",
        normalisation: str | Mapping[str, Sequence[float]] = "train",
        **files: Any,
    ) -> None:
        super().__init__(name, keys, **files)
        self.silent, self.normalisation = silent, normalisation
        problems = self.file_problems() + positive("rate", rate) + positive("mel_bins", mel_bins)
        problems += one_of("silent", silent, ("keep", "refuse")) + normalisation_problems(normalisation, 1)
        if not isinstance(seconds, int | float) or seconds < 0.01:
            problems.append(f"seconds={seconds}: must be a number of 0.01 or more")
        self.refuse(problems)
        # Mean 0 and deviation 0.5 leave the logarithms as they are: (x - mean) / (2 deviation).
        self.front_end: Any = LogMel(round(seconds * 100), mel_bins, mean=0.0, deviation=0.5, rate=rate)

    def reading_settings(self) -> Any:
        # Earlier windows had the lengths in samples of 16 kHz.
        windows = [] if self.front_end.rate == 16_000 else ["25 ms"]
        return [asdict(self.front_end), self.silent, self.normalisation, *windows]

    @property
    def spec(self) -> Spec:
        return {"": (self.front_end.shape, np.float32)}

    def read(self, path: Path) -> Sequence[Any]:
        return (hear(self.front_end, path, None, None, self.silent == "keep"),)

    def fit(self, items: Mapping[str, np.ndarray], train: np.ndarray) -> dict[str, Any]:
        return fitted_normalisation(self.normalisation, (c[..., None] for c in chunks_of(items[""], train)), 1)

    def modality(self, about: About) -> Modality:
        scale = Scale(tuple(about["mean"]), tuple(about["deviation"]), time=0)
        return Modality(self.name, "audio", self.front_end.shape, scale=scale)

    def input_settings(self, about: About) -> dict[str, Any]:
        return {"front_end": {"name": "LogMel", **asdict(self.front_end)}}

    def transform(self, about: About, train: bool) -> Transform:
        scale = self.modality(about).scale

        def standardise(inputs: dict[str, Tensor], generator: torch.Generator | None) -> dict[str, Tensor]:
            return {**inputs, self.name: scale.write(inputs[self.name])}

        return standardise


class VideoPart(FilePart):
    """Video files, or folders of frames: some frames of every clip.

    Args:
        frames: T, frames that a model gets.
        side: of these, in pixels.
        stored_side: of the frames in the store; None = ``side``.
        stored_frames: maximum number of frames to store per clip.
        fps: frames per second of video files.
        crop_scale: area share of the random crops of training frames; None = no crops.
        flip_rate: share of the training frames flipped left to right.
        normalisation: of each channel, see :class:`datasets.modality_parts.image.ImagePart`.
        **files: see :class:`FilePart`.
    """

    kind = modality_kind = "video"
    noun = "clip"
    read_time = ("frames", "crop_scale", "flip_rate")

    def __init__(
        self,
        name: str,
        keys: Mapping[str, str] | None = None,
        *,
        frames: int = 3,
        side: int = 112,
        stored_side: int | None = None,
        stored_frames: int = 10,
        fps: float = 1,
        crop_scale: Sequence[float] | None = None,
        flip_rate: float = 0.0,
        normalisation: str | Mapping[str, Sequence[float]] = "train",
        **files: Any,
    ) -> None:
        super().__init__(name, keys, **files)
        self.normalisation = normalisation
        stored_side = side if stored_side is None else stored_side
        problems = self.file_problems() + normalisation_problems(normalisation, 3)
        for key, value in (("frames", frames), ("side", side), ("stored_frames", stored_frames)):
            problems += positive(key, value)
        if positive("", stored_side) or (not positive("", side) and stored_side < side):
            problems.append(f"stored_side={stored_side}: frames are stored no smaller than side={side}")
        if fps <= 0:
            problems.append(f"fps={fps}: must be above 0")
        self.refuse(problems)
        self.reader = ClipReader(stored_side, stored_frames, fps=fps)
        crop = None if crop_scale is None else (float(crop_scale[0]), float(crop_scale[1]))
        try:
            self.frames = Frames(frames, side, crop_scale=crop, flip_rate=flip_rate)
        except ValueError as error:
            self.refuse([f"crop_scale, flip_rate: {error}"])

    def reading_settings(self) -> Any:
        return [asdict(self.reader), self.normalisation]

    @property
    def spec(self) -> Spec:
        return self.reader.arrays

    def read(self, path: Path) -> Sequence[Any]:
        return self.reader(path)

    def fit(self, items: Mapping[str, np.ndarray], train: np.ndarray) -> dict[str, Any]:
        chunks = (items[""][row, : items[".counts"][row]].transpose(0, 2, 3, 1) / 255 for row in train)
        return fitted_normalisation(self.normalisation, chunks, 3)

    def packed(
        self,
        decoded: Mapping[str, Path],
        opened: Mapping[str, np.ndarray],
        items: np.ndarray,
        absent: np.ndarray,
        about: dict[str, Any],
    ) -> Packed:
        return Packed({".counts": opened[".counts"][items]}, absent, about, files={"": decoded[""]}, items=items)

    def modality(self, about: About) -> Modality:
        shape = (self.frames.count, 3, self.frames.side, self.frames.side)
        return Modality(self.name, "video", shape, scale=Scale(tuple(about["mean"]), tuple(about["deviation"])))

    def input_settings(self, about: About) -> dict[str, Any]:
        return {"fps": self.reader.fps}

    def choose(self) -> Choose:
        return self.frames.choose

    def transform(self, about: About, train: bool) -> Transform:
        scale = self.modality(about).scale

        def finish(inputs: dict[str, Tensor], generator: torch.Generator | None) -> dict[str, Tensor]:
            return {**inputs, self.name: scale.write(self.frames(inputs[self.name], generator if train else None))}

        return finish

    def encode(self, encoder: RowEncoder, folder: Path, about: About) -> dict[str, np.ndarray]:
        arrays = super().encode(encoder, folder, about)
        counts = f"{self.name}.counts"
        return arrays | {counts: np.maximum(arrays[counts], 1)}  # a row without a clip has a black frame

"""Videos and folders of frames to a few frames per clip, one per second, decoded once.

Frames are chosen by ffmpeg's filter ``fps=1``, run with PyAV, which also wrote the frame folders of the original works.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from datasets.readers.audio import BROKEN, ClipProblem, unreadable
from datasets.readers.images import ImageReader
from datasets.readers.pictures import UNREADABLE, frame_files
from datasets.transforms import crop_boxes, resample, resize
from utils.errors import first_line
from utils.limits import advice, limit

SMALLEST_FRAME = 10_000  # pixels that a smaller frame counts as: frames take time, too
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".flv", ".mov")  # in order of preference


def extract_frames(
    path: Path, fps: float = 1, start: float | None = None, end: float | None = None
) -> list[Image.Image]:
    """Extract the frames that ``ffmpeg -vf fps=<fps>`` writes, RGB.

    Args:
        start, end: of the part to read, in seconds; None = beginning, end.

    Raises:
        ClipProblem: unreadable, no video track, no frame (such as a part shorter than half of 1 / fps), or over the
            limit of pixels of a clip (:mod:`utils.limits`).
    """
    rate = str(Fraction(fps).limit_denominator(1000))
    pictures: list[Image.Image] = []
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise ClipProblem("no_frames", "no video track")
            stream = container.streams.video[0]
            graph = av.filter.Graph()
            sink = graph.add("buffersink")
            thinned = graph.add("fps", rate)
            graph.add_buffer(template=stream).link_to(thinned)
            thinned.link_to(sink)
            graph.configure()

            def drain() -> None:
                while True:
                    try:
                        frame = sink.pull()
                        assert isinstance(frame, av.VideoFrame)
                        _check_size(len(pictures) + 1, frame.width, frame.height)  # the last frame can last long
                        pictures.append(frame.to_image())
                    except (av.BlockingIOError, av.EOFError):
                        return

            origin = float(stream.start_time * stream.time_base) if stream.start_time and stream.time_base else 0.0
            before = None
            for frame in container.decode(stream):
                time = (frame.time or 0.0) - origin
                if end is not None and time >= end:
                    break
                if start is None or time >= start:
                    # The filter repeats a frame until the time of the next one, which damage can put centuries later.
                    if frame.time is not None:
                        repeated = 0 if before is None else max(time - before, 0) * fps
                        _check_size(len(pictures) + repeated + 1, frame.width, frame.height)
                        before = time if before is None else max(before, time)
                    graph.vpush(frame)
                    drain()
            graph.vpush(None)
            drain()
    except ClipProblem:
        raise
    except BROKEN as error:
        raise unreadable(error) from None
    if not pictures:
        raise ClipProblem("no_frames", f"no frame at {fps:g} per second")
    return pictures


def _check_size(frames: float, width: int, height: int) -> None:
    """
    Raises:
        ClipProblem: so many frames of this size are over the limit of pixels of a clip.
    """
    if frames * max(width * height, SMALLEST_FRAME) > (most := limit("CLIP_PIXELS")):
        size = f"{frames:,.0f} frames of {width} x {height} pixels"
        raise ClipProblem("unreadable", f"{size}, over the limit of pixels of a clip ({advice('CLIP_PIXELS', most)})")


def spread(n: int, count: int) -> np.ndarray:
    """Evenly spaced positions (count,) among n: the middles of ``count`` equal parts; repeats some if n < count."""
    return ((np.arange(count) + 0.5) * n / count).astype(np.int64)


@dataclass(frozen=True)
class ClipReader:
    """Reader of the frames of a video file or folder, resized to squares.

    Attributes:
        side: of the stored frames, in pixels.
        most: maximum number of frames; evenly spaced frames are chosen from longer clips.
        least: minimum number of frames.
        fps: frames per second of videos.
    """

    side: int
    most: int
    least: int = 1
    fps: float = 1

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Suffix -> shape and type of a clip's values, for :func:`datasets.readers.images.decode_rows`."""
        return {"": ((self.most, 3, self.side, self.side), np.uint8), ".counts": ((), np.int64)}

    def __call__(self, path: Path, start: float | None = None, end: float | None = None) -> tuple[np.ndarray, np.int64]:
        """
        Returns:
            (most, 3, side, side) uint8, black behind the last frame; the number of frames.

        Raises:
            ClipProblem: unreadable, or fewer than ``least`` frames.
        """
        read, size = ImageReader(self.side), (self.side, self.side)
        frames: list[Any] = frame_files(path) if path.is_dir() else extract_frames(path, self.fps, start, end)
        if len(frames) < self.least:
            kind = "few_frames" if frames else "no_frames"
            raise ClipProblem(kind, f"{len(frames)} frames" + (f", {self.least} are needed" if frames else ""))
        if len(frames) > self.most:
            frames = [frames[i] for i in spread(len(frames), self.most)]
        pixels = np.zeros((self.most, 3, self.side, self.side), dtype=np.uint8)
        for i, picture in enumerate(frames):
            if isinstance(picture, Path):
                try:
                    pixels[i] = read(picture)
                except UNREADABLE as error:
                    raise ClipProblem("unreadable", f"frame {picture.name}: {first_line(error)}") from None
            else:
                pixels[i] = np.asarray(picture.resize(size, read.resample)).transpose(2, 0, 1)
        return pixels, np.int64(len(frames))


@dataclass(frozen=True)
class Frames:
    """Choice of the frames of a clip for a batch, and their augmentation.

    Attributes:
        count: T, frames per clip, in their order: random frames in training (without repetition if the clip has T
            frames), evenly spaced frames in evaluation.
        side: of the frames that the model gets, in pixels.
        skip_first: never use the first frame of a clip with more than one (UDML on CREMA-D).
        crop_scale: area share of the random crops of training frames, drawn per frame; None = no crops.
        flip_rate: share of the training frames flipped left to right.
        mean, deviation: per channel, for standardisation; the defaults leave values in [0, 1].
    """

    count: int = 3
    side: int = 224
    skip_first: bool = False
    crop_scale: tuple[float, float] | None = None
    flip_rate: float = 0.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    deviation: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if self.count < 1 or self.side < 1:
            raise ValueError(f"count={self.count} and side={self.side} must be 1 or more")
        if not 0 <= self.flip_rate <= 1:
            raise ValueError(f"flip_rate={self.flip_rate} is outside [0, 1]")
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale={list(self.crop_scale)} must rise within (0, 1]")
        if min(self.deviation) <= 0:
            raise ValueError(f"deviation={list(self.deviation)} must be positive")

    def choose(self, counts: Tensor, generator: torch.Generator | None) -> Tensor:
        """Choose the frames of multi-frame items.

        Args:
            counts: (R,) frames per clip, 1 or more.
            generator: None = evenly spaced.

        Returns:
            Positions (R, T) int64, ascending.
        """
        first = (counts > 1).long() if self.skip_first else torch.zeros_like(counts)
        available = (counts - first)[:, None]
        middles = torch.arange(self.count, device=counts.device, dtype=torch.float64) + 0.5
        positions = (middles * available / self.count).long()
        if generator is not None:
            width = max(int(available.max()), self.count)
            keys = torch.rand(len(counts), width, generator=generator).to(counts.device)
            keys = keys.masked_fill(torch.arange(width, device=counts.device) >= available, 2)
            drawn = keys.argsort(1)[:, : self.count].sort(1).values
            positions = torch.where(available >= self.count, drawn, positions)
        return first[:, None] + positions

    def __call__(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """(B, T, 3, S, S) in [0, 1] -> (B, T, 3, side, side); augmented with a generator."""
        b, t = x.shape[:2]
        x = x.flatten(0, 1)
        if generator is not None and (self.crop_scale or self.flip_rate):
            height, width = x.shape[-2:]
            scale = self.crop_scale or (1.0, 1.0)
            ratio = (3 / 4, 4 / 3) if self.crop_scale else (width / height, width / height)
            boxes = crop_boxes(len(x), height, width, scale, ratio, generator)
            flip = torch.rand(len(x), generator=generator) < self.flip_rate
            x = resample(x, boxes, self.side, flip, torch.zeros(len(x)))
        else:
            x = resize(x, self.side)
        x = V.normalize_image(x, list(self.mean), list(self.deviation))
        return x.unflatten(0, (b, t))

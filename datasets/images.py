"""Image files -> uint8 arrays (N, C, side, side), decoded once; large sets into files, resumable."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.source import sha256
from utils.errors import UserError
from utils.files import replacing

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
CHUNK = 512  # images between two notes of progress


@dataclass(frozen=True)
class ImageReader:
    """Image file -> (channels, side, side) uint8.

    ``.npy`` files hold (H, W, channels) or (H, W), uint8 or floats in [0, 1]; all others are opened with Pillow, as
    grey (1 channel) or RGB (3).

    Attributes:
        side, channels: of the array.
        box: left, upper, right, lower edge of the part to take, None = all.
        resample: how it is brought to its size.
        fit: ``stretch`` takes all of it, whatever its aspect ratio; ``crop`` the central square, as scaling the shorter
            side and cropping the centre do.

    Raises:
        any of UNREADABLE: when called, on a file that cannot be read or is smaller than the box.
    """

    side: int
    channels: int = 3
    box: tuple[int, int, int, int] | None = None
    resample: Image.Resampling = Image.Resampling.BILINEAR
    fit: str = "stretch"

    def __call__(self, path: Path) -> np.ndarray:
        if path.suffix == ".npy":
            planes = self._planes(np.load(path, allow_pickle=False))
        else:
            with Image.open(path) as image:
                planes = image.convert({1: "L", 3: "RGB"}[self.channels]).split()
        width, height = planes[0].size
        box = self.box or (0, 0, width, height)
        if width < box[2] or height < box[3]:
            raise ValueError(f"{width}x{height} pixels, at least {box[2]}x{box[3]} are needed")
        size = (self.side, self.side)
        if self.fit == "crop":
            margin = (box[2] - box[0] - (box[3] - box[1])) / 2
            x, y = max(margin, 0), max(-margin, 0)
            square = (box[0] + x, box[1] + y, box[2] - x, box[3] - y)
            return np.stack([np.asarray(plane.resize(size, self.resample, box=square)) for plane in planes])
        return np.stack([np.asarray(plane.crop(box).resize(size, self.resample)) for plane in planes])

    def _planes(self, array: np.ndarray) -> tuple[Image.Image, ...]:
        if array.ndim == 2:
            array = array[:, :, None]
        if array.ndim != 3 or array.shape[2] != self.channels or 0 in array.shape:
            raise ValueError(f"an array of shape {array.shape}, not (H, W, {self.channels})")
        if array.dtype != np.uint8:
            if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
                raise ValueError("values outside [0, 1]")
            array = np.round(array.astype(np.float32) * 255).astype(np.uint8)
        return tuple(Image.fromarray(np.ascontiguousarray(plane)) for plane in array.transpose(2, 0, 1))


def check_sides(side: int, stored_side: int) -> None:
    """
    Raises:
        UserError: images cannot be stored at one side and used at the other.
    """
    if side < 1 or stored_side < side:
        raise UserError(
            f"dataset.side={side}, dataset.stored_side={stored_side}: sides are positive, and images are stored no "
            "smaller than they are used"
        )


def load_images(paths: Sequence[Path], read: ImageReader, what: str = "images") -> np.ndarray:
    """A few thousand image files as one array (N, C, side, side) uint8 in memory.

    Args:
        what: they are, for the progress bar and the message.

    Raises:
        UserError: how many cannot be read, and the first three with the reason.
    """
    array = np.empty((len(paths), read.channels, read.side, read.side), dtype=np.uint8)
    for _ in _fill(array, paths, np.arange(len(paths)), read, what):
        pass
    return array


def decode_images(files: Mapping[str, Sequence[Path]], folder: Path, read: ImageReader) -> dict[str, Path]:
    """Decode many image files into memory-mapped ``.npy`` files, once.

    Interrupted, it goes on where it was: beside each array stand size and time of the files decoded so far, and the
    names of both files tell what they are to hold. Files that changed meanwhile are decoded again. For one process at a
    time (:class:`datasets.source.SourcedDataModule` sees to that, and removes ``folder`` in the end).

    Args:
        files: split -> an image file a row.
        folder: of the files to write.

    Returns:
        split -> a file with its (N, C, side, side) uint8.

    Raises:
        UserError: how many files are absent, in all splits, or cannot be read, in one; what was decoded stays.
    """
    stats = {split: np.array([_stat(path) for path in paths], dtype=np.int64) for split, paths in files.items()}
    absent = {split: np.flatnonzero(there[:, 0] < 0) for split, there in stats.items()}
    if any(map(len, absent.values())):
        counts = ", ".join(
            f"{len(rows)} of {len(files[split])} in {split}" for split, rows in absent.items() if len(rows)
        )
        first = next(files[split][rows[0]] for split, rows in absent.items() if len(rows))
        raise UserError(
            f"rows without their image file: {counts}, the first is {first}; give the folder of the images "
            "(dataset.images or dataset.root), restore these files, or remove their rows from the source"
        )
    return {split: _decode(split, paths, stats[split], folder, read) for split, paths in files.items()}


def _stat(path: Path) -> tuple[int, int]:
    """Bytes and time of the last change, -1 of an absent file."""
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _decode(split: str, paths: Sequence[Path], stats: np.ndarray, folder: Path, read: ImageReader) -> Path:
    content = sha256([repr(read), [str(path) for path in paths]])[:16]
    target, state = folder / f"{split}.{content}.npy", folder / f"{split}.{content}.done.npy"
    if not (target.exists() and state.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{split}.*"):
            old.unlink()
        np.lib.format.open_memmap(target, "w+", np.uint8, (len(paths), read.channels, read.side, read.side))
        with replacing(state) as temporary:
            np.save(temporary, np.full_like(stats, -1))
    array, done = np.load(target, mmap_mode="r+"), np.load(state, mmap_mode="r+")
    todo = np.flatnonzero((done != stats).any(axis=1))
    for rows in _fill(array, paths, todo, read, f"images of split '{split}'"):
        array.flush()  # the pixels are on disk before they are noted as done
        done[rows] = stats[rows]
    return target


def _fill(
    array: np.ndarray, paths: Sequence[Path], rows: np.ndarray, read: ImageReader, what: str
) -> Iterator[np.ndarray]:
    """Decode ``paths[rows]`` into ``array[rows]``; yields the good rows of each chunk, then refuses the bad."""

    def one(row: int) -> str | None:
        try:
            array[row] = read(paths[row])
        except UNREADABLE as error:
            return f"{paths[row]} ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        return None

    bad: list[str] = []
    with (
        ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool,
        tqdm(total=len(paths), initial=len(paths) - len(rows), desc=f"decoding {what}", unit="image") as progress,
    ):
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            problems = list(pool.map(one, chunk.tolist()))
            bad += [problem for problem in problems if problem]
            progress.update(len(chunk))
            yield chunk[[not problem for problem in problems]]
    if bad:
        more = f", and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise UserError(
            f"{len(bad)} of {len(paths)} {what} cannot be read: {'; '.join(bad[:3])}{more}; restore these files, or "
            "remove them from the source"
        )

"""Image files to uint8 arrays (N, C, side, side), decoded once; large sets into files, resumably."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets.readers.pictures import PICTURE_RULES, UNREADABLE, open_picture
from datasets.source import sha256
from utils.errors import UserError, first_line
from utils.files import load_arrays, replacing, reserve
from utils.progress import Progress

CHUNK = 512  # images between two updates of the progress file

FITS = ("crop", "stretch")

Bad = dict[int, Exception]  # row -> error of its decoding


@dataclass(frozen=True)
class ImageReader:
    """Reader of image files as (channels, side, side) uint8.

    ``.npy`` files hold (H, W, channels) or (H, W), uint8 or floats in [0, 1]; all others are opened with Pillow, as
    grey (1 channel) or RGB (3), with :func:`datasets.readers.pictures.open_picture`.

    Attributes:
        side, channels: of the array.
        box: left, upper, right, lower edge of the part to read, None = all.
        resample: resampling filter.
        fit: ``stretch`` resizes the complete part, whatever its aspect ratio; ``crop`` its central square.
        bits: in use of 16-bit files, see :func:`datasets.readers.pictures.open_picture`.

    Raises:
        any of UNREADABLE: when called on a file that cannot be read or is smaller than the box.
    """

    side: int
    channels: int = 3
    box: tuple[int, int, int, int] | None = None
    resample: Image.Resampling = Image.Resampling.BILINEAR
    fit: str = "stretch"
    bits: int | None = None

    def __call__(self, path: Path) -> np.ndarray:
        if path.suffix == ".npy":
            array = load_arrays(path)
            if isinstance(array, dict):
                raise ValueError("an archive of arrays, not one array")
            parts = self._planes(array)
        else:
            parts = (open_picture(path, self.channels, self.bits),)
        width, height = parts[0].size
        box = self.box or (0, 0, width, height)
        if width < box[2] or height < box[3]:
            raise ValueError(f"{width}x{height} pixels, at least {box[2]}x{box[3]} are needed")
        size = (self.side, self.side)
        if self.fit == "crop":
            margin = (box[2] - box[0] - (box[3] - box[1])) / 2
            x, y = max(margin, 0), max(-margin, 0)
            square = (box[0] + x, box[1] + y, box[2] - x, box[3] - y)
            resized = [np.asarray(part.resize(size, self.resample, box=square)) for part in parts]
        else:
            cut = parts if self.box is None else [part.crop(box) for part in parts]
            resized = [np.asarray(part.resize(size, self.resample)) for part in cut]
        # Pillow resizes the channels of a picture alike, and all at once sooner than one after the other.
        return np.stack(resized) if resized[0].ndim == 2 else np.ascontiguousarray(resized[0].transpose(2, 0, 1))

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


def load_images(paths: Sequence[Path], read: ImageReader, noun: str = "images") -> np.ndarray:
    """Read a few thousand image files into one array (N, C, side, side) uint8 in memory.

    Args:
        noun: of the files, for the progress bar and the message.

    Raises:
        UserError: files cannot be read; names their number and the first three with the reason.
    """
    array = np.empty((len(paths), read.channels, read.side, read.side), dtype=np.uint8)
    bad: Bad = {}
    rows = np.arange(len(paths))
    for _ in _fill([array], rows, lambda row: (read(paths[row]),), noun, "image", CHUNK, bad):
        pass
    _refuse(bad, paths, noun)
    return array


def decode_images(files: Mapping[str, Sequence[Path]], folder: Path, read: ImageReader) -> dict[str, Path]:
    """Decode many image files into memory-mapped ``.npy`` files, once.

    An interrupted run continues: a file beside every array holds size and time of the files decoded so far, and both
    file names include a digest of the content. Files that changed meanwhile are decoded again. Only one process may
    decode into a folder (:class:`datasets.source.SourcedDataModule` locks it, and removes it at the end).

    Args:
        files: split -> one image file per row.
        folder: of the files to write.

    Returns:
        Split -> file with its (N, C, side, side) uint8.

    Raises:
        UserError: files are absent (counted in all splits) or cannot be read (in one split); decoded files stay.
    """
    stats = {split: np.array([file_stat(path) for path in paths], dtype=np.int64) for split, paths in files.items()}
    absent = {split: np.flatnonzero(stat[:, 0] < 0) for split, stat in stats.items()}
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


def file_stat(path: Path) -> tuple[int, int]:
    """Bytes and time of the last change in ns, (-1, -1) for an absent file."""
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _decode(split: str, paths: Sequence[Path], stats: np.ndarray, folder: Path, read: ImageReader) -> Path:
    noun = f"images of split '{split}'"
    shape = (read.channels, read.side, read.side)
    key = [repr(read), [str(path) for path in paths]]
    arrays = {"": (shape, np.uint8)}
    files, bad = decode_rows(split, key, stats, folder, lambda row: (read(paths[row]),), arrays, noun, "image")
    _refuse(bad, paths, noun)
    return files[""]


def decode_rows(
    split: str,
    key: object,
    stats: np.ndarray,
    folder: Path,
    read: Callable[[int], Sequence[Any]],
    arrays: Mapping[str, tuple[tuple[int, ...], Any]],
    noun: str,
    unit: str,
    chunk: int | None = None,
) -> tuple[dict[str, Path], Bad]:
    """Decode the rows of one split into memory-mapped ``.npy`` files, once; see :func:`decode_images`.

    Args:
        split: prefix of the file names.
        key: plain values, names of the rows and settings of ``read``: files of another key are not continued.
        stats: (N, 2) int64, bytes and time of the last change of the source of a row; a row whose stats changed is
            decoded again, a row of -1 never.
        read: row -> its values, one per array; raises one of UNREADABLE for a bad row.
        arrays: suffix of the file name -> shape and type of a row.
        noun, unit: of the rows, for the progress bar.
        chunk: rows between two updates of the progress file, None = CHUNK.

    Returns:
        Suffix -> file; bad row -> its error. The content of bad rows is arbitrary.

    Raises:
        UserError: the disk has no room for them.
    """
    content = sha256([PICTURE_RULES, key])[:16]
    targets = {suffix: folder / f"{split}.{content}{suffix}.npy" for suffix in arrays}
    state = folder / f"{split}.{content}.done.npy"
    if not (state.exists() and all(target.exists() for target in targets.values())):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{split}.*"):
            old.unlink()
        for suffix, (shape, dtype) in arrays.items():
            np.lib.format.open_memmap(targets[suffix], "w+", dtype, (len(stats), *shape))
        with replacing(state) as temporary:
            np.save(temporary, np.full_like(stats, -1))
    for target in targets.values():
        reserve(target)
    opened = [np.load(target, mmap_mode="r+") for target in targets.values()]
    done = np.load(state, mmap_mode="r+")
    bad: Bad = {}
    todo = np.flatnonzero((done != stats).any(axis=1))
    for rows in _fill(opened, todo, read, noun, unit, chunk or CHUNK, bad):
        for array in opened:
            array.flush()  # content is on disk before its rows are marked as done
        done[rows] = stats[rows]
    return targets, bad


def _fill(
    arrays: Sequence[np.ndarray],
    rows: np.ndarray,
    read: Callable[[int], Sequence[Any]],
    noun: str,
    unit: str,
    size: int,
    bad: Bad,
) -> Iterator[np.ndarray]:
    """Decode ``rows`` into the ``arrays``; yields the good rows of every chunk, and adds the others to ``bad``."""

    def decode(row: int) -> Exception | None:
        try:
            for array, value in zip(arrays, read(row)):
                array[row] = value
        except UNREADABLE as error:
            return error
        return None

    n = len(arrays[0])
    with (
        ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool,
        Progress(total=n, initial=n - len(rows), desc=f"decoding {noun}", unit=unit) as progress,
    ):
        for start in range(0, len(rows), size):
            chunk = rows[start : start + size]
            problems = list(pool.map(decode, chunk.tolist()))
            bad |= {row: problem for row, problem in zip(chunk.tolist(), problems) if problem}
            progress.update(len(chunk))
            yield chunk[[not problem for problem in problems]]


def _refuse(bad: Bad, paths: Sequence[Path], noun: str) -> None:
    if bad:
        shown = "; ".join(f"{paths[row]} ({first_line(error)})" for row, error in list(bad.items())[:3])
        more = f", and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise UserError(
            f"{len(bad)} of {len(paths)} {noun} cannot be read: {shown}{more}; restore these files, or remove them "
            "from the source"
        )

"""Photographs -> uint8 arrays (N, 3, side, side), decoded once; large sets into a file, resumable."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.source import sha256
from utils.errors import UserError

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
CHUNK = 512  # images between two notes of progress

Reader = Callable[[Path, int], np.ndarray]


def read_rgb(path: Path, side: int, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """An image file as (3, side, side) uint8 RGB, resized bicubically.

    Args:
        box: left, upper, right, lower edge of the part to take, None = all.

    Raises:
        UserError: it cannot be decoded, or is smaller than the box.
    """
    try:
        with Image.open(path) as image:
            if box and (image.width < box[2] or image.height < box[3]):
                raise UserError(
                    f"{path} is {image.width}x{image.height} pixels, at least {box[2]}x{box[3]} are needed: restore "
                    "it from the archive"
                )
            picture = image.convert("RGB").crop(box or (0, 0, *image.size))
            small = picture.resize((side, side), Image.Resampling.BICUBIC)
            return np.asarray(small).transpose(2, 0, 1)
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read ({error}): restore it from the archive, or download it again") from None


def load_images(paths: Sequence[Path], side: int, *, read: Reader = read_rgb, desc: str = "reading") -> np.ndarray:
    """A few thousand image files as one array (N, 3, side, side) uint8 in memory; see :func:`decode_images`."""
    array = np.empty((len(paths), 3, side, side), dtype=np.uint8)
    with tqdm(total=len(paths), desc=desc, unit="image", leave=False) as progress:
        for _ in _fill(array, paths, np.arange(len(paths)), read, progress):
            pass
    return array


def decode_images(
    paths: Sequence[Path],
    target: Path,
    side: int,
    *,
    read: Reader = read_rgb,
    recipe: str = "rgb",
    desc: str = "decoding",
) -> Path:
    """Decode many image files into a memory-mapped ``.npy`` file, once.

    Interrupted, it goes on where it was: beside the array stand ``<target>.done.npy``, size and time of each file
    decoded so far, and ``<target>.json``, what the array is to hold. Files that changed meanwhile are decoded again.
    For one process at a time (:attr:`datasets.source.Source.scratch` sees to that, and removes it all in the end).

    Args:
        paths: N image files, in the order of the rows.
        target: the file to write, (N, 3, side, side) uint8.
        read: decodes one file into (3, side, side) uint8.
        recipe: what ``read`` does, in words that change whenever its pixels would.
        desc: of the progress bar.

    Returns:
        ``target``.

    Raises:
        UserError: a file is absent or cannot be decoded; what was decoded before stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    state, about = target.with_suffix(".done.npy"), target.with_suffix(".json")
    wanted = {"recipe": recipe, "side": side, "paths": sha256([str(p) for p in paths])}
    if not (target.exists() and state.exists() and about.exists() and about.read_text() == json.dumps(wanted)):
        about.unlink(missing_ok=True)
        np.lib.format.open_memmap(target, "w+", np.uint8, (len(paths), 3, side, side))
        np.lib.format.open_memmap(state, "w+", np.int64, (len(paths), 2))
        about.write_text(json.dumps(wanted))
    array, done = np.load(target, mmap_mode="r+"), np.load(state, mmap_mode="r+")
    stats = np.array([_stat(p) for p in paths], dtype=np.int64).reshape(-1, 2)
    todo = np.flatnonzero((done != stats).any(axis=1))
    with tqdm(total=len(paths), initial=len(paths) - len(todo), desc=desc, unit="image") as progress:
        for rows in _fill(array, paths, todo, read, progress):
            array.flush()  # the pixels are on disk before they are noted as done
            done[rows] = stats[rows]
    done.flush()
    return target


def _stat(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        raise UserError(f"there is no image {path}: restore it from the archive") from None
    return status.st_size, status.st_mtime_ns


def _fill(
    array: np.ndarray, paths: Sequence[Path], rows: np.ndarray, read: Reader, progress: tqdm
) -> Iterator[np.ndarray]:
    """Decode ``paths[rows]`` into ``array[rows]``; yields the rows of each chunk once they are there."""
    side = array.shape[-1]

    def one(row: int) -> None:
        array[row] = read(paths[row], side)

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            for _ in pool.map(one, chunk.tolist()):
                progress.update()
            yield chunk

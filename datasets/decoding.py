"""Image files -> one memory-mapped uint8 array, decoded once; an interrupted run goes on where it stopped."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from utils.errors import UserError
from utils.files import replacing

log = logging.getLogger(__name__)

BLOCK = 256  # images between two notes of how far it has come
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def read_image(path: Path, side: int, channels: int) -> np.ndarray:
    """One image as (channels, side, side) uint8; the aspect ratio is not kept.

    ``.npy`` files hold (H, W, C) or (H, W), uint8 or floats in [0, 1]; all others are opened with Pillow.

    Raises:
        OSError, ValueError and others: it cannot be read.
    """
    if path.suffix == ".npy":
        array = np.load(path, allow_pickle=False)
        if array.ndim == 2:
            array = array[:, :, None]
        if array.ndim != 3 or array.shape[2] != channels or 0 in array.shape:
            raise ValueError(f"an array of shape {array.shape}, not (H, W, {channels})")
        if array.dtype != np.uint8:
            if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
                raise ValueError("values outside [0, 1]")
            array = np.round(array.astype(np.float32) * 255).astype(np.uint8)
        if array.shape[:2] != (side, side):
            planes = [
                Image.fromarray(np.ascontiguousarray(array[:, :, c])).resize((side, side), Image.Resampling.BILINEAR)
                for c in range(channels)
            ]
            array = np.stack([np.asarray(plane) for plane in planes], axis=2)
        return array.transpose(2, 0, 1)
    with Image.open(path) as image:
        picture = image.convert("RGB" if channels == 3 else "L")
    if picture.size != (side, side):
        picture = picture.resize((side, side), Image.Resampling.BILINEAR)
    array = np.asarray(picture)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def check_files(paths: Mapping[str, Sequence[Path]], mend: str) -> None:
    """Every image file is there.

    Args:
        paths: split -> a file a row.
        mend: what to do, the end of the message.

    Raises:
        UserError: how many are absent in which split, and the first.
    """
    lacking = {split: [p for p in files if not p.is_file()] for split, files in paths.items()}
    if any(lacking.values()):
        counts = ", ".join(f"{len(bad)} of {len(paths[split])} in {split}" for split, bad in lacking.items() if bad)
        first = next(bad[0] for bad in lacking.values() if bad)
        raise UserError(f"rows of the table without their image file: {counts}, the first is {first}; {mend}")


class Decoding:
    """Images decoded into a working folder, which survives an interruption.

    Args:
        folder: the working folder; removed once its arrays are taken.
        signature: of the files and the size; work of another signature is thrown away.
    """

    def __init__(self, folder: Path, signature: str) -> None:
        self.folder, self.signature = folder, signature

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Holds the folder for this process, and makes it fit the signature.

        Raises:
            UserError: another process is at work in it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"another process is decoding into {self.folder}: wait until it has finished") from None
            about = self.folder / "signature"
            if not about.exists() or about.read_text() != self.signature:
                for file in self.folder.glob("*.np*"):
                    file.unlink()
                for file in self.folder.glob("*.json"):
                    file.unlink()
                about.write_text(self.signature)
            yield

    def decode(self, split: str, paths: Sequence[Path], side: int, channels: int) -> Path:
        """The array of a split, (N, channels, side, side) uint8, as a ``.npy`` file of the working folder.

        Raises:
            UserError: how many images cannot be read, and the first three with the reason.
        """
        target, note = self.folder / f"{split}.npy", self.folder / f"{split}.json"
        done = json.loads(note.read_text())["done"] if note.exists() and target.exists() else 0
        if done == len(paths):
            return target
        shape = (len(paths), channels, side, side)
        if done:
            array = np.lib.format.open_memmap(target, mode="r+")
            log.info("decoding images of split '%s': going on after %d of %d", split, done, len(paths))
        else:
            array = np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=shape)
        assert array.shape == shape, f"{target} is of another shape"

        def read(path: Path) -> np.ndarray | str:
            try:
                return read_image(path, side, channels)
            except _UNREADABLE as error:
                return f"{path} ({str(error).splitlines()[0] if str(error) else type(error).__name__})"

        bad: list[str] = []
        with (
            ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
            tqdm(total=len(paths), initial=done, desc=f"decoding {split}", unit="image") as progress,
        ):
            for start in range(done, len(paths), BLOCK):
                for row, found in enumerate(pool.map(read, paths[start : start + BLOCK]), start):
                    if isinstance(found, str):
                        bad.append(found)
                    else:
                        array[row] = found
                    progress.update()
                if not bad:
                    array.flush()
                    with replacing(note) as temporary:
                        temporary.write_text(json.dumps({"done": min(start + BLOCK, len(paths))}))
        if bad:
            more = f", and {len(bad) - 3} more" if len(bad) > 3 else ""
            raise UserError(
                f"{len(bad)} of {len(paths)} images of split '{split}' cannot be read: {'; '.join(bad[:3])}{more}; "
                "restore these files, or remove their rows from the source"
            )
        return target

    def remove(self) -> None:
        """Throw the working folder away."""
        shutil.rmtree(self.folder, ignore_errors=True)

"""Reader of MNIST's idx files."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from utils.errors import UserError

SIDE = 28
CLASSES = 10


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Read the MNIST format: two zero bytes, type 8 (uint8), the number of dimensions, big-endian sizes, data.

    Args:
        path: plain or gzip, recognised by its content.
        ndim: 3 for images, 1 for labels.

    Raises:
        UserError: wrong magic number, or another number of bytes than the header announces.
    """
    raw = path.read_bytes()
    unpacker = None
    if raw[:2] == b"\x1f\x8b":
        unpacker = zlib.decompressobj(wbits=31)
        try:
            raw = unpacker.decompress(raw)
        except zlib.error as error:
            raise UserError(f"{path} is damaged ({error}): download it again") from None
    magic, header = bytes([0, 0, 8, ndim]), 4 + 4 * ndim
    if raw[:4] != magic[: len(raw)]:
        raise UserError(
            f"{path} starts with the bytes {raw[:4].hex()}, an MNIST file of {ndim} dimension(s) with {magic.hex()}: "
            "download it again"
        )
    shape = tuple(np.frombuffer(raw[4:header], dtype=">u4").tolist()) if len(raw) >= header else ()
    expected = header + math.prod(shape) if shape else header
    if len(raw) != expected:
        promise = f"sizes {'x'.join(map(str, shape))}" if shape else "the header alone"
        raise UserError(
            f"{path} holds {len(raw)} bytes (unpacked), {expected} are expected for {promise}: download it again"
        )
    if unpacker and not unpacker.eof:
        raise UserError(f"{path} ends before its checksum: download it again")
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape)


def mnist_files(folder: Path) -> dict[str, Path]:
    """The four files of MNIST: ``train images``, ``train labels``, ``test images``, ``test labels`` -> path.

    Raises:
        UserError: names the first absent file.
    """
    files = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        for content, ndim in (("images", 3), ("labels", 1)):
            stem = f"{prefix}-{content}-idx{ndim}-ubyte"
            existing = [f for f in (folder / stem, folder / f"{stem}.gz") if f.is_file()]
            if not existing:
                raise UserError(
                    f"no {stem} or {stem}.gz in {folder}: put the four MNIST files there, or set dataset.download=true "
                    "and dataset.mnist=null"
                )
            files[f"{part} {content}"] = existing[0]
    return files


def read_mnist(files: Mapping[str, Path], part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) uint8 and labels (N,) of ``train`` or ``test``.

    Raises:
        UserError: a damaged file, images of another size, a label above 9, or unequal counts.
    """
    image_file, label_file = files[f"{part} images"], files[f"{part} labels"]
    images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
    if images.shape[1:] != (SIDE, SIDE):
        raise UserError(f"{image_file} holds images of {images.shape[1:]}, expected 28x28: is it MNIST?")
    if len(images) != len(labels):
        raise UserError(
            f"{image_file} holds {len(images)} images but {label_file} {len(labels)} labels: take both from one source"
        )
    if len(labels) and labels.max() >= CLASSES:
        raise UserError(f"{label_file} holds the label {labels.max()}, expected 0 to 9: is it MNIST?")
    return images, labels


def download_mnist(root: Path) -> Path:
    """Download MNIST below ``root``; returns the folder of the four files.

    Raises:
        UserError: the download failed.
    """
    import torchvision

    try:
        torchvision.datasets.MNIST(str(root), train=True, download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"MNIST could not be downloaded into {root} ({error}): fetch the four files by other means and set "
            "dataset.mnist to their folder"
        ) from None
    return root / "MNIST" / "raw"

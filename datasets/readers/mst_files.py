"""Readers of the files of MST: SVHN's matrices, MNIST as tensors, pairs of rows, and folders of photographs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.readers.mat_files import read_mat_arrays
from datasets.readers.mnist import CLASSES
from utils.errors import UserError, first_line
from utils.files import natural_key

SVHN_SIDE = 32
_PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png"}

Items = tuple[np.ndarray, np.ndarray]  # images (N, C, H, W) uint8, labels (N,) int64


def read_mat(path: Path) -> Items:
    """Read SVHN's second format: images (N, 3, 32, 32) uint8 and labels (N,) int64, where 10 becomes 0.

    Raises:
        UserError: the file is unreadable, or has other shapes, unequal counts, or a label outside 1 to 10.
    """
    try:
        content = read_mat_arrays(path, ("X", "y"))
        x, y = content["X"], content["y"].reshape(-1)
    except KeyError as error:
        raise UserError(f"{path} has no variable {error}: take the cropped digits of SVHN (format 2)") from None
    except (OSError, ValueError, MemoryError) as error:
        raise UserError(f"{path} cannot be read as a MATLAB file ({first_line(error)}): download it again") from None
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[:3] != (SVHN_SIDE, SVHN_SIDE, 3):
        raise UserError(
            f"{path} holds X {x.shape} {x.dtype}, expected (32, 32, 3, N) uint8: take the cropped digits of SVHN "
            "(format 2)"
        )
    if len(y) != x.shape[3]:
        raise UserError(f"{path} holds {x.shape[3]} images but {len(y)} labels: download it again")
    bad = np.flatnonzero((y < 1) | (y > 10))
    if len(bad):
        raise UserError(
            f"{path} holds the label {y[bad[0]]} in row {bad[0] + 1}, expected 1 to 10 (10 stands for zero): download "
            "it again"
        )
    return np.ascontiguousarray(x.transpose(3, 2, 0, 1)), y.astype(np.int64) % 10


def _read_pt(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file can be broken in any way
        raise UserError(f"{path} cannot be read ({type(error).__name__}): restore or remove it") from None


def read_mnist_pt(path: Path) -> Items:
    """Read MNIST as older versions of torchvision stored it: images (N, 1, 28, 28) uint8, labels (N,) int64.

    Raises:
        UserError: the file is unreadable, or has other shapes, unequal counts, or a label outside 0 to 9.
    """
    content = _read_pt(path)
    pair = content if isinstance(content, tuple | list) else ()
    if len(pair) != 2 or not all(isinstance(part, torch.Tensor) for part in pair):
        raise UserError(f"{path} holds no pair of tensors (images, labels): restore it")
    images, labels = pair[0].numpy(), pair[1].numpy()
    if images.dtype != np.uint8 or images.shape[1:] != (28, 28) or labels.shape != (len(images),):
        raise UserError(
            f"{path} holds {images.shape} {images.dtype} and labels {labels.shape}, expected (N, 28, 28) uint8 and "
            "(N,): restore it"
        )
    bad = np.flatnonzero((labels < 0) | (labels >= CLASSES))
    if len(bad):
        raise UserError(f"{path} holds the label {labels[bad[0]]} in row {bad[0] + 1}, expected 0 to 9: restore it")
    return images[:, None], labels.astype(np.int64)


def photo_files(folder: Path) -> list[tuple[int, Path]]:
    """(digit, file) of the photographs in ``<folder>/{0..9}/``, sorted by digit and by name (2 before 10).

    Raises:
        UserError: a class folder is absent or holds no photograph.
    """
    photos: list[tuple[int, Path]] = []
    for digit in range(CLASSES):
        class_folder = folder / str(digit)
        names = class_folder.iterdir() if class_folder.is_dir() else ()
        files = [f for f in names if f.suffix.lower() in _PHOTO_SUFFIXES and not f.name.startswith(".")]
        files.sort(key=lambda file: natural_key(file.name))
        if not files:
            raise UserError(
                f"{class_folder} holds no photograph (.jpg or .png) of the digit {digit}: put some there; each of 0 to "
                "9 needs a folder"
            )
        photos.extend((digit, f) for f in files)
    return photos


def read_pairs(files: Mapping[str, Path], mnist: Items, svhn: Items) -> tuple[np.ndarray, np.ndarray]:
    """Read the published pairs.

    Args:
        files: ``mnist`` and ``svhn`` -> file with the row numbers of that side.
        mnist, svhn: the items that the rows number.

    Returns:
        Row numbers of MNIST and of SVHN, (pairs,) int64 each.

    Raises:
        UserError: the files are unreadable, do not pair, or were made for other data.
    """
    rows = {}
    for (side, file), (_, labels) in zip(files.items(), (mnist, svhn)):
        index = _read_pt(file)
        if not isinstance(index, torch.Tensor) or index.ndim != 1 or index.is_floating_point() or not len(index):
            raise UserError(f"{file} holds no vector of row numbers: restore it, or remove both files to pair anew")
        rows[side] = index.numpy().astype(np.int64)
        bad = np.flatnonzero((rows[side] < 0) | (rows[side] >= len(labels)))
        if len(bad):
            raise UserError(
                f"{file} names the item {rows[side][bad[0]]} in row {bad[0] + 1}, there are {len(labels)}: it was "
                "made for other data, remove both files to pair anew"
            )
    (file_a, a), (file_b, b) = ((files[side], rows[side]) for side in ("mnist", "svhn"))
    if len(a) != len(b):
        raise UserError(f"{file_a} has {len(a)} rows but {file_b} {len(b)}: restore them, or remove both to pair anew")
    bad = np.flatnonzero(mnist[1][a] != svhn[1][b])
    if len(bad):
        raise UserError(
            f"{file_a} pairs digits of unlike classes ({mnist[1][a[bad[0]]]} with {svhn[1][b[bad[0]]]} in row "
            f"{bad[0] + 1}, {len(bad)} such rows): it was made for other data, remove both files to pair anew"
        )
    return a, b


def download_mnist_and_svhn(folder: Path, mnist: Path | None, svhn: Path | None) -> tuple[Path, Path]:
    """Download the data sets that are not given into ``folder``.

    Returns:
        The folders of MNIST and of SVHN.

    Raises:
        UserError: a download failed.
    """
    import torchvision

    try:
        if mnist is None:
            torchvision.datasets.MNIST(str(folder), train=True, download=True)
        if svhn is None:
            for part in ("train", "test"):
                torchvision.datasets.SVHN(str(folder / "SVHN"), split=part, download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"MNIST and SVHN could not be downloaded into {folder} ({error}): fetch them by other means and set "
            "dataset.mnist and dataset.svhn to their folders"
        ) from None
    return mnist or folder / "MNIST" / "raw", svhn or folder / "SVHN"

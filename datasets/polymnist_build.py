"""Recipe of PolyMNIST: digits that invert random crops of photographs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from datasets.readers.mnist import CLASSES, SIDE
from datasets.readers.pictures import UNREADABLE, open_picture
from datasets.source import Arrays
from utils.errors import UserError
from utils.files import natural_key
from utils.progress import Progress

VIEWS = tuple(f"m{i}" for i in range(5))
_BACKGROUND_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


def build_split(
    images: np.ndarray,
    labels: np.ndarray,
    backgrounds: Sequence[np.ndarray],
    rng: np.random.Generator,
    *,
    pairings: int = 1,
) -> Arrays:
    """The tuples of :func:`build_tuples` under the names of the packed store."""
    views, target, names = build_tuples(images, labels, backgrounds, rng, pairings=pairings)
    return {**views, "target": target, "name": names}


def build_tuples(
    images: np.ndarray,
    labels: np.ndarray,
    backgrounds: Sequence[np.ndarray],
    rng: np.random.Generator,
    *,
    pairings: int = 1,
) -> tuple[Arrays, np.ndarray, np.ndarray]:
    """Build tuples of five views: every digit inverts a random crop of the photograph of its view.

    Each class and view has its own permutation of the images of the class, and each image a corner drawn uniformly
    from [0, W - 28) x [0, H - 28); where the image is above 128, all three channels of the crop become 255 - value.
    The draws come in this order: class, view, (permutation, corners as x, y pairs).

    Args:
        images: (N, 28, 28) uint8.
        labels: (N,) integers 0 to 9.
        backgrounds: five (H, W, 3) uint8 with H, W > 28; the i-th belongs to view ``m{i}``.
        rng: source of all draws.
        pairings: permutations per class, one after the other; the running numbers continue.

    Returns:
        Views ``m0`` to ``m4``, each (pairings N, 3, 28, 28) uint8; target, (pairings N,) int64; names ``{i}.{digit}``.
        Rows are sorted by (digit, i).
    """
    sources: dict[str, list[np.ndarray]] = {view: [] for view in VIEWS}
    corners: dict[str, list[np.ndarray]] = {view: [] for view in VIEWS}
    names: list[str] = []
    target: list[np.ndarray] = []
    for digit in range(CLASSES):
        members = np.flatnonzero(labels == digit)
        n = pairings * len(members)
        names.extend(f"{i}.{digit}" for i in range(n))
        target.append(np.full(n, digit, dtype=np.int64))
        for view, background in zip(VIEWS, backgrounds):
            height, width, _ = background.shape
            for _ in range(pairings):
                sources[view].append(rng.permutation(members))
                corners[view].append(rng.integers(0, [width - SIDE, height - SIDE], size=(len(members), 2)))
    inverting = np.where(images > 128, 255, 0).astype(np.uint8)
    arrays = {}
    for view, background in zip(Progress(VIEWS, desc="building tuples", unit="view", leave=False), backgrounds):
        channels_first = np.ascontiguousarray(background.transpose(2, 0, 1))
        crops = np.moveaxis(sliding_window_view(channels_first, (SIDE, SIDE), axis=(1, 2)), 0, 2)
        x, y = np.concatenate(corners[view]).T
        patches = crops[y, x]
        patches ^= inverting[np.concatenate(sources[view])][:, None]  # p ^ 255 = 255 - p
        arrays[view] = patches
    return arrays, np.concatenate(target), np.array(names)


def load_backgrounds(folder: str | Path | None) -> dict[str, np.ndarray]:
    """Five photographs, name -> (H, W, 3) uint8, in the order of the views.

    Args:
        folder: its first five image files by name (2 before 10) are used; None = photographs of scikit-image and
            scikit-learn, chosen so that digits are harder to read in some views than in others.

    Raises:
        UserError: no folder, fewer than five images, an unreadable one, or one not larger than 28 x 28.
    """
    if folder is None:
        from skimage import data
        from sklearn.datasets import load_sample_image

        return {
            "retina": data.retina(),
            "coffee": data.coffee(),
            "flower": load_sample_image("flower.jpg"),
            "china": load_sample_image("china.jpg"),
            "immunohistochemistry": data.immunohistochemistry(),
        }
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"background folder {folder} does not exist: name an existing one, or null for bundled pictures"
        )
    files = [f for f in folder.iterdir() if f.suffix.lower() in _BACKGROUND_SUFFIXES and not f.name.startswith(".")]
    files.sort(key=lambda file: natural_key(file.name))
    if len(files) < len(VIEWS):
        raise UserError(
            f"background folder {folder} holds {len(files)} images, {len(VIEWS)} are needed (one per view): "
            "add some, or set dataset.backgrounds=null for bundled pictures"
        )
    pictures = {}
    for file in files[: len(VIEWS)]:
        try:
            picture = np.asarray(open_picture(file, 3))
        except UNREADABLE as error:
            raise UserError(f"background {file} cannot be read ({error}): restore or remove it") from None
        if min(picture.shape[:2]) <= SIDE:
            raise UserError(
                f"background {file} is {picture.shape[1]}x{picture.shape[0]} pixels: width and height must be above "
                f"{SIDE}, replace it by a larger picture"
            )
        pictures[file.name] = picture
    return pictures

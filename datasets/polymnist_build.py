"""Recipe of PolyMNIST: digits that invert random crops of photographs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import gaussian_filter, map_coordinates

from datasets.readers.mnist import CLASSES, SIDE
from datasets.readers.pictures import UNREADABLE, open_picture
from datasets.source import Arrays
from utils.errors import UserError
from utils.files import natural_key
from utils.progress import Progress

VIEWS = tuple(f"m{i}" for i in range(5))
PHOTOGRAPHS = ("retina", "coffee", "flower", "china", "immunohistochemistry")  # of scikit-image and scikit-learn
SMOOTHNESS = 4.0  # pixels, SD of the Gaussian filter of displacements
_BACKGROUND_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


def build_split(
    images: np.ndarray,
    labels: np.ndarray,
    backgrounds: Sequence[np.ndarray],
    rng: np.random.Generator,
    *,
    pairings: int = 1,
    contrast: Sequence[float] | None = None,
    deformation: Sequence[float] | None = None,
) -> Arrays:
    """The tuples of :func:`build_tuples` under the names of the packed store."""
    views, target, names = build_tuples(
        images, labels, backgrounds, rng, pairings=pairings, contrast=contrast, deformation=deformation
    )
    return {**views, "target": target, "name": names}


def build_tuples(
    images: np.ndarray,
    labels: np.ndarray,
    backgrounds: Sequence[np.ndarray],
    rng: np.random.Generator,
    *,
    pairings: int = 1,
    contrast: Sequence[float] | None = None,
    deformation: Sequence[float] | None = None,
) -> tuple[Arrays, np.ndarray, np.ndarray]:
    """Build tuples of five views: every digit inverts a random crop of the photograph of its view.

    Each class and view has its own permutation of the images of the class, and each image a corner drawn uniformly
    from [0, W - 28) x [0, H - 28); where the image is above 128, all three channels of the crop become 255 - value.
    The draws come in this order: class, view, (permutation, corners as x, y pairs). ``contrast`` and ``deformation``
    make views harder to read, which the published recipe does not; deformations are drawn from a generator of their
    own, so that permutations and corners stay the same.

    Args:
        images: (N, 28, 28) uint8.
        labels: (N,) integers 0 to 9.
        backgrounds: five (H, W, 3) uint8 with H, W > 28; the i-th belongs to view ``m{i}``.
        rng: source of all draws.
        pairings: permutations per class, one after the other; the running numbers continue.
        contrast: of each view, 0.01 to 1: pixels of the digit go this part of the way from value to 255 - value.
            None = 1.
        deformation: of each view, the digits are deformed by :func:`deform` with this strength in pixels. None = 0.

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
    arrays = {}
    values = np.arange(256)
    for i, view in enumerate(Progress(VIEWS, desc="building tuples", unit="view", leave=False)):
        channels_first = np.ascontiguousarray(backgrounds[i].transpose(2, 0, 1))
        crops = np.moveaxis(sliding_window_view(channels_first, (SIDE, SIDE), axis=(1, 2)), 0, 2)
        x, y = np.concatenate(corners[view]).T
        patches = crops[y, x]
        shapes = images
        if deformation is not None and deformation[i]:
            shapes = deform(images, deformation[i], rng.spawn(1)[0])
        change = 1.0 if contrast is None else contrast[i]
        inverted = np.round(values + change * (255 - 2 * values)).astype(np.uint8)
        is_digit = (shapes > 128)[np.concatenate(sources[view])][:, None]
        arrays[view] = np.where(is_digit, inverted[patches], patches)
    return arrays, np.concatenate(target), np.array(names)


def deform(images: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Elastic deformation: every image has smooth random displacements of its own.

    Simard, Steinkraus & Platt, "Best practices for convolutional neural networks applied to visual document analysis",
    ICDAR 2003.

    Args:
        images: (N, H, W) uint8.
        strength: standard deviation of the displacements of a pixel in x and in y, in pixels.
        rng: source of the displacements.

    Returns:
        (N, H, W) uint8, with 0 for what comes from outside of an image.
    """
    scale = strength * 2 * np.sqrt(np.pi) * SMOOTHNESS  # filtered white noise has an SD of 1 / (2 sqrt(pi) smoothness)
    deformed = np.empty_like(images)
    grid = np.stack(np.meshgrid(*map(np.arange, images.shape[1:]), indexing="ij"))
    for i, image in enumerate(images):
        noise = rng.standard_normal(grid.shape, dtype=np.float32)
        shift = scale * gaussian_filter(noise, (0, SMOOTHNESS, SMOOTHNESS), mode="wrap")
        deformed[i] = np.round(map_coordinates(image.astype(np.float32), grid + shift, order=1))
    return deformed


def load_photographs(names: Sequence[str]) -> dict[str, np.ndarray]:
    """Photographs that scikit-image and scikit-learn bundle, name -> (H, W, 3) uint8.

    Grey ones have three equal channels.

    Raises:
        UserError: an unknown name, or not five different ones.
    """
    from skimage import data
    from skimage.color import gray2rgb
    from sklearn.datasets import load_sample_image

    of_skimage = {"astronaut", "brick", "chelsea", "coffee", "grass", "gravel", "hubble_deep_field"}
    of_skimage |= {"immunohistochemistry", "retina", "rocket"}
    known = sorted({*of_skimage, "china", "flower"})
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"dataset.photographs: there is no {unknown[0]}, choose from {', '.join(known)}")
    if len(set(names)) != len(VIEWS) or len(names) != len(VIEWS):
        given = len(set(names))
        raise UserError(f"dataset.photographs has {given} different names: give {len(VIEWS)}, one per view")
    pictures = [getattr(data, name)() if name in of_skimage else load_sample_image(f"{name}.jpg") for name in names]
    return {name: p if p.ndim == 3 else gray2rgb(p) for name, p in zip(names, pictures, strict=True)}


def load_backgrounds(folder: str | Path) -> dict[str, np.ndarray]:
    """The first five pictures of a folder by name (2 before 10), name -> (H, W, 3) uint8, in the order of the views.

    Raises:
        UserError: no folder, fewer than five images, an unreadable one, or one not larger than 28 x 28.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"background folder {folder} does not exist: name an existing one, or null for dataset.photographs"
        )
    files = [f for f in folder.iterdir() if f.suffix.lower() in _BACKGROUND_SUFFIXES and not f.name.startswith(".")]
    files.sort(key=lambda file: natural_key(file.name))
    if len(files) < len(VIEWS):
        raise UserError(
            f"background folder {folder} holds {len(files)} images, {len(VIEWS)} are needed (one per view): "
            "add some, or set dataset.backgrounds=null to use dataset.photographs"
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

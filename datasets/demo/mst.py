"""Demo data in the layout of MNIST-SVHN-Text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from datasets.readers.text import ALPHABET

# ------------------------------------------------------------------------------------------------------------------ MST


def make_mst(root: Path, seed: int = 0, per_class: int | None = None) -> None:
    """The prepared folders of MST from scikit-learn's digits, without the files of pairs.

    Args:
        per_class: digits of each class to use, None = all 1,797; 30 % of them for the test.
    """
    from datasets.digits import load_digit_images
    from datasets.splits import stratified_split

    images, labels = load_digit_images()
    if per_class is not None:
        rows = np.concatenate([np.flatnonzero(labels == digit)[:per_class] for digit in range(10)])
        images, labels = images[rows], labels[rows]
    n_test = round(0.3 * len(labels))
    parts = stratified_split(labels, (len(labels) - n_test, n_test), seed)
    rng = np.random.default_rng(seed)
    (root / "MNIST/processed").mkdir(parents=True)
    (root / "SVHN").mkdir()
    (root / "alphabet.json").write_text(json.dumps(list(ALPHABET)))
    for name, rows in zip(("train", "test"), parts):
        digits = torch.from_numpy(images[rows]), torch.from_numpy(labels[rows])
        order = rng.permutation(rows)
        numbers = house_numbers(images[order], rng)
        # Of the test images the original keeps copies as validation images; only the pairs differ.
        for copy in ("train",) if name == "train" else ("val", "test"):
            torch.save(digits, root / "MNIST/processed" / ("training.pt" if copy == "train" else f"{copy}.pt"))
            write_mat(root / f"SVHN/{copy}_32x32.mat", numbers, labels[order])


def write_mat(path: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    """Images (N, 3, 32, 32) uint8 and labels 0 to 9 as a file of SVHN's second format, where zero is 10."""
    from scipy.io import savemat

    y = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
    savemat(path, {"X": images.transpose(2, 3, 1, 0), "y": y}, do_compression=True)
    return path


def house_numbers(digits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Digits in random colours on coloured ground, with parts of other digits to the left and right, and noise.

    Args:
        digits: (N, 28, 28) uint8.

    Returns:
        (N, 3, 32, 32) uint8.
    """
    n = len(digits)
    ink = np.zeros((n, 32, 32))
    gap, centre = np.zeros((n, 28, 1), dtype=np.uint8), slice(4, 24)  # a digit is 20 pixels wide
    left, right = digits[rng.permutation(n)], digits[rng.permutation(n)]
    strips = np.concatenate([left[..., centre], gap, digits[..., centre], gap, right[..., centre]], axis=2)
    columns = (15 + rng.integers(-2, 3, size=n))[:, None] + np.arange(32)
    ink[:, 2:30] = np.take_along_axis(strips, columns[:, None, :].repeat(28, axis=1), axis=2) / 255
    ground = rng.uniform(20, 236, size=(n, 3))
    offset = rng.uniform(60, 120, size=(n, 1)) * np.where(ground.mean(1, keepdims=True) > 128, -1, 1)
    colour = ground + offset + rng.uniform(-30, 30, size=(n, 3))
    picture = ground[:, :, None, None] * (1 - ink[:, None]) + colour[:, :, None, None] * ink[:, None]
    return (picture + rng.normal(0, 12, size=picture.shape)).clip(0, 255).astype(np.uint8)

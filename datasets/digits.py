"""Digits: a look-alike of PolyMNIST that needs no download.

The 1,797 digits of scikit-learn (8x8, 0 to 16; UCI optical recognition of handwritten digits) instead of MNIST, on
photographs of scikit-image and scikit-learn, enlarged and combined by the recipe of PolyMNIST. The digits are divided
before they are paired, so that no handwritten digit is in two splits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from datasets.base import SPLITS
from datasets.polymnist import PolyMNIST
from datasets.readers.mnist import SIDE
from datasets.source import Arrays, Source, sha256
from datasets.splits import stratified_split
from utils.errors import UserError

SIZES = {"train": 1257, "val": 180, "test": 360}
ENLARGED = 20


def load_digit_images() -> tuple[np.ndarray, np.ndarray]:
    """Images (1797, 28, 28) uint8, bicubically enlarged to 20x20 and centred on black; labels (1797,) int64."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.round(digits.images * 255 / 16).astype(np.uint8)
    images = np.zeros((len(grey), SIDE, SIDE), dtype=np.uint8)
    low, high = (SIDE - ENLARGED) // 2, (SIDE + ENLARGED) // 2
    for image, small in zip(images, grey):
        enlarged = Image.fromarray(small).resize((ENLARGED, ENLARGED), Image.Resampling.BICUBIC)
        image[low:high, low:high] = np.asarray(enlarged)
    return images, digits.target.astype(np.int64)


class Digits(PolyMNIST):
    """The digits of scikit-learn as five views: 1,257 / 180 / 360 tuples.

    Args:
        store: folder of the packed store.
        build_seed: of permutations, crops and deformations, an independent stream per split.
        split_seed: of the division of the digits, stratified by class.
        train_pairings: number of permutations of the training digits, each of which gives 1,257 training tuples.
        **kwargs: see :class:`datasets.polymnist.PolyMNIST`, less ``root``, ``mnist`` and ``download``.

    Raises:
        UserError: ``train_pairings`` below 1.
    """

    name = "Digits"

    def __init__(
        self,
        *,
        store: str,
        train_pairings: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(store=store, **kwargs)
        if train_pairings < 1:
            raise UserError(f"dataset.train_pairings={train_pairings}: it must be 1 or more")
        self.train_pairings = train_pairings

    def find_source(self) -> Source:
        """The digits of scikit-learn."""
        images, labels = load_digit_images()
        about = {"digits": sha256(images), "train_pairings": self.train_pairings}
        return self.built_source("digits", about, lambda pictures: self._pair(images, labels, pictures))

    def _pair(self, images: np.ndarray, labels: np.ndarray, pictures: list[np.ndarray]) -> dict[str, Arrays]:
        parts = stratified_split(labels, tuple(SIZES.values()), self.split_seed)
        streams = np.random.SeedSequence(self.build_seed).spawn(len(SPLITS))
        return {
            split: self.build(
                images[rows], labels[rows], pictures, stream, pairings=self.train_pairings if split == "train" else 1
            )
            for split, rows, stream in zip(SIZES, parts, streams)
        }

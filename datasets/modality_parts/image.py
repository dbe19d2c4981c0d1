"""Images of a data set from one CSV file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.batch import Modality
from datasets.loader import Transform
from datasets.modality_parts.base import About, one_of, positive
from datasets.modality_parts.files import (
    FilePart,
    Spec,
    chunks_of,
    fitted_normalisation,
    normalisation_problems,
)
from datasets.readers.images import FITS, ImageReader
from datasets.scale import Scale
from datasets.transforms import ImageTransform, JointAugmentation


class ImagePart(FilePart):
    """Image files, decoded once at one size.

    Args:
        side: of the images that a model gets, in pixels.
        stored_side: of the images in the store, from which training crops are cut; None = ``side``.
        channels: 3 or 1.
        fit: ``stretch`` resizes the complete image, ``crop`` its central square.
        bits: in use of 16-bit images, None = 16 (see :func:`datasets.readers.pictures.open_picture`).
        augmentation: of training images: arguments of :class:`datasets.transforms.JointAugmentation`; None = none.
        normalisation: ``train`` subtracts the mean and divides by the standard deviation of each channel over the
            training images; ``none`` leaves pixels in [0, 1]; ``{mean: [...], deviation: [...]}``.
        **files: see :class:`FilePart`.
    """

    kind = modality_kind = "image"
    noun = "image"
    read_time = ("augmentation",)

    def __init__(
        self,
        name: str,
        *,
        side: int = 128,
        stored_side: int | None = None,
        channels: int = 3,
        fit: str = "stretch",
        bits: int | None = None,
        augmentation: Mapping[str, Any] | JointAugmentation | None = None,
        normalisation: str | Mapping[str, Sequence[float]] = "train",
        **files: Any,
    ) -> None:
        super().__init__(name, **files)
        self.side, self.stored_side, self.channels = side, side if stored_side is None else stored_side, channels
        self.fit_mode, self.bits, self.normalisation = fit, bits, normalisation
        problems = self.file_problems() + positive("side", side) + one_of("fit", fit, FITS)
        if not positive("side", side) and (positive("", self.stored_side) or self.stored_side < side):
            problems.append(f"stored_side={stored_side}: images are stored no smaller than side={side}")
        if channels not in (1, 3):
            problems.append(f"channels={channels}: must be 3 or 1")
        if bits is not None and not (isinstance(bits, int) and 8 <= bits <= 16):
            problems.append(f"bits={bits}: must be a whole number from 8 to 16")
        problems += normalisation_problems(normalisation, channels)
        self.augmentation: JointAugmentation | None = None
        try:
            if augmentation is None or isinstance(augmentation, JointAugmentation):
                self.augmentation = augmentation
            else:
                self.augmentation = JointAugmentation(**augmentation)
        except (TypeError, ValueError) as error:
            problems.append(f"augmentation: {error}: see datasets.transforms.JointAugmentation")
        self.refuse(problems)

    @property
    def reader(self) -> ImageReader:
        """What makes stored images of files."""
        return ImageReader(self.stored_side, self.channels, fit=self.fit_mode, bits=self.bits)

    def reading_settings(self) -> Any:
        return [repr(self.reader), self.normalisation]

    @property
    def spec(self) -> Spec:
        return {"": ((self.channels, self.stored_side, self.stored_side), np.uint8)}

    def read(self, path: Path) -> Sequence[Any]:
        return (self.reader(path),)

    def fit(self, items: Mapping[str, np.ndarray], train: np.ndarray) -> dict[str, Any]:
        chunks = (chunk.transpose(0, 2, 3, 1) / 255 for chunk in chunks_of(items[""], train))
        return fitted_normalisation(self.normalisation, chunks, self.channels)

    def modality(self, about: About) -> Modality:
        scale = Scale(tuple(about["mean"]), tuple(about["deviation"]))
        return Modality(self.name, "image", (self.channels, self.side, self.side), scale=scale)

    def input_settings(self, about: About) -> dict[str, Any]:
        return {"fit": self.fit_mode}

    def transform(self, about: About, train: bool) -> Transform:
        augmentation = self.augmentation if train else None
        return ImageTransform(self.name, self.side, augmentation, about["mean"], about["deviation"])

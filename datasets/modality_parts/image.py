"""Images of a data set from one CSV file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets.batch import Modality
from datasets.content import Content
from datasets.loader import Transform
from datasets.modality_parts.base import About, Packed, one_of, positive
from datasets.modality_parts.files import (
    FilePart,
    Spec,
    chunks_of,
    fitted_normalisation,
    normalisation_problems,
)
from datasets.readers.images import FITS, ImageReader, decode_images
from datasets.scale import Scale
from datasets.transforms import ImageForm, ImageTransform, JointAugmentation, Statistics


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
        keys: Mapping[str, str] | None = None,
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
        super().__init__(name, keys, **files)
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
            self.augmentation = JointAugmentation.of(augmentation)
        except (TypeError, ValueError) as error:
            problems.append(f"augmentation: {error}: see datasets.transforms.JointAugmentation")
        self.refuse(problems)

    @property
    def reader(self) -> ImageReader:
        """What makes stored images of files."""
        return ImageReader(self.stored_side, self.channels, fit=self.fit_mode, bits=self.bits)

    def exists(self, path: Path) -> bool:
        return path.is_file()

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

    def statistics(self, about: About) -> Statistics | None:
        """Mean and deviation per channel, by which images are normalised; None = pixels stay as they are."""
        return about["mean"], about["deviation"]

    def modality(self, about: About) -> Modality:
        statistics = self.statistics(about)
        scale = Scale() if statistics is None else Scale(tuple(statistics[0]), tuple(statistics[1]))
        return Modality(self.name, "image", (self.channels, self.side, self.side), scale=scale)

    def input_settings(self, about: About) -> dict[str, Any]:
        return {"fit": self.fit_mode}

    def image_form(self, about: About) -> ImageForm:
        """What :class:`ImageTransform` makes of the stored images."""
        return ImageForm(self.side, self.statistics(about))

    def transform(self, about: About, train: bool) -> Transform:
        return ImageTransform({self.name: self.image_form(about)}, self.augmentation if train else None)


class PresetImage(ImagePart):
    """The image of a data set with one image per row: its normalisation is chosen when batches are read.

    Without absent images or stores that share them, every split has an array of its images, not of different items.

    Args:
        name: of the modality.
        keys: see :class:`Part`.
        resample: filter of the resizing.
        statistics: mean and deviation per channel, None = pixels stay as they are.
        is_shared_by_folds: whether folds of a cross-validation share their decoded images.
        **options: see :class:`ImagePart`.
    """

    def __init__(
        self,
        name: str,
        keys: Mapping[str, str],
        resample: Image.Resampling,
        statistics: Statistics | None = None,
        is_shared_by_folds: bool = True,
        **options: Any,
    ) -> None:
        self.resample, self.given, self.is_shared_by_folds = resample, statistics, is_shared_by_folds
        super().__init__(name, keys, normalisation="none", **options)

    @property
    def decoded_name(self) -> str:
        return "images"

    @property
    def reader(self) -> ImageReader:
        return replace(super().reader, resample=self.resample)

    def reading_settings(self) -> Any:
        return repr(self.reader)

    def fit(self, items: Mapping[str, np.ndarray], train: np.ndarray) -> dict[str, Any]:
        return {}

    def statistics(self, about: About) -> Statistics | None:
        return self.given

    def pack(self, content: Content, scratch: Path, shared: Path | None = None) -> Packed:
        shared = shared if self.is_shared_by_folds else None
        paths: list[Path | None] = content.inputs[self.name]
        files = {split: [paths[i] for i in rows] for split, rows in content.splits.items()}
        given = {split: [path for path in listed if path is not None] for split, listed in files.items()}
        if shared is not None or any(len(given[split]) < len(listed) for split, listed in files.items()):
            return super().pack(content, scratch, shared)
        of_splits = decode_images(given, scratch, self.reader)
        return Packed({}, np.zeros(len(paths), dtype=bool), {}, of_splits=of_splits)


def given_pictures(load: Callable[[], Content], name: str) -> Callable[[], list[Path]]:
    """Function that lists the files of an image in all splits of loaded content."""

    def pictures() -> list[Path]:
        content = load()
        return [path for rows in content.splits.values() for i in rows if (path := content.inputs[name][i]) is not None]

    return pictures

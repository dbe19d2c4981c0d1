"""Base of the data sets with an image and a table.

A table row is categorical codes first, then standardised numbers. Cells without a value in the source hold the training
mean or the commonest level, and are marked in ``<table>_missing`` of the packed store. Levels, means and standard
deviations are fitted on the training split. Images are decoded once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from datasets.composed import ComposedDataModule
from datasets.content import Content
from datasets.modality_parts.base import Part
from datasets.modality_parts.image import PresetImage, given_pictures
from datasets.modality_parts.table import CodedPart
from datasets.scale import AS_IT_IS, Scale
from datasets.source import Source, sha256
from datasets.storage import PackedSplit
from datasets.transforms import JointAugmentation

PACKING_VERSION = 1
# Options of the parts -> keys of the configuration.
KEYS = {"bits": "image_bits", "folder": "images", "suffix": "image_suffix", "empty": "without_image"}


class ImageTableModule(ComposedDataModule):
    """Base of the image + table data sets; a subclass implements :meth:`find_source`, which loads a :class:`Content`.

    Args:
        store: folder of the packed store.
        side: of the images that a model gets, in pixels.
        stored_side: of the images in the store, from which training crops are cut; None = ``side``.
        channels: 3 or 1.
        augmentation: of training batches, None = none.
        natural_missing: ``keep`` marks cells without a value in the source as missing; ``fill`` lets their stored
            content (training mean, commonest level) count as observed.
        image_bits: in use of 16-bit images, None = 16 (see :func:`datasets.readers.pictures.open_picture`).
        **kwargs: see :class:`datasets.base.MultimodalDataModule`.

    Raises:
        UserError: an impossible size or option.
    """

    read_time = ("augmentation", "natural_missing")
    later: ClassVar[tuple[str, ...]] = ("image_bits",)
    knows_first_rules = True
    image_name = "image"
    table_name = "table"
    resample = Image.Resampling.BILINEAR

    def __init__(
        self,
        store: str,
        *,
        side: int = 128,
        stored_side: int | None = None,
        channels: int = 3,
        augmentation: JointAugmentation | None = None,
        natural_missing: str = "keep",
        image_bits: int | None = None,
        **kwargs: Any,
    ) -> None:
        size: dict[str, Any] = {"side": side, "stored_side": stored_side or side, "channels": channels}
        options = size | {"bits": image_bits} | self.image_files
        self.image = PresetImage(self.image_name, KEYS, self.resample, **options)
        self.parts = [self.image, self.table_part(natural_missing)]
        super().__init__(store, **kwargs)
        self.augmentation = augmentation

    @property
    def image_files(self) -> dict[str, Any]:
        """Options of the image's files; by default the data set finds them itself."""
        return {"column": ""}

    def table_part(self, natural_missing: str) -> Part:
        """The part of the table; by default the data set codes it itself."""
        return CodedPart(self.table_name, KEYS, natural_missing=natural_missing)

    def content_source(self, kind: str, settings: Any, load: Callable[[], Content]) -> Source:
        """The source of a :class:`Content`, with the packing options in its signature.

        Args:
            kind: of the source, in one word.
            settings: plain values that change whenever the content does.
            load: reads the content; called once.
        """
        image = self.image
        packing = [image.stored_side, image.channels] + ([] if image.bits is None else [image.bits])
        load_once = cache(load)
        signature = sha256([PACKING_VERSION, kind, settings, *packing])
        return Source(kind, signature, {}, load_once, given_pictures(load_once, self.image_name))

    def about(self, part: Part) -> dict[str, Any]:
        about = super().about(part)
        if part.kind == "table":
            scale = self.number_scale
            about["scale"] = {"mean": scale.mean, "deviation": scale.deviation}
        return about

    @property
    def number_scale(self) -> Scale:
        """Scale that turns the table's numbers into z-scores."""
        return AS_IT_IS

    def input_settings(self) -> dict[str, dict[str, Any]]:
        return {}

    def observed_numbers(self, packed: PackedSplit) -> np.ma.MaskedArray:
        """(N, F) numbers of the continuous columns of a split; cells without a value in the source are masked."""
        table = ComposedDataModule.about(self, self.part(self.table_name))
        gaps, first = f"{self.table_name}_missing", len(table["cardinalities"])
        numbers = packed.read(self.table_name).double().numpy()[:, first:]
        return np.ma.masked_array(numbers, packed.read(gaps).numpy()[:, first:] if packed.has(gaps) else False)

    def may_read_differently(self) -> bool:
        """Whether a column is constant in training and not 0, as columns that were divided by a rounding error are."""
        numbers = self.observed_numbers(self.store.split("train"))
        if not numbers.size:
            return False
        lowest = numbers.min(0)
        return bool(((lowest == numbers.max(0)) & (lowest != 0)).filled(False).any())

"""Base of the data sets with an image and a text.

A text is tokenised once (``datasets/readers/tokens.py``), an image decoded once, cropped to its central square and
stored at one size. Training crops and flips, and the normalisation, are applied to whole batches.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar

from PIL import Image

from datasets.composed import ComposedDataModule
from datasets.content import Content
from datasets.modality_parts.image import PresetImage, given_pictures
from datasets.modality_parts.text import TextPart
from datasets.readers.tokens import PADDING, fingerprint
from datasets.source import Source, sha256
from datasets.transforms import JointAugmentation
from utils.errors import UserError

log = logging.getLogger(__name__)

PACKING_VERSION = 1
# Options of the parts -> keys of the configuration.
IMAGE_KEYS = {
    "bits": "image_bits",
    "fit": "image_fit",
    "folder": "images",
    "suffix": "image_suffix",
    "empty": "without_image",
}
TEXT_KEYS = {"columns": "text", "length": "text_length", "empty": "without_text"}


class ImageTextModule(ComposedDataModule):
    """Base of the image + text data sets; a subclass implements :meth:`find_source`, which loads a :class:`Content`.

    Args:
        store: folder of the packed store.
        tokenizer: see :func:`datasets.readers.tokens.load_tokenizer`.
        text_length: tokens per text; longer texts are cut, shorter ones padded.
        side: of the images that a model gets, in pixels.
        stored_side: of the images in the store, from which training crops are cut; None = ``side``.
        image_fit: ``crop`` takes the central square of an image, ``stretch`` the complete image.
        image_bits: in use of 16-bit images, None = 16 (see :func:`datasets.readers.pictures.open_picture`).
        augmentation: of training images, None = none.
        mean, deviation: per channel, with which images are normalised; None = pixels in [0, 1].
        without_text: rows without any token are left out (``leave_out``), have a missing text under every scenario
            (``missing``), or are refused (``refuse``).
        **kwargs: see :class:`datasets.base.MultimodalDataModule`.

    Raises:
        UserError: an impossible size or option.
    """

    paths: ClassVar[tuple[str, ...]] = ("tokenizer",)
    paths_or_names = ("tokenizer",)
    read_time = ("augmentation", "mean", "deviation")
    later: ClassVar[tuple[str, ...]] = ("image_bits",)
    knows_first_rules = True
    image_name, text_name = "image", "text"

    def __init__(
        self,
        store: str,
        *,
        tokenizer: str,
        text_length: int,
        side: int = 224,
        stored_side: int | None = None,
        image_fit: str = "crop",
        image_bits: int | None = None,
        augmentation: JointAugmentation | None = None,
        mean: Sequence[float] | None = None,
        deviation: Sequence[float] | None = None,
        without_text: str = "leave_out",
        **kwargs: Any,
    ) -> None:
        if (mean is None) != (deviation is None) or any(v is not None and len(v) != 3 for v in (mean, deviation)):
            raise UserError("dataset.mean and dataset.deviation: give three numbers each, or null for both")
        if deviation is not None and min(deviation) <= 0:
            raise UserError(f"dataset.deviation={list(deviation)}: must be positive")
        self.tokenizer = tokenizer
        statistics = None if mean is None or deviation is None else (mean, deviation)
        size: dict[str, Any] = {"side": side, "stored_side": stored_side or side, "fit": image_fit, "bits": image_bits}
        resample = Image.Resampling.BICUBIC
        # Every fold decodes its images itself, as in stores of earlier versions.
        self.image = PresetImage(self.image_name, IMAGE_KEYS, resample, statistics, False, **size, **self.image_files)
        text: dict[str, Any] = {"length": text_length, "empty": without_text, "tokenizer": self.find_tokenizer()}
        self.text_part = TextPart(self.text_name, TEXT_KEYS, **text, **self.text_columns)
        self.parts = [self.image, self.text_part]
        super().__init__(store, **kwargs)
        self.augmentation = augmentation

    @property
    def image_files(self) -> dict[str, Any]:
        """Options of the image's files; by default the data set finds them itself."""
        return {"column": ""}

    @property
    def text_columns(self) -> dict[str, Any]:
        """Options of the text's columns; by default the data set finds the texts itself."""
        return {"columns": ()}

    def find_tokenizer(self) -> str:
        """Name or path of the tokenizer, for :func:`datasets.readers.tokens.load_tokenizer`."""
        return str(self.tokenizer)

    def content_source(self, kind: str, settings: Any, load: Callable[[], Content]) -> Source:
        """The source of a :class:`Content`, with the packing options and the tokenizer in its signature.

        Args:
            kind: of the source, in one word.
            settings: plain values that change whenever the content does.
            load: reads the content; called once.
        """
        image, text = self.image, self.text_part
        packing: list[Any] = [text.length, image.stored_side, image.fit_mode, text.empty]
        packing += [] if image.bits is None else [image.bits]
        signature = sha256([PACKING_VERSION, kind, settings, fingerprint(text.tokenizer), packing])
        load_once = cache(load)
        return Source(kind, signature, {}, load_once, given_pictures(load_once, self.image_name))

    def may_read_differently(self) -> bool:
        """Whether a text of special tokens alone (at most two) counts as observed."""
        for split in self.packed_meta()["counts"]:
            packed, name = self.store.split(split), f"{self.text_name}_absent"
            is_empty = (packed.read(self.text_name) != PADDING).sum(1) <= 2
            if (is_empty & ~packed.read(name) if packed.has(name) else is_empty).any():
                return True
        return False

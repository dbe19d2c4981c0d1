"""Base of the data sets with an image and a text.

A text is tokenised once (``datasets/readers/tokens.py``), an image decoded once, cropped to its central square and
stored at one size. Training crops and flips, and the normalisation, are applied to whole batches.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image
from torch import Tensor

from datasets.batch import Modality
from datasets.modality_parts.text import note_unknown
from datasets.readers.images import FITS, ImageReader, check_sides, decode_images
from datasets.readers.pictures import check_bits
from datasets.readers.tokens import (
    PADDING,
    count_tokens,
    fingerprint,
    identity,
    load_tokenizer,
    save_tokenizer,
    tokenise,
)
from datasets.scale import Scale
from datasets.source import Source, SourcedDataModule, check_classes, sample_rows, sha256
from datasets.transforms import ImageTransform, JointAugmentation
from utils.errors import UserError

if TYPE_CHECKING:  # slow to import, and not needed once the texts are packed
    pass

log = logging.getLogger(__name__)

PACKING_VERSION = 1
WITHOUT_TEXT = ("leave_out", "missing", "refuse")


@dataclass
class Items:
    """One split, ready to be packed.

    Attributes:
        images: N files.
        texts: N texts to tokenise, '' for a row without one.
        target: (N,) int64, or (N, C) float32 with -1 for 'no label'.
        names: of the rows in the source.
    """

    images: list[Path]
    texts: list[str]
    target: np.ndarray
    names: list[str]

    def keep(self, rows: np.ndarray) -> Items:
        """Only the given rows (sorted)."""
        return Items(
            [self.images[i] for i in rows],
            [self.texts[i] for i in rows],
            self.target[rows],
            [self.names[i] for i in rows],
        )


@dataclass
class Content:
    """A data set, ready to be packed; ``about`` holds plain values for ``meta.json``."""

    class_names: list[str]
    splits: dict[str, Items]
    about: dict[str, Any] = field(default_factory=dict)
    is_sample: bool = False


class ImageTextModule(SourcedDataModule):
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
        super().__init__(store, **kwargs)
        self.tokenizer, self.text_length = tokenizer, text_length
        self.side, self.stored_side, self.image_fit = side, stored_side or side, image_fit
        self.augmentation, self.mean, self.deviation = augmentation, mean, deviation
        self.image_bits = image_bits
        check_bits(image_bits)
        self.without_text = without_text
        check_sides(side, self.stored_side)
        for key, value, known in (
            ("image_fit", image_fit, FITS),
            ("without_text", without_text, WITHOUT_TEXT),
        ):
            if value not in known:
                raise UserError(f"dataset.{key}={value}: must be {', '.join(known[:-1])} or {known[-1]}")
        if (mean is None) != (deviation is None) or any(v is not None and len(v) != 3 for v in (mean, deviation)):
            raise UserError("dataset.mean and dataset.deviation: give three numbers each, or null for both")
        if deviation is not None and min(deviation) <= 0:
            raise UserError(f"dataset.deviation={list(deviation)}: must be positive")

    def find_tokenizer(self) -> str:
        """Name or path of the tokenizer, for :func:`datasets.readers.tokens.load_tokenizer`."""
        return str(self.tokenizer)

    def check_counts(self, counts: Mapping[str, int]) -> None:
        """Check the numbers of rows of the splits; data sets with published numbers override it."""

    def content_source(self, kind: str, settings: Any, load: Callable[[], Content]) -> Source:
        """The source of a :class:`Content`, with the packing options and the tokenizer in its signature.

        Args:
            kind: of the source, in one word.
            settings: plain values that change whenever the content does.
            load: reads the content; called once.
        """
        packing: list[Any] = [self.text_length, self.stored_side, self.image_fit, self.without_text]
        if self.image_bits is not None:
            packing.append(self.image_bits)
        tokenizer = fingerprint(self.find_tokenizer())
        signature = sha256([PACKING_VERSION, kind, settings, tokenizer, packing])
        load_once = cache(load)

        def pictures() -> list[Path]:
            return [image for items in load_once().splits.values() for image in items.images]

        return Source(kind, signature, {}, load_once, pictures)

    def shorten(self, content: Content, rows: int) -> tuple[Content, dict[str, int]]:
        splits = dict(content.splits)
        if self.without_text == "leave_out":
            has_text = {split: [bool(text.strip()) for text in items.texts] for split, items in splits.items()}
            splits = {split: items.keep(np.flatnonzero(has_text[split])) for split, items in splits.items()}
        counts = {split: len(items.names) for split, items in splits.items()}
        splits = {split: items.keep(sample_rows(items.target, rows)) for split, items in splits.items()}
        return replace(content, splits=splits, is_sample=True), counts

    @property
    def modalities(self) -> list[Modality]:  # type: ignore[override]
        """Image and text; the vocabulary of the text is known once the data are packed."""
        return [
            Modality(self.image_name, "image", (3, self.side, self.side), scale=self.scale),
            Modality(self.text_name, "text", (self.text_length,), vocabulary=self.packed_meta()["vocabulary"]),
        ]

    @property
    def kinds(self) -> dict[str, str]:
        return {self.image_name: "image", self.text_name: "text"}

    @property
    def scale(self) -> Scale:
        """Scale of the images."""
        if self.mean is None or self.deviation is None:
            return Scale()
        return Scale(tuple(self.mean), tuple(self.deviation))

    @property
    def class_names(self) -> list[str]:  # type: ignore[override]
        return list(self.packed_meta()["class_names"])

    def input_settings(self) -> dict[str, dict[str, Any]]:
        identity = self.packed_meta().get("tokenizer_identity")  # older stores have none
        text = {} if identity is None else {"tokenizer": identity}
        return {self.image_name: {"fit": self.image_fit}, self.text_name: text}

    def transform(self, train: bool) -> ImageTransform:
        augmentation = self.augmentation if train else None
        return ImageTransform(self.image_name, self.side, augmentation, self.mean, self.deviation)

    def pixels(self, name: str, images: Tensor) -> Tensor:
        return self.transform(False).pixels(images)

    def strings(self, name: str, content: Tensor) -> list[str]:
        tokenizer = load_tokenizer(self.find_tokenizer())
        return [str(text) for text in tokenizer.batch_decode(content.tolist(), skip_special_tokens=True)]

    @property
    def image_reader(self) -> ImageReader:
        """What makes stored images of files."""
        return ImageReader(
            self.stored_side, resample=Image.Resampling.BICUBIC, fit=self.image_fit, bits=self.image_bits
        )

    def save_tokenizer(self, folder: Path) -> None:
        save_tokenizer(self.find_tokenizer(), folder)

    def pack(self, source: Source) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        tokenizer = load_tokenizer(self.find_tokenizer())
        content: Content = source.load()
        splits = {split: items for split, items in content.splits.items() if items.names}
        if "train" not in splits:
            raise UserError(f"{self.name} has no row for training (only {', '.join(splits) or 'nothing'})")
        tokens, cut = {}, {}
        for split, items in splits.items():
            tokens[split], cut[split] = tokenise(items.texts, tokenizer, self.text_length)
        blank = {split: count_tokens(ids, tokenizer)[0] == 0 for split, ids in tokens.items()}  # (N,) bool
        # Rows with characters of which the tokenizer makes no token.
        invisible = sum(
            bool(items.texts[i].strip()) for split, items in splits.items() for i in np.flatnonzero(blank[split])
        )
        without_text = self._check_texts(splits, blank, invisible)
        if self.without_text == "leave_out":
            splits = {split: items.keep(np.flatnonzero(~blank[split])) for split, items in splits.items()}
            tokens = {split: ids[~blank[split]] for split, ids in tokens.items()}
        note_unknown(tokens, tokenizer, self.name, self.find_tokenizer())
        if not content.is_sample:
            self.check_counts({split: len(items.names) for split, items in splits.items()})
            for split, items in splits.items():
                self._check_target(split, items.target, content.class_names)
        packed: dict[str, dict[str, Any]] = {}
        for split, items in splits.items():
            packed[split] = {self.text_name: tokens[split], "target": items.target, "name": np.array(items.names)}
            if self.without_text == "missing" and blank[split].any():
                packed[split][f"{self.text_name}_absent"] = blank[split]
        if any(cut.values()):
            total = sum(len(items.names) for items in splits.values())
            log.info("%s: %d of %d texts are cut at %d tokens", self.name, sum(cut.values()), total, self.text_length)
        pixels = decode_images(
            {split: items.images for split, items in splits.items()}, self.scratch, self.image_reader
        )
        for split, arrays in packed.items():
            arrays[self.image_name] = pixels[split]
        return packed, {
            "class_names": content.class_names,
            "vocabulary": len(tokenizer),
            "tokenizer": self.find_tokenizer(),
            "tokenizer_identity": identity(tokenizer),
            "texts_cut": cut,
            "without_text": without_text,
            "reading_changes": [f"{invisible} texts without a token"] if invisible else [],
            "source": {"kind": source.kind, **content.about},
        }

    def may_read_differently(self) -> bool:
        """Whether a text of special tokens alone (at most two) counts as observed."""
        for split in self.packed_meta()["counts"]:
            packed, name = self.store.split(split), f"{self.text_name}_absent"
            is_empty = (packed.read(self.text_name) != PADDING).sum(1) <= 2
            if (is_empty & ~packed.read(name) if packed.has(name) else is_empty).any():
                return True
        return False

    def _check_texts(self, splits: dict[str, Items], empty: Mapping[str, np.ndarray], invisible: int) -> dict[str, int]:
        """Apply ``without_text``: refuse rows without text, or log their number.

        Args:
            empty: split -> (N,) bool.
            invisible: how many of these rows have characters of which the tokenizer makes no token.

        Returns:
            Split -> number of these rows.

        Raises:
            UserError: rows without text are to be refused.
        """
        counts = {split: int(rows.sum()) for split, rows in empty.items()}
        if not any(counts.values()):
            return counts
        first = next(splits[split].names[rows.argmax()] for split, rows in empty.items() if rows.any())
        per_split = ", ".join(f"{n} of {len(empty[split])} in {split}" for split, n in counts.items() if n)
        problem = f"{self.name}: rows without text: {per_split}, the first is {first}"
        if invisible:
            problem += f" ({invisible} of them have characters of which the tokenizer makes no token)"
        if self.without_text == "refuse":
            raise UserError(
                f"{problem}: add their texts, or set dataset.without_text=leave_out, or =missing to keep them with a "
                "missing text"
            )
        if self.without_text == "leave_out":
            log.warning("%s; they are left out", problem)
        else:
            log.warning("%s; their text is missing under every scenario", problem)
        return counts

    def _check_target(self, split: str, target: np.ndarray, names: Sequence[str]) -> None:
        """
        Raises:
            UserError: a class, or a label of a multi-label task, without a training row.
        """
        if target.ndim == 1:
            check_classes(split, target, len(names), self.name)
            return
        absent = [name for name, has_rows in zip(names, (target == 1).any(0)) if not has_rows]
        if absent and split == "train":
            raise UserError(
                f"{self.name}: no training row has the label {', '.join(absent)}: it cannot be learned, restore the "
                "rows that have it"
            )
        if absent:
            log.warning("%s: no row of split '%s' has the label %s", self.name, split, ", ".join(absent))

"""Image + text data sets: the base of all of them, and `ImageText`, a user's own CSV file.

A text is tokenised once (``datasets/readers/tokens.py``), an image decoded once, cropped to its central square and
stored at one size. Training crops and flips, and the normalisation, are applied to whole batches.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image
from torch import Tensor

from datasets.base import SPLITS
from datasets.batch import Modality
from datasets.readers.csv_rows import CsvRows
from datasets.readers.images import ImageReader, check_sides, decode_images
from datasets.readers.pictures import check_bits
from datasets.readers.tokens import (
    PADDING,
    VOCABULARY,
    WordMask,
    count_tokens,
    fingerprint,
    identity,
    load_tokenizer,
    tokenise,
)
from datasets.scale import Scale
from datasets.source import Source, SourcedDataModule, check_classes, sha256
from datasets.transforms import ImageTransform, JointAugmentation
from utils.errors import UserError

if TYPE_CHECKING:  # slow to import, and not needed once the texts are packed
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

PACKING_VERSION = 1
WITHOUT_TEXT = ("leave_out", "missing", "refuse")
FITS = ("crop", "stretch")


@dataclass
class Items:
    """One split, ready to be packed.

    Attributes:
        images: a file a row.
        texts: as they are to be tokenised, '' where there is none.
        target: (N,) int64, or (N, C) float32 with -1 for 'no label'.
        names: what the rows are called in the source.
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
    """A whole data set, ready to be packed; ``about`` are plain values for ``meta.json``."""

    class_names: list[str]
    splits: dict[str, Items]
    about: dict[str, Any] = field(default_factory=dict)


class ImageTextModule(SourcedDataModule):
    """Base of the image + text data sets; a subclass implements :meth:`find_source`, which loads a :class:`Content`.

    Args:
        store: folder of the packed store.
        tokenizer: see :func:`datasets.readers.tokens.load_tokenizer`.
        text_length: tokens of a text; longer ones are cut, shorter ones padded.
        side: of the images that a model gets.
        stored_side: of the images in the store, from which training crops are cut; None = ``side``.
        image_fit: ``crop`` takes the central square of an image, ``stretch`` all of it.
        image_bits: in use of 16-bit images, None = 16 (see :func:`datasets.readers.pictures.open_picture`).
        augmentation: of training images, None = none.
        mean, deviation: of each channel, by which images are normalised; None = pixels in [0, 1].
        without_text: rows without text, that is without any token, are left out (``leave_out``), have a missing text
            under every scenario (``missing``), or are refused (``refuse``).
        **kwargs: see :class:`MultimodalDataModule`.

    Raises:
        UserError: an impossible size or option.
    """

    paths: ClassVar[tuple[str, ...]] = ("tokenizer",)
    paths_or_names = ("tokenizer",)
    read_time = ("augmentation", "mean", "deviation")
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
        """Where the tokenizer is, for :func:`datasets.readers.tokens.load_tokenizer`."""
        return str(self.tokenizer)

    def check_counts(self, counts: Mapping[str, int]) -> None:
        """Whether the numbers of rows of the splits are what they should be."""

    def _source(self, kind: str, settings: Any, load: Callable[[], Content]) -> Source:
        packing: list[Any] = [self.text_length, self.stored_side, self.image_fit, self.without_text]
        if self.image_bits is not None:
            packing.append(self.image_bits)
        tokenizer = fingerprint(self.find_tokenizer())
        signature = sha256([PACKING_VERSION, kind, settings, tokenizer, packing])
        load_once = cache(load)
        return Source(
            kind,
            signature,
            {},
            load_once,
            lambda: [image for items in load_once().splits.values() for image in items.images],
        )

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
        """Of the images."""
        if self.mean is None or self.deviation is None:
            return Scale()
        return Scale(tuple(self.mean), tuple(self.deviation))

    @property
    def class_names(self) -> list[str]:  # type: ignore[override]
        return list(self.packed_meta()["class_names"])

    def input_settings(self) -> dict[str, dict[str, Any]]:
        identity = self.packed_meta().get("tokenizer_identity")  # stores packed before it was kept have none
        text = {} if identity is None else {"tokenizer": identity}
        return {self.image_name: {"fit": self.image_fit}, self.text_name: text}

    def transform(self, train: bool) -> ImageTransform:
        augmentation = self.augmentation if train else None
        return ImageTransform(self.image_name, self.side, augmentation, self.mean, self.deviation)

    def pixels(self, name: str, images: Tensor) -> Tensor:
        return self.transform(False).pixels(images)

    def pack(self, source: Source) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        tokenizer = load_tokenizer(self.find_tokenizer())
        content: Content = source.load()
        splits = {split: items for split, items in content.splits.items() if len(items.names)}
        if "train" not in splits:
            raise UserError(f"{self.name} has no row for training (only {', '.join(splits) or 'nothing'})")
        tokens, cut = {}, {}
        for split, items in splits.items():
            tokens[split], cut[split] = tokenise(items.texts, tokenizer, self.text_length)
        blank = {split: count_tokens(ids, tokenizer)[0] == 0 for split, ids in tokens.items()}
        invisible = 0
        for split, items in splits.items():
            invisible += sum(bool(items.texts[i].strip()) for i in np.flatnonzero(blank[split]))
        empty = self._check_texts(splits, blank, invisible)
        if self.without_text == "leave_out":
            splits = {split: items.keep(np.flatnonzero(~blank[split])) for split, items in splits.items()}
            tokens = {split: ids[~blank[split]] for split, ids in tokens.items()}
        self._note_unknown(tokens, tokenizer)
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
        resample = Image.Resampling.BICUBIC
        read = ImageReader(self.stored_side, resample=resample, fit=self.image_fit, bits=self.image_bits)
        pixels = decode_images({split: items.images for split, items in splits.items()}, self.scratch, read)
        for split, arrays in packed.items():
            arrays[self.image_name] = pixels[split]
        return packed, {
            "class_names": content.class_names,
            "vocabulary": len(tokenizer),
            "tokenizer": self.find_tokenizer(),
            "tokenizer_identity": identity(tokenizer),
            "texts_cut": cut,
            "without_text": empty,
            "reading_changes": [f"{invisible} texts without a token"] if invisible else [],
            "source": {"kind": source.kind, **content.about},
        }

    def may_read_differently(self) -> bool:
        """A text of nothing but special tokens (at most two) that counts as present."""
        for split in self.packed_meta()["counts"]:
            packed, name = self.store.split(split), f"{self.text_name}_absent"
            few = (packed.read(self.text_name) != PADDING).sum(1) <= 2
            if (few & ~packed.read(name) if packed.has(name) else few).any():
                return True
        return False

    def _note_unknown(self, tokens: Mapping[str, np.ndarray], tokenizer: PreTrainedTokenizerBase) -> None:
        """Log the share of unknown tokens; warn above a half."""
        counts = [[int(part.sum()) for part in count_tokens(ids, tokenizer)] for ids in tokens.values()]
        total, unknown = (sum(column) for column in zip(*counts))
        share = unknown / max(total, 1)
        log.info("%s: %.1f %% of %d tokens are unknown (%s)", self.name, 100 * share, total, tokenizer.unk_token)
        if share > 0.5:
            log.warning(
                "%s: the tokenizer %s knows less than half of the words (%.1f %% of the tokens are %s): models see "
                "hardly any text, set dataset.tokenizer to one of the language of these texts",
                self.name,
                self.find_tokenizer(),
                100 * share,
                tokenizer.unk_token,
            )

    def _check_texts(self, splits: dict[str, Items], empty: Mapping[str, np.ndarray], invisible: int) -> dict[str, int]:
        """Say what becomes of rows without text.

        Args:
            empty: split -> (N,) bool.
            invisible: how many of these rows have characters, of which the tokenizer makes nothing.

        Returns:
            How many there are in each split.

        Raises:
            UserError: there are some, and they are to be refused.
        """
        counts = {split: int(rows.sum()) for split, rows in empty.items()}
        if not any(counts.values()):
            return counts
        first = next(splits[split].names[rows.argmax()] for split, rows in empty.items() if rows.any())
        found = ", ".join(f"{n} of {len(empty[split])} in {split}" for split, n in counts.items() if n)
        found = f"{self.name}: rows without text: {found}, the first is {first}"
        if invisible:
            found += f" ({invisible} of them have characters of which the tokenizer makes no token)"
        if self.without_text == "refuse":
            raise UserError(
                f"{found}: add their texts, or set dataset.without_text=leave_out, or =missing to keep them with a "
                "missing text"
            )
        if self.without_text == "leave_out":
            log.warning("%s; they are left out", found)
        else:
            log.warning("%s; their text is missing under every scenario", found)
        return counts

    def _check_target(self, split: str, target: np.ndarray, names: Sequence[str]) -> None:
        """
        Raises:
            UserError: a class, or a label of several, without a training row.
        """
        if target.ndim == 1:
            check_classes(split, target, len(names), self.name)
            return
        absent = [name for name, there in zip(names, (target == 1).any(0)) if not there]
        if absent and split == "train":
            raise UserError(
                f"{self.name}: no training row has the label {', '.join(absent)}: it cannot be learned, restore the "
                "rows that have it"
            )
        if absent:
            log.warning("%s: no row of split '%s' has the label %s", self.name, split, ", ".join(absent))


class PublishedImageText(ImageTextModule):
    """A data set that is downloaded, with published numbers of rows, and a stand-in.

    Args:
        store: folder of the packed store; not the folder of the raw files.
        root: folder with the raw files.
        demo: ``root`` holds demo data with a vocabulary of its own, whose counts are not those of the real ones.
        statistics: what happens where the numbers of rows are not the published ones: ``refuse`` or ``warn``.
        validation: ``test`` = the published split without validation rows (CMPT): all training rows train, and the
            test rows stand in as the validation split, to which the original works look when they choose a checkpoint;
            with ``dataset.monitor=null`` the last epoch counts instead. None = the validation rows of the data set.
        **kwargs: see :class:`ImageTextModule`.

    Attributes:
        published: split -> rows.
    """

    paths = ("root",)
    published: ClassVar[dict[str, int]]

    def __init__(
        self,
        *,
        store: str,
        root: str | None,
        demo: bool = False,
        statistics: str = "refuse",
        validation: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(store, **kwargs)
        self.validation = validation
        if validation not in (None, "test"):
            raise UserError(f"dataset.validation={validation}: must be test, or null for the rows of {self.name}")
        self.root, self.demo, self.statistics = None if root is None else Path(root), demo, statistics
        if statistics not in ("refuse", "warn"):
            raise UserError(f"dataset.statistics={statistics}: must be refuse or warn")

    def find_tokenizer(self) -> str:
        return str(self.root / VOCABULARY) if self.demo and self.root else super().find_tokenizer()

    def wanted_counts(self) -> dict[str, int]:
        """Split -> rows, as published, with the chosen validation rows."""
        return self.published | ({"val": self.published["test"]} if self.validation == "test" else {})

    def validated_on_test(self, splits: dict[str, Items], has_drawn_validation: bool) -> dict[str, Items]:
        """The splits of ``validation=test``.

        Args:
            has_drawn_validation: the validation rows were drawn from the training rows, and go back to them.
        """
        log.warning(
            "%s: validation=test uses the test rows as validation rows, as the original works do: a checkpoint that is "
            "chosen on them has no score for unseen rows (dataset.monitor=null keeps the last epoch)",
            self.name,
        )
        train, val, test = (splits[split] for split in SPLITS)
        if has_drawn_validation:
            target = np.concatenate([train.target, val.target])
            train = Items(train.images + val.images, train.texts + val.texts, target, train.names + val.names)
        return {"train": train, "val": test, "test": test}

    def check_counts(self, counts: Mapping[str, int]) -> None:
        """
        Raises:
            UserError: other numbers than the published ones, unless they are only to be warned of.
        """
        other = [
            f"{split} has {counts.get(split, 0):,} rows, {n:,} were published"
            for split, n in self.wanted_counts().items()
            if counts.get(split, 0) != n
        ]
        if not other or self.demo:
            return
        if self.statistics == "refuse":
            raise UserError(
                f"{self.name}: {'; '.join(other)}: complete the download, or set dataset.statistics=warn to go on with "
                "what is there"
            )
        log.warning("%s: %s", self.name, "; ".join(other))


# ----------------------------------------------------------------------------------------------------- a user's own CSV


class ImageText(CsvRows, ImageTextModule):
    """An image and a text a sample, from one CSV file with a header; no Python needed (``docs/your-data.md``).

    Args:
        text: column of the text, or several, which are joined by a blank.
        mask_words: beginnings of words that would give the label away (:class:`datasets.readers.tokens.WordMask`); the
        mask
            token stands in their place.
        **kwargs: see :class:`CsvRows` and :class:`ImageTextModule`.
    """

    def __init__(self, *, text: str | Sequence[str], mask_words: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.texts = [text] if isinstance(text, str) else [str(column) for column in text]
        self.mask_words = [str(word) for word in mask_words]
        if not self.texts:
            raise UserError("dataset.text is empty: name at least one column")
        if leaks := sorted(set(self.texts) & set(self.labels)):
            raise UserError(f"column '{leaks[0]}' is a label and an input: take it out of dataset.text")
        if empty := [word for word in self.mask_words if not word.strip()]:
            raise UserError(f"dataset.mask_words holds {empty[0]!r}, which every word begins with: leave it out")

    def find_source(self) -> Source:
        return self._source("csv", [self.row_settings(), self.texts, self.mask_words], self._load)

    def _load(self) -> Content:
        rows = self.read_rows(self.texts)
        tokenizer = load_tokenizer(self.tokenizer)
        mask = WordMask(self.mask_words, tokenizer.mask_token or tokenizer.unk_token)
        cells = rows.frame[self.texts].where(~rows.missing[self.texts], "")
        joined = [" ".join(filter(None, row)) for row in cells.itertuples(index=False)]
        masked = [mask(text) for text in joined]
        words, texts = sum(n for _, n in masked), sum(n > 0 for _, n in masked)
        if self.mask_words:
            log.info("%s: %d words masked in %d of %d texts", self.csv, words, texts, len(masked))
        names = rows.frame[self.image].tolist()
        parts = {
            split: Items([rows.images[i] for i in r], [masked[i][0] for i in r], rows.target[r], [names[i] for i in r])
            for split, r in rows.splits.items()
        }
        about = {"csv": str(self.csv), "left_out": rows.left_out, "masked": {"words": words, "texts": texts}}
        return Content(rows.class_names, parts, about)

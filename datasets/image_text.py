"""Image + text from one CSV file, without any Python (``docs/your-data.md``)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from datasets.image_text_module import Content, ImageTextModule, Items
from datasets.modality_parts.text import masked_texts, text_arrays
from datasets.new_rows import NewRows
from datasets.readers.csv_rows import CsvRows
from datasets.readers.tokens import load_tokenizer
from datasets.source import Source
from utils.errors import UserError

log = logging.getLogger(__name__)


class ImageText(CsvRows, ImageTextModule):
    """Data set with an image and a text per sample, from one CSV file with a header.

    Args:
        text: column of the text, or a list of columns, whose texts are joined by a blank.
        mask_words: beginnings of words that would reveal the label; the mask token replaces these words, see
            :class:`datasets.readers.tokens.WordMask`.
        **kwargs: see :class:`CsvRows` and :class:`ImageTextModule`.
    """

    def __init__(self, *, text: str | Sequence[str], mask_words: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.texts = [text] if isinstance(text, str) else [str(column) for column in text]
        self.mask_words = [str(word) for word in mask_words]
        if not self.texts:
            raise UserError("dataset.text is empty: name at least one column")
        self.row_labels.refuse_inputs(self.texts, "dataset.text")
        if empty := [word for word in self.mask_words if not word.strip()]:
            raise UserError(f"dataset.mask_words holds {empty[0]!r}, which every word begins with: leave it out")

    def find_source(self) -> Source:
        return self.content_source("csv", [self.row_settings(), self.texts, self.mask_words], self._load)

    def encode_rows(
        self, frame: pd.DataFrame, images: Path, where: str, *, unknown: str = "refuse", id_column: str | None = None
    ) -> NewRows:
        encoder = self.row_encoder(frame, where, unknown)
        pixels = encoder.images(self.image_column, images, self.image_suffix, self.image_reader)
        texts = text_arrays(
            encoder, self.text_name, self.texts, self.mask_words, self.find_tokenizer(), self.text_length
        )
        arrays = {**pixels.arrays(self.image_name), **texts}
        names = encoder.names(id_column, self.image_column)
        return encoder.finish(names, arrays, encoder.target(self.row_labels, self.class_names))

    def _load(self) -> Content:
        rows = self.read_rows(self.texts)
        tokenizer = load_tokenizer(self.tokenizer)
        masked = masked_texts(rows.table.frame[self.texts], rows.table.missing[self.texts], self.mask_words, tokenizer)
        words, texts = sum(n for _, n in masked), sum(n > 0 for _, n in masked)
        if self.mask_words:
            log.info("%s: %d words masked in %d of %d texts", self.csv, words, texts, len(masked))
        names = rows.table.frame[self.image_column].tolist()
        splits = {
            split: Items(
                images=[rows.images[i] for i in numbers],
                texts=[masked[i][0] for i in numbers],
                target=rows.target[numbers],
                names=[names[i] for i in numbers],
            )
            for split, numbers in rows.splits.items()
        }
        about = {"csv": str(self.csv), "left_out": rows.left_out, "masked": {"words": words, "texts": texts}}
        return Content(rows.class_names, splits, about)

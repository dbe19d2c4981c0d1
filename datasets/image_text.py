"""Image + text from one CSV file, without any Python (``docs/your-data.md``)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from datasets.image_text_module import Content, ImageTextModule, Items
from datasets.new_rows import NewRows
from datasets.readers.csv_rows import CsvRows
from datasets.readers.tokens import WordMask, count_tokens, load_tokenizer, tokenise
from datasets.source import Source
from utils.errors import UserError

if TYPE_CHECKING:  # slow to import, and not needed once the texts are packed
    from transformers import PreTrainedTokenizerBase

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
        pixels = encoder.images(self.image, images, self.image_suffix, self.image_reader)
        columns = pd.DataFrame({column: encoder.cells(column) for column in self.texts})
        tokenizer = load_tokenizer(self.find_tokenizer())
        texts = [text for text, _ in self._masked(columns, columns.isin(self.missing_values), tokenizer)]
        tokens, _ = tokenise(texts, tokenizer, self.text_length)
        is_blank = count_tokens(tokens, tokenizer)[0] == 0
        arrays = {**pixels.arrays(self.image_name), self.text_name: tokens}
        arrays |= {f"{self.text_name}_absent": is_blank} if is_blank.any() else {}
        names = encoder.names(id_column, self.image)
        return encoder.finish(names, arrays, encoder.target(self.row_labels, self.class_names))

    def _masked(
        self, cells: pd.DataFrame, missing: pd.DataFrame, tokenizer: PreTrainedTokenizerBase
    ) -> list[tuple[str, int]]:
        """Text of each row without the words that reveal the label, and the number of these."""
        mask = WordMask(self.mask_words, tokenizer.mask_token or tokenizer.unk_token)
        joined = [" ".join(filter(None, row)) for row in cells.where(~missing, "").itertuples(index=False)]
        return [mask(text) for text in joined]

    def _load(self) -> Content:
        rows = self.read_rows(self.texts)
        tokenizer = load_tokenizer(self.tokenizer)
        masked = self._masked(rows.table.frame[self.texts], rows.table.missing[self.texts], tokenizer)
        words, texts = sum(n for _, n in masked), sum(n > 0 for _, n in masked)
        if self.mask_words:
            log.info("%s: %d words masked in %d of %d texts", self.csv, words, texts, len(masked))
        names = rows.table.frame[self.image].tolist()
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

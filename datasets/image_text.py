"""Image + text from one CSV file: a preset of :class:`datasets.from_csv.FromCSV` (``docs/your-data.md``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets.from_csv import CsvImage
from datasets.image_text_module import ImageTextModule
from datasets.readers.csv_rows import Rows
from datasets.source import Source
from utils.errors import UserError


class ImageText(CsvImage, ImageTextModule):
    """Data set with an image and a text per sample, from one CSV file with a header.

    Args:
        text: column of the text, or a list of columns, whose texts are joined by a blank.
        mask_words: see :class:`datasets.modality_parts.text.TextPart`.
        **kwargs: see :class:`CsvImage` and :class:`ImageTextModule`.
    """

    drops_empty_rows = True

    def __init__(self, *, text: str | Sequence[str], mask_words: Sequence[str] = (), **kwargs: Any) -> None:
        if not text:
            raise UserError("dataset.text is empty: name at least one column")
        self.text, self.mask_words = text, mask_words
        super().__init__(**kwargs)

    @property
    def text_columns(self) -> dict[str, Any]:
        return {"columns": self.text, "mask_words": self.mask_words}

    def find_source(self) -> Source:
        settings = [self.row_settings(), self.text_part.texts, self.text_part.mask_words]
        return self.content_source("csv", settings, self.load_content)

    def row_names(self, rows: Rows) -> list[str]:
        names: list[str] = rows.table.frame[self.image_column].tolist()
        return names

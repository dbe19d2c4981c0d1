"""Texts of a data set from one CSV file: one column or several, as token ids."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from datasets.batch import Modality
from datasets.modality_parts.base import About, Packed, Part, one_of, positive
from datasets.readers.csv_rows import Rows
from datasets.readers.tokens import FIX, WordMask, count_tokens, fingerprint, identity, load_tokenizer, tokenise
from datasets.row_encoder import RowEncoder

if TYPE_CHECKING:  # slow to import, and not needed once the texts are packed
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


class TextPart(Part):
    """Token ids of one column or several, joined by blanks.

    Args:
        columns: names of the columns, or one name.
        length: tokens per text; longer texts are cut, shorter ones padded.
        mask_words: beginnings of words that would reveal the label; the mask token replaces these words, see
            :class:`datasets.readers.tokens.WordMask`.
        empty: rows without any token lack the text (``missing``), or are refused (``refuse``).
        tokenizer: of the data set, see :func:`datasets.readers.tokens.load_tokenizer`.
    """

    kind = modality_kind = "text"

    def __init__(
        self,
        name: str,
        *,
        columns: str | Sequence[str],
        length: int = 128,
        mask_words: Sequence[str] = (),
        empty: str = "missing",
        tokenizer: str | None = None,
    ) -> None:
        super().__init__(name)
        self.texts = [columns] if isinstance(columns, str) else [str(column) for column in columns]
        self.length, self.mask_words, self.empty = length, [str(word) for word in mask_words], empty
        problems = positive("length", length) + one_of("empty", empty, ("missing", "refuse"))
        if not self.texts:
            problems.append("columns=[]: name at least one column")
        if blank := [word for word in self.mask_words if not word.strip()]:
            problems.append(f"mask_words holds {blank[0]!r}, which every word begins with: leave it out")
        if tokenizer is None:
            problems.append(f"kind=text: dataset.tokenizer is null: {FIX}")
        self.refuse(problems)
        self.tokenizer = str(tokenizer)

    @property
    def columns(self) -> list[str]:
        return self.texts

    def settings(self) -> Any:
        return [self.kind, self.texts, self.length, self.mask_words, self.empty, fingerprint(self.tokenizer)]

    def pack(self, rows: Rows, folder: Path, scratch: Path) -> Packed:
        tokenizer = load_tokenizer(self.tokenizer)
        cells, missing = rows.table.frame[self.texts], rows.table.missing[self.texts]
        masked = masked_texts(cells, missing, self.mask_words, tokenizer)
        words, texts = sum(n for _, n in masked), sum(n > 0 for _, n in masked)
        if self.mask_words:
            log.info("'%s': %d words masked in %d of %d texts", self.name, words, texts, len(masked))
        tokens, cut = tokenise([text for text, _ in masked], tokenizer, self.length)
        if cut:
            log.info("'%s': %d of %d texts are cut at %d tokens", self.name, cut, len(tokens), self.length)
        blank = count_tokens(tokens, tokenizer)[0] == 0
        if self.empty == "refuse":
            rows.table.refuse(
                blank,
                f"rows without a text in {', '.join(self.texts)}",
                f"correct or remove these rows, or set dataset.{self.prefix}empty=missing",
            )
        note_unknown({"": tokens}, tokenizer, f"'{self.name}'", self.tokenizer)
        about = {"vocabulary": len(tokenizer), "tokenizer_identity": identity(tokenizer)}
        counts = {"masked": {"words": words, "texts": texts}, "cut": cut, "blank": int(blank.sum())}
        return Packed({"": tokens}, blank, about, counts=counts)

    def modality(self, about: About) -> Modality:
        return Modality(self.name, "text", (self.length,), vocabulary=about["vocabulary"])

    def input_settings(self, about: About) -> dict[str, Any]:
        return {"tokenizer": about["tokenizer_identity"]}

    def encode(self, encoder: RowEncoder, folder: Path, about: About) -> dict[str, np.ndarray]:
        return text_arrays(encoder, self.name, self.texts, self.mask_words, self.tokenizer, self.length)


def masked_texts(
    cells: pd.DataFrame, missing: pd.DataFrame, mask_words: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[str, int]]:
    """Text of each row without the words that reveal the label, and the number of these."""
    mask = WordMask(mask_words, tokenizer.mask_token or tokenizer.unk_token)
    joined = [" ".join(filter(None, row)) for row in cells.where(~missing, "").itertuples(index=False)]
    return [mask(text) for text in joined]


def text_arrays(
    encoder: RowEncoder, name: str, columns: Sequence[str], mask_words: Sequence[str], tokenizer: str, length: int
) -> dict[str, np.ndarray]:
    """Texts of new rows as a packed store has them.

    Args:
        name: of the modality.
        length: tokens per text.
    """
    cells = pd.DataFrame({column: encoder.cells(column) for column in columns})
    loaded = load_tokenizer(tokenizer)
    texts = [text for text, _ in masked_texts(cells, cells.isin(encoder.missing_values), mask_words, loaded)]
    tokens, _ = tokenise(texts, loaded, length)
    is_blank = count_tokens(tokens, loaded)[0] == 0
    return {name: tokens, **({f"{name}_absent": is_blank} if is_blank.any() else {})}


def note_unknown(tokens: Mapping[str, np.ndarray], tokenizer: PreTrainedTokenizerBase, where: str, source: str) -> None:
    """Log the share of unknown tokens; warn above a half.

    Args:
        tokens: split -> ids (N, L).
        where: data set or modality, for messages.
        source: name or path of the tokenizer.
    """
    counts = [[int(part.sum()) for part in count_tokens(ids, tokenizer)] for ids in tokens.values()]
    total, unknown = (sum(column) for column in zip(*counts))
    share = unknown / max(total, 1)
    log.info("%s: %.1f %% of %d tokens are unknown (%s)", where, 100 * share, total, tokenizer.unk_token)
    if share > 0.5:
        log.warning(
            "%s: the tokenizer %s knows less than half of the words (%.1f %% of the tokens are %s): models see "
            "hardly any text, set dataset.tokenizer to one of the language of these texts",
            where,
            source,
            100 * share,
            tokenizer.unk_token,
        )

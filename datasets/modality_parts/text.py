"""Texts of a data set from one CSV file: one column or several, as token ids."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import Tensor

from datasets.batch import Modality
from datasets.content import Content, Texts
from datasets.modality_parts.base import About, Packed, Part, one_of, positive
from datasets.readers.csv_rows import Rows
from datasets.readers.tokens import (
    FIX,
    PADDING,
    WordMask,
    count_tokens,
    fingerprint,
    identity,
    load_tokenizer,
    tokenise,
)
from datasets.row_encoder import RowEncoder
from utils.errors import UserError

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
        empty: rows without any token lack the text (``missing``), are left out (``leave_out``), or are refused
            (``refuse``).
        tokenizer: of the data set, see :func:`datasets.readers.tokens.load_tokenizer`.
    """

    kind = modality_kind = "text"

    def __init__(
        self,
        name: str,
        keys: Mapping[str, str] | None = None,
        *,
        columns: str | Sequence[str],
        length: int = 128,
        mask_words: Sequence[str] = (),
        empty: str = "missing",
        tokenizer: str | None = None,
    ) -> None:
        super().__init__(name, keys)
        self.texts = [columns] if isinstance(columns, str) else [str(column) for column in columns]
        self.length, self.mask_words, self.empty = length, [str(word) for word in mask_words], empty
        problems = positive("length", length) + one_of("empty", empty, ("leave_out", "missing", "refuse"))
        if not self.texts and keys is None:
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

    def load(self, rows: Rows, folder: Path) -> Texts:
        tokenizer = load_tokenizer(self.tokenizer)
        cells, missing = rows.table.frame[self.texts], rows.table.missing[self.texts]
        masked = masked_texts(cells, missing, self.mask_words, tokenizer)
        words, texts = sum(n for _, n in masked), sum(n > 0 for _, n in masked)
        if self.mask_words:
            log.info("'%s': %d words masked in %d of %d texts", self.name, words, texts, len(masked))
        return Texts([text for text, _ in masked], {"words": words, "texts": texts})

    def pack(self, content: Content, scratch: Path, shared: Path | None = None) -> Packed:
        texts: Texts = content.inputs[self.name]
        tokenizer = load_tokenizer(self.tokenizer)
        tokens: np.ndarray = np.full((len(texts.strings), self.length), PADDING, dtype=np.int32)
        blank, cut = np.zeros(len(tokens), dtype=bool), {}
        for split, rows in content.splits.items():
            tokens[rows], cut[split] = tokenise([texts.strings[i] for i in rows], tokenizer, self.length)
            blank[rows] = count_tokens(tokens[rows], tokenizer)[0] == 0
        # Rows with characters of which the tokenizer makes no token.
        invisible = sum(bool(texts.strings[i].strip()) for rows in content.splits.values() for i in rows[blank[rows]])
        counts = self._judge(content, blank, invisible)
        of_splits = {split: tokens[rows] for split, rows in content.splits.items()}
        note_unknown(of_splits, tokenizer, f"'{self.name}'", self.tokenizer)
        if any(cut.values()):
            total = sum(map(len, content.splits.values()))
            log.info("'%s': %d of %d texts are cut at %d tokens", self.name, sum(cut.values()), total, self.length)
        return Packed(
            arrays={"": tokens},
            absent=blank,
            left_out=blank if self.empty == "leave_out" else None,
            about={"vocabulary": len(tokenizer), "tokenizer_identity": identity(tokenizer)},
            counts={"masked": texts.masked, "cut": cut, "blank": counts},
            changes=[f"{invisible} texts without a token"] if invisible else [],
        )

    def _judge(self, content: Content, blank: np.ndarray, invisible: int) -> dict[str, int]:
        """Refuse rows without text, or log their number.

        Args:
            blank: (N,) bool.
            invisible: how many of these rows have characters of which the tokenizer makes no token.

        Returns:
            Split -> number of these rows.

        Raises:
            UserError: rows without text are to be refused.
        """
        counts = {split: int(blank[rows].sum()) for split, rows in content.splits.items()}
        if not any(counts.values()):
            return counts
        first = next(rows[blank[rows]][0] for rows in content.splits.values() if blank[rows].any())
        per_split = ", ".join(f"{n} of {len(content.splits[split])} in {split}" for split, n in counts.items() if n)
        problem = f"'{self.name}': rows without text: {per_split}, the first is {content.names[first]}"
        if invisible:
            problem += f" ({invisible} of them have characters of which the tokenizer makes no token)"
        if self.empty == "refuse":
            raise UserError(
                f"{problem}: add their texts, or set {self.key('empty')}=leave_out, or =missing to keep them with a "
                "missing text"
            )
        if self.empty == "leave_out":
            log.warning("%s; they are left out", problem)
        else:
            log.warning("%s; their text is missing under every scenario", problem)
        return counts

    def modality(self, about: About) -> Modality:
        return Modality(self.name, "text", (self.length,), vocabulary=about["vocabulary"])

    def input_settings(self, about: About) -> dict[str, Any]:
        known = about.get("tokenizer_identity")  # older stores have none
        return {} if known is None else {"tokenizer": known}

    def strings(self, content: Tensor) -> list[str]:
        """Convert token ids (B, L) to strings, for display."""
        decoded = load_tokenizer(self.tokenizer).batch_decode(content.tolist(), skip_special_tokens=True)
        return [str(text) for text in decoded]

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
    warn_of_unknown(*unknown_share([tokens], loaded), f"'{name}'", tokenizer, loaded)
    return {name: tokens, **({f"{name}_absent": is_blank} if is_blank.any() else {})}


def note_unknown(tokens: Mapping[str, np.ndarray], tokenizer: PreTrainedTokenizerBase, where: str, source: str) -> None:
    """Log the share of unknown tokens; warn above a half.

    Args:
        tokens: split -> ids (N, L).
        where: data set or modality, for messages.
        source: name or path of the tokenizer.
    """
    share, total = unknown_share(list(tokens.values()), tokenizer)
    log.info("%s: %.1f %% of %d tokens are unknown (%s)", where, 100 * share, total, tokenizer.unk_token)
    warn_of_unknown(share, total, where, source, tokenizer)


def unknown_share(tokens: Sequence[np.ndarray], tokenizer: PreTrainedTokenizerBase) -> tuple[float, int]:
    """Share of unknown tokens, and number of tokens, in arrays of ids (N, L)."""
    counts = [[int(part.sum()) for part in count_tokens(ids, tokenizer)] for ids in tokens]
    total, unknown = (sum(column) for column in zip(*counts))
    return unknown / max(total, 1), total


def warn_of_unknown(share: float, total: int, where: str, source: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn if more than half of the tokens are unknown; arguments as for :func:`note_unknown`."""
    if share > 0.5:
        log.warning(
            "%s: the tokenizer %s knows less than half of the words (%.1f %% of %d tokens are %s): models see "
            "hardly any text, use texts and a tokenizer (dataset.tokenizer) of one language",
            where,
            source,
            100 * share,
            total,
            tokenizer.unk_token,
        )

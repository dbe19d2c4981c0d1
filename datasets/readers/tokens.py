"""Text as token ids: a Hugging Face tokenizer, from its name, a local folder or a plain WordPiece vocabulary.

A text is stored as int32 ids (L,), cut and padded to the length L. Padding has the id 0 and nothing else has, so an
encoder reads its attention mask off the ids.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from datasets.source import file_digest, sha256
from utils.errors import UserError

if TYPE_CHECKING:  # slow to import, and not needed once the texts are packed
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

PADDING = 0
CHUNK = 1024
VOCABULARY = "vocab.txt"
# What a folder must hold one of, for transformers to build a tokenizer from it.
TOKENIZER_FILES = ("tokenizer.json", VOCABULARY, "vocab.json")
MEND = (
    "set dataset.tokenizer to a WordPiece vocabulary (the vocab.txt of bert-base-uncased), or to a folder "
    "with that file or with tokenizer.json and tokenizer_config.json of a tokenizer"
)


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """A tokenizer with padding id 0.

    Args:
        source: a ``.txt`` file, one WordPiece token a line (lower case, as of bert-base-uncased); a folder with
            ``vocab.txt``, or with the files of any Hugging Face tokenizer; else the name of one, which is downloaded
            once.

    Raises:
        UserError: it cannot be had, which says what to put where; or its padding is not 0.
    """
    from transformers import AutoTokenizer, BertTokenizer

    path = Path(source)
    if path.is_dir() and not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"the folder {source} holds none of {', '.join(TOKENIZER_FILES)}: {MEND}")
    if path.suffix == ".txt" and not path.is_file():
        raise UserError(f"there is no vocabulary {source}: {MEND}")
    plain = path if path.is_file() else path / VOCABULARY
    try:
        if path.is_file() or (plain.is_file() and not (path / "tokenizer_config.json").is_file()):
            tokenizer: PreTrainedTokenizerBase = BertTokenizer(vocab=str(_checked(plain)))
        else:
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=path.is_dir())
    except UserError:
        raise
    except Exception as error:  # a broken file or an unreachable hub can fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"the tokenizer '{source}' cannot be had ({reason}): {MEND}") from None
    if tokenizer.pad_token_id != PADDING:
        raise UserError(
            f"the tokenizer '{source}' pads with id {tokenizer.pad_token_id}, texts are stored with padding 0: {MEND}"
        )
    return tokenizer


def _checked(file: Path) -> Path:
    """A vocabulary of BERT's kind.

    Raises:
        UserError: no text, or a special token is absent or in another place.
    """
    try:
        tokens = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as text ({error}): {MEND}") from None
    absent = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token not in tokens]
    if absent or tokens[0] != "[PAD]":
        problem = f"lacks {', '.join(absent)}" if absent else f"begins with {tokens[0]!r} instead of [PAD]"
        raise UserError(f"the vocabulary {file} {problem}: {MEND}")
    return file


def save_tokenizer(source: str, folder: Path) -> None:
    """Write a tokenizer into a folder from which :func:`load_tokenizer` reads it again.

    Raises:
        UserError: see :func:`load_tokenizer`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if Path(source).is_file():
        shutil.copyfile(_checked(Path(source)), folder / VOCABULARY)
    else:
        load_tokenizer(source).save_pretrained(folder)


def fingerprint(source: str) -> str:
    """What a signature needs of a tokenizer, without loading it: the content of its files, or its name."""
    path = Path(source)
    if path.is_file():
        return file_digest(path)
    if path.is_dir():
        return sha256({file.name: file_digest(file) for file in sorted(path.iterdir()) if file.is_file()})
    return source


# Upper case, accents, a contraction, a number, another script: where tokenizers of one vocabulary differ.
PROBE = "Don't NAIVE naïve 3.14 Ärzte 漢字 @-mention"


def identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits that tell which ids a tokenizer gives, wherever its files are: a digest of its vocabulary and of
    the ids of a probe text."""
    vocabulary = sorted((token, int(number)) for token, number in tokenizer.get_vocab().items())
    return sha256([vocabulary, tokenizer(PROBE)["input_ids"]])[:16]


def tokenise(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> tuple[np.ndarray, int]:
    """Ids of many texts, with the special tokens of the tokenizer.

    Args:
        length: L, of every row.

    Returns:
        (N, L) int32, and how many texts were cut.

    Raises:
        UserError: a length that leaves no room for a token.
    """
    if length <= tokenizer.num_special_tokens_to_add():
        raise UserError(
            f"dataset.text_length={length} leaves no room for a token besides the special ones "
            f"({tokenizer.num_special_tokens_to_add()}): raise it"
        )
    ids = np.full((len(texts), length), PADDING, dtype=np.int32)
    cut = 0
    for start in tqdm(
        range(0, len(texts), CHUNK), desc="tokenising", unit="chunk", leave=False, disable=len(texts) < CHUNK
    ):
        rows = list(texts[start : start + CHUNK])
        full = tokenizer(rows, return_attention_mask=False, verbose=False)["input_ids"]
        long = [row for row, tokens in enumerate(full) if len(tokens) > length]
        if long:
            short = tokenizer([rows[row] for row in long], truncation=True, max_length=length)["input_ids"]
            for row, tokens in zip(long, short):
                full[row] = tokens
        cut += len(long)
        for row, tokens in enumerate(full, start):
            ids[row, : len(tokens)] = tokens
    return ids, cut


def count_tokens(ids: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each text, without padding and the special tokens at its ends, and how many of them are unknown.

    Args:
        ids: (N, L) of :func:`tokenise`.

    Returns:
        Both (N,) int64. A text of no token has no content, however many characters it has (such as zero-width ones).
    """
    ends = ("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id")
    special = [PADDING, *(int(token) for name in ends if (token := getattr(tokenizer, name, None)) is not None)]
    is_token = ~np.isin(ids, special)
    unknown = -1 if tokenizer.unk_token_id is None else tokenizer.unk_token_id
    return is_token.sum(1), (is_token & (ids == unknown)).sum(1)


class WordMask:
    """Replaces words that would give a label away.

    Args:
        beginnings: a word, or a part of one after a hyphen, that begins with one of these goes as a whole, with all its
            hyphenated parts, in any case: ``covid`` takes ``COVID-19`` and ``post-covid``. Several words with single
            blanks between them stand for themselves and what follows the last.
        token: what stands in their place, the mask token of a tokenizer for example.
    """

    def __init__(self, beginnings: Sequence[str], token: str) -> None:
        self.token = token
        words = "|".join(re.escape(str(word)).replace(r"\ ", r"\s+") for word in beginnings)
        self.pattern = re.compile(rf"(?<![\w-])(?:\w+-)*(?:{words})[\w-]*", re.IGNORECASE) if beginnings else None

    def __call__(self, text: str) -> tuple[str, int]:
        """The text without them, and how many there were."""
        return (text, 0) if self.pattern is None else self.pattern.subn(self.token, text)

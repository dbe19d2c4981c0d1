"""Text as token ids of a Hugging Face tokenizer, loaded by name, from a local folder or from a WordPiece vocabulary.

A text is stored as int32 ids (L,), cut and padded to the length L. Only padding has the id 0, so that an encoder
derives its attention mask from the ids.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datasets.source import file_digest, sha256
from utils.errors import UserError, first_line
from utils.progress import Progress

if TYPE_CHECKING:  # slow to import, and not needed once the texts are packed
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

PADDING = 0
CHUNK = 1024
VOCABULARY = "vocab.txt"
# Files from which transformers builds a tokenizer; a folder must hold one of them.
TOKENIZER_FILES = ("tokenizer.json", VOCABULARY, "vocab.json")
FIX = (
    "set dataset.tokenizer to a WordPiece vocabulary (the vocab.txt of bert-base-uncased), or to a folder "
    "with that file or with tokenizer.json and tokenizer_config.json of a tokenizer"
)


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer with padding id 0.

    Args:
        source: a ``.txt`` file with one WordPiece token per line (lower case, as in bert-base-uncased); a folder with
            ``vocab.txt`` or with the files of any Hugging Face tokenizer; or the name of a tokenizer, which is
            downloaded once.

    Raises:
        UserError: the tokenizer cannot be loaded, or its padding id is not 0.
    """
    from transformers import AutoTokenizer, BertTokenizer

    path = Path(source)
    if path.is_dir() and not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"the folder {source} holds none of {', '.join(TOKENIZER_FILES)}: {FIX}")
    if path.suffix == ".txt" and not path.is_file():
        raise UserError(f"there is no vocabulary {source}: {FIX}")
    vocabulary = path if path.is_file() else path / VOCABULARY
    try:
        if path.is_file() or (vocabulary.is_file() and not (path / "tokenizer_config.json").is_file()):
            tokenizer: PreTrainedTokenizerBase = BertTokenizer(vocab=str(_checked(vocabulary)))
        else:
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=path.is_dir(), trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # a broken file or an unreachable hub can fail in any way
        reason = first_line(error)
        raise UserError(f"the tokenizer '{source}' cannot be had ({reason}): {FIX}") from None
    if tokenizer.pad_token_id != PADDING:
        raise UserError(
            f"the tokenizer '{source}' pads with id {tokenizer.pad_token_id}, texts are stored with padding 0: {FIX}"
        )
    return tokenizer


def _checked(file: Path) -> Path:
    """Check that a file is a vocabulary of BERT's kind.

    Raises:
        UserError: the file is no text, or a special token is absent or at another position.
    """
    try:
        tokens = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as text ({error}): {FIX}") from None
    absent = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token not in tokens]
    if absent or tokens[0] != "[PAD]":
        problem = f"lacks {', '.join(absent)}" if absent else f"begins with {tokens[0]!r} instead of [PAD]"
        raise UserError(f"the vocabulary {file} {problem}: {FIX}")
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
    """Digest of the files of a tokenizer, or its name, for signatures; does not load it."""
    path = Path(source)
    if path.is_file():
        return file_digest(path)
    if path.is_dir():
        return sha256({file.name: file_digest(file) for file in sorted(path.iterdir()) if file.is_file()})
    return source


# Upper case, accents, a contraction, a number, another script: tokenizers of one vocabulary may differ here.
PROBE = "Don't NAIVE naïve 3.14 Ärzte 漢字 @-mention"


def identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest of the vocabulary of a tokenizer and of the ids of a probe text, 16 hex digits; independent of paths."""
    vocabulary = sorted((token, int(number)) for token, number in tokenizer.get_vocab().items())
    return sha256([vocabulary, tokenizer(PROBE)["input_ids"]])[:16]


def tokenise(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> tuple[np.ndarray, int]:
    """Tokenise texts, with the special tokens of the tokenizer.

    Args:
        length: L, ids per text.

    Returns:
        Ids (N, L) int32; number of texts that were cut.

    Raises:
        UserError: ``length`` leaves no room for a token.
    """
    if length <= tokenizer.num_special_tokens_to_add():
        raise UserError(
            f"dataset.text_length={length} leaves no room for a token besides the special ones "
            f"({tokenizer.num_special_tokens_to_add()}): raise it"
        )
    ids = np.full((len(texts), length), PADDING, dtype=np.int32)
    cut = 0
    for start in Progress(
        range(0, len(texts), CHUNK), desc="tokenising", unit="chunk", leave=False, disable=len(texts) < CHUNK
    ):
        rows = list(texts[start : start + CHUNK])
        full = tokenizer(rows, return_attention_mask=False, verbose=False)["input_ids"]
        too_long = [row for row, tokens in enumerate(full) if len(tokens) > length]
        if too_long:
            truncated = tokenizer([rows[row] for row in too_long], truncation=True, max_length=length)["input_ids"]
            for row, tokens in zip(too_long, truncated):
                full[row] = tokens
        cut += len(too_long)
        for row, tokens in enumerate(full, start):
            ids[row, : len(tokens)] = tokens
    return ids, cut


def count_tokens(ids: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> tuple[np.ndarray, np.ndarray]:
    """Count the tokens of texts, without padding and special tokens, and the unknown ones among them.

    Args:
        ids: (N, L) of :func:`tokenise`.

    Returns:
        Numbers of tokens and of unknown tokens, (N,) int64 each. A text without tokens has no content, however many
        characters (such as zero-width ones) it has.
    """
    ends = ("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id")
    special = [PADDING, *(int(token) for name in ends if (token := getattr(tokenizer, name, None)) is not None)]
    is_token = ~np.isin(ids, special)
    unknown = -1 if tokenizer.unk_token_id is None else tokenizer.unk_token_id
    return is_token.sum(1), (is_token & (ids == unknown)).sum(1)


class WordMask:
    """Mask of words that would reveal a label.

    Args:
        beginnings: a word of which any hyphenated part begins with one of these is replaced completely, in any case:
            ``covid`` matches ``COVID-19`` and ``post-covid``. Several words with single blanks between them match
            themselves and the end of the last word.
        token: replacement, for example the mask token of a tokenizer.
    """

    def __init__(self, beginnings: Sequence[str], token: str) -> None:
        self.token = token
        words = "|".join(re.escape(str(word)).replace(r"\ ", r"\s+") for word in beginnings)
        self.pattern = re.compile(rf"(?<![\w-])(?:\w+-)*(?:{words})[\w-]*", re.IGNORECASE) if beginnings else None

    def __call__(self, text: str) -> tuple[str, int]:
        """The masked text, and the number of masked words."""
        return (text, 0) if self.pattern is None else self.pattern.subn(self.token, text)

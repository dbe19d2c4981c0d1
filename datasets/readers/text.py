"""Text as characters: the 71-symbol alphabet of MoPoE, digit words (MST) and attribute lists (CelebA).

A text is stored as uint8 codes (L,), the positions of its characters in the alphabet, and becomes one-hot rows (L, 71)
when a batch is gathered.

Sutter, Daunhawer, Vogt, "Generalized Multimodal ELBO", ICLR 2021 (https://github.com/thomassutter/MoPoE).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.errors import UserError

# '-' occurs twice: look-up finds the first, 36, so that column 59 is never set.
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789-,;.!?:'\"\\/|_@#$%^&*~`+-=<>()[]{} \n"
WIDTH = len(ALPHABET)
UNKNOWN = 255  # code of a character outside the alphabet: an all-zero row
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_LATIN = 256  # all characters of the alphabet have lower code points
_CODES = np.full(_LATIN + 1, UNKNOWN, dtype=np.uint8)
for _code, _character in reversed(list(enumerate(ALPHABET))):
    _CODES[ord(_character)] = _code


def encode(text: str, length: int, pad: str = " ") -> np.ndarray:
    """Codes (length,) uint8: cut after ``length`` characters, padded with ``pad``, unknown characters 255."""
    points = np.frombuffer(text[:length].ljust(length, pad).encode("utf-32-le"), dtype="<u4")
    return _CODES[np.minimum(points, _LATIN)]


def encode_all(texts: Sequence[str], length: int, where: object, pad: str = " ") -> np.ndarray:
    """Codes (N, length) uint8 of many texts.

    Args:
        where: source of the texts, for messages.

    Raises:
        UserError: a character outside the alphabet; names the row, counted from 1, and the character.
    """
    codes = np.empty((len(texts), length), dtype=np.uint8)
    for row, text in enumerate(texts):
        codes[row] = encode(text, length, pad)
    bad = np.argwhere(codes == UNKNOWN)
    if len(bad):
        row, column = bad[0]
        raise UserError(
            f"{where}: text {row + 1} holds {texts[row][column]!r} at place {column + 1}, which is none of the {WIDTH} "
            "characters of the alphabet (lower case, digits, punctuation): correct or leave out that row"
        )
    return codes


def one_hot(codes: Tensor, width: int = WIDTH) -> Tensor:
    """Codes (..., L) uint8 -> float (..., L, width); a code outside the alphabet gives zeros."""
    table = torch.eye(width + 1, width, device=codes.device)
    return F.embedding(codes.int().clamp_(max=width), table)


def decode(rows: Tensor) -> list[str]:
    """Decode codes (B, L) uint8, or one-hot rows or probabilities (B, L, 71), to texts.

    Every position gets its most likely character, and U+FFFD for an unknown character or a row of zeros.
    """
    if rows.dtype != torch.uint8:
        is_known = rows.amax(-1) > 0
        rows = torch.where(is_known, rows.argmax(-1), UNKNOWN)
    return ["".join(ALPHABET[c] if c < WIDTH else "\ufffd" for c in row) for row in rows.tolist()]


def check_alphabet(file: Path) -> None:
    """Check that the list in ``alphabet.json`` is the alphabet of this module.

    Raises:
        UserError: another list, or no list.
    """
    try:
        alphabet = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error}): restore it, or remove it (it is not needed)") from None
    if alphabet != list(ALPHABET):
        raise UserError(
            f"{file} is not the published alphabet of {WIDTH} characters: texts encoded with it would be "
            "decoded differently, restore the file, or remove it (it is not needed)"
        )


def place_digit_words(labels: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """English digit words at random columns among blanks (MST).

    The start column is uniform on 0 .. length - 1 - letters, so the last column is never filled. The draw of a row
    depends only on the generator and the row number.

    Args:
        labels: (N,) digits 0 to 9.

    Returns:
        (N, length) uint8 codes.
    """
    longest = max(map(len, DIGIT_WORDS))
    letters = np.array([len(word) for word in DIGIT_WORDS])[labels]
    words = np.stack([encode(word, longest) for word in DIGIT_WORDS])[labels]
    starts = (rng.random(len(labels)) * (length - letters)).astype(np.intp)
    columns = np.arange(length) - starts[:, None]
    codes = np.take_along_axis(words, columns.clip(0, longest - 1), axis=1)
    is_inside = (columns >= 0) & (columns < letters[:, None])
    return np.where(is_inside, codes, encode("", 1)[0])


def attribute_texts(
    names: Sequence[str], present: np.ndarray, length: int, rng: np.random.Generator, pad: str = "*"
) -> list[str]:
    """Attribute names as one text per row, as published with MoPoE (CelebA).

    The names of the attributes of a row are joined by comma and space, in lower case and with spaces for underscores;
    the last names are left out while the text is longer than ``length``. A text shorter than length - 1 starts at a
    column uniform on [0, length - 1 - its length) and is padded with ``pad``.

    Args:
        names: A attribute names.
        present: (N, A) bool.

    Returns:
        N texts of exactly ``length`` characters.
    """
    readable = [name.replace("_", " ").lower() for name in names]
    sizes = np.array([len(name) + 2 for name in readable])
    texts = []
    for row in present:
        chosen = np.flatnonzero(row)
        chosen = chosen[: np.searchsorted(np.cumsum(sizes[chosen]), length + 2, side="right")]
        texts.append(", ".join(readable[i] for i in chosen))
    starts = rng.integers(0, [max(length - 1 - len(text), 1) for text in texts])
    return [(pad * start + text).ljust(length, pad) for start, text in zip(starts, texts)]

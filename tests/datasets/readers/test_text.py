"""Characters, one-hot rows, digit words and attribute texts (docs/reference/datasets.md §2.4, §2.5, §3.3, §14.6)."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.batch import Modality
from datasets.demo.celeba import CELEBA_ATTRIBUTES
from datasets.loader import PackedLoader
from datasets.readers.text import (
    ALPHABET,
    DIGIT_WORDS,
    UNKNOWN,
    WIDTH,
    attribute_texts,
    check_alphabet,
    decode,
    encode,
    encode_all,
    one_hot,
    place_digit_words,
)
from datasets.storage import PackedStore
from utils.errors import UserError

# docs/reference/datasets.md §2.5, place by place.
PUBLISHED = {
    **{i: chr(ord("a") + i) for i in range(26)},
    **{26 + i: str(i) for i in range(10)},
    **dict(zip(range(36, 57), ["-", ",", ";", ".", "!", "?", ":", "'", '"', "\\", "/", "|", "_", "@", "#", "$", "%"])),
    **dict(zip(range(53, 60), ["^", "&", "*", "~", "`", "+", "-"])),
    **dict(zip(range(60, 71), ["=", "<", ">", "(", ")", "[", "]", "{", "}", " ", "\n"])),
}


def slow_one_hot(text: str, length: int) -> np.ndarray:
    """The lookup as it is described: first occurrence, zeros for the unknown, cut."""
    rows = np.zeros((length, 71), dtype=np.float32)
    for place, character in enumerate(text[:length]):
        if character in PUBLISHED.values():
            rows[place, min(k for k, v in PUBLISHED.items() if v == character)] = 1
    return rows


def test_the_alphabet_is_the_published_one() -> None:
    assert WIDTH == len(ALPHABET) == 71 and dict(enumerate(ALPHABET)) == PUBLISHED
    assert encode("-", 1)[0] == 36 and len(set(ALPHABET)) == 70


@pytest.mark.parametrize("text", ["zero", "a-b\n{~`}", "", "Ünique Ω 😀 x", "longer than eight", ALPHABET])
def test_encoding_equals_the_slow_lookup(text: str) -> None:
    for length in (8, 80):
        rows = one_hot(torch.from_numpy(encode(text, length, pad=" ")))
        assert rows.shape == (length, 71) and rows.dtype == torch.float32
        np.testing.assert_array_equal(rows.numpy(), slow_one_hot(text.ljust(length), length))
        assert rows[:, 59].sum() == 0, "the second '-' is never set"


def test_texts_come_back_from_codes_rows_and_probabilities() -> None:
    texts = ["five    ", "blond hair, male".ljust(20, "*"), ALPHABET.replace("-=", "=")]
    for text in texts:
        codes = torch.from_numpy(encode(text, len(text)))[None]
        assert decode(codes) == decode(one_hot(codes)) == decode(one_hot(codes) * 0.4 + 0.008) == [text]
    unknown = torch.from_numpy(encode("aÄb", 3))[None]
    assert unknown.tolist() == [[0, UNKNOWN, 1]]
    assert decode(unknown) == decode(one_hot(unknown)) == ["a\ufffdb"]


def test_a_character_outside_the_alphabet_is_named() -> None:
    with pytest.raises(UserError, match=r"texts\.csv: text 2 holds 'Ä' at place 3, .*: correct or leave out that row"):
        encode_all(["fine", "naÄme", "neither Ö"], 8, "texts.csv")
    assert encode_all(["fine", "cut Ä"], 4, "x").shape == (2, 4)


def test_another_alphabet_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "alphabet.json"
    file.write_text(json.dumps(list(ALPHABET)))
    check_alphabet(file)
    for content, message in ((list(ALPHABET[::-1]), "is not the published alphabet of 71"), (None, "cannot be read")):
        file.write_text("[" if content is None else json.dumps(content))
        with pytest.raises(UserError, match=message):
            check_alphabet(file)


def test_words_start_where_the_original_puts_them() -> None:
    """Uniformly on 0 .. 7 - letters: three letters at 0-4, four at 0-3, five at 0-2; eight ones a row
    (docs/reference/datasets.md §2.4, §14.6).
    """
    labels = np.arange(60_000) % 10
    codes = place_digit_words(labels, 8, np.random.default_rng(0))
    assert codes.shape == (60_000, 8) and codes.dtype == np.uint8
    texts = np.array(decode(torch.from_numpy(codes)))
    starts: dict[str, Counter[int]] = {word: Counter() for word in DIGIT_WORDS}
    for text, label in zip(texts, labels):
        word = DIGIT_WORDS[label]
        assert text.strip() == word
        starts[word][text.index(word)] += 1
    for word, counts in starts.items():
        assert set(counts) == set(range({3: 5, 4: 4, 5: 3}[len(word)]))
        expected = 6000 / len(counts)
        assert max(abs(n - expected) for n in counts.values()) < 5 * expected**0.5
    assert (codes[:, 7] == 69).all(), "the last column is always blank"
    assert (one_hot(torch.from_numpy(codes[:100])).sum((1, 2)) == 8).all()


def test_a_word_depends_on_its_row_alone() -> None:
    labels = np.arange(50) % 10
    one = place_digit_words(labels, 8, np.random.default_rng(7))
    other = labels.copy()
    other[20:] = 3
    assert np.array_equal(place_digit_words(other, 8, np.random.default_rng(7))[:20], one[:20])
    assert np.array_equal(place_digit_words(labels[:10], 8, np.random.default_rng(7)), one[:10])


def test_attributes_are_written_as_published() -> None:
    """Against the description step by step (docs/reference/datasets.md §3.3)."""
    assert len(CELEBA_ATTRIBUTES) == 40 and len(", ".join(CELEBA_ATTRIBUTES)) == 502
    rng = np.random.default_rng(1)
    present = rng.random((300, 40)) < rng.random((300, 1)) ** 2
    present[0], present[1] = True, False
    texts = attribute_texts(CELEBA_ATTRIBUTES, present, 256, np.random.default_rng(0))
    starts = set()
    for row, text in zip(present, texts):
        names = [name for name, existing in zip(CELEBA_ATTRIBUTES, row) if existing]
        while len(", ".join(names)) > 256:
            names.pop()
        bare = ", ".join(names).replace("_", " ").lower()
        assert len(text) == 256 and text.strip("*") == bare
        start = text.index(bare) if bare else 0
        assert start < max(255 - len(bare), 1)
        starts.add(start)
    assert len(starts) > 60 and "blond hair" in texts[0]
    assert attribute_texts(CELEBA_ATTRIBUTES, present, 256, np.random.default_rng(0)) == texts
    assert attribute_texts(CELEBA_ATTRIBUTES, present, 256, np.random.default_rng(1)) != texts


@pytest.mark.parametrize(("length", "starts"), [(252, {0, 1, 2}), (253, {0, 1}), (254, {0}), (255, {0}), (256, {0})])
def test_a_text_near_the_limit_starts_within_it(length: int, starts: set[int]) -> None:
    """randint(0, 255 - len) excludes its upper bound; from 255 characters on the text stands at the left."""
    name = "x" * length
    actual = attribute_texts([name], np.ones((200, 1), dtype=bool), 256, np.random.default_rng(0))
    assert {text.index("x") for text in actual} == starts and {len(text) for text in actual} == {256}
    assert attribute_texts([name, "y"], np.ones((1, 2), dtype=bool), 256, np.random.default_rng(0))[0].count("y") == (
        length + 3 <= 256
    )


# ---------------------------------------------------------------------------------------------------- in a packed store


@pytest.fixture
def store(tmp_path: Path) -> PackedStore:
    """Six texts, and five pictures of which two are shown by twelve rows."""
    rng = np.random.default_rng(0)
    store = PackedStore(tmp_path / "store")
    split = {
        "text": np.stack([encode(f"{i} ab", 6) for i in range(12)]),
        "picture": rng.integers(0, 256, (5, 3, 4, 4), dtype=np.uint8),
        "picture.rows": rng.integers(0, 5, 12).astype(np.int32),
        "target": np.arange(12) % 2,
    }
    split["text"][4, 2] = UNKNOWN
    store.write({"train": split}, {})
    return store


MODALITIES = [Modality("picture", "image", (3, 4, 4)), Modality("text", "text", (6, WIDTH))]


@pytest.mark.parametrize("residence", ["host", "mmap"])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_loader_expands_codes_and_shared_items(store: PackedStore, residence: str, share: float) -> None:
    split = store.split("train")
    raw = {name: np.load(split.folder / f"{name}.npy") for name in ("text", "picture", "picture.rows")}
    rows = np.arange(12)
    if share < 1:
        split = split.head(share, seed=3)
        rows = split.rows
    batch = next(iter(PackedLoader(split, MODALITIES, None, 12, residence=residence)))
    assert len(batch) == len(rows) and batch.inputs["text"].dtype == torch.float32
    for i, row in enumerate(rows):
        picture = raw["picture"][raw["picture.rows"][row]]
        np.testing.assert_allclose(batch.inputs["picture"][i].numpy(), picture / 255, rtol=1e-6)
        expected = np.zeros((6, 71))
        for place, code in enumerate(raw["text"][row]):
            if code != UNKNOWN:
                expected[place, code] = 1
        np.testing.assert_array_equal(batch.inputs["text"][i].numpy(), expected)
    pictures = raw["picture"][raw["picture.rows"][rows]]
    assert np.array_equal(split.read("picture"), pictures) and np.array_equal(split.memory_map("picture"), pictures)


def test_named_modalities_alone_are_drawn_anew(store: PackedStore) -> None:
    split = store.split("train")
    loader = PackedLoader(split, MODALITIES, None, 12, shuffle=True, reshuffle_pairs=["text"])
    original, seen = split.read("text"), set()
    for epoch in range(30):
        loader.set_epoch(epoch)
        batch = next(iter(loader))
        assert torch.equal(batch.inputs["picture"] * 255, split.read("picture")[batch.index].float())
        assert torch.equal(batch.sources[:, 0], batch.index)
        drawn = [row[0] for row in decode(batch.inputs["text"])]
        assert drawn == [row[0] for row in decode(original[batch.sources[:, 1]])]
        for target, index, text in zip(batch.target, batch.index, drawn):
            same_class = {decode(original[i : i + 1])[0][0] for i in range(12) if i % 2 == target}
            assert text in same_class
            if index == 0:
                seen.add(text)
    assert len(seen) > 3

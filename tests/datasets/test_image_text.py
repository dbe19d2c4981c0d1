"""Image + text: tokens, Food-101, MM-IMDb, a CSV file, missing tables, transforms, the encoder, bad input."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image
from sklearn.metrics import f1_score

from datasets import food101
from datasets.batch import Batch, Modality
from datasets.demo.food101 import make_food101
from datasets.demo.mmimdb import make_mmimdb
from datasets.demo.vocabulary import write_vocabulary
from datasets.food101 import Food101
from datasets.image_text import ImageText
from datasets.image_text_module import ImageTextModule
from datasets.missingness import Rows, parse_scenario, parse_scenarios
from datasets.missingness.image_text import map_codes
from datasets.mmimdb import GENRES, MMIMDb
from datasets.readers import images
from datasets.readers.images import ImageReader
from datasets.readers.tokens import WordMask, load_tokenizer, tokenise
from datasets.transforms import ImageForm, ImageTransform, JointAugmentation
from gaussian_parameter_generation.estimate import absent_modalities, estimate
from models.encoders.token_text import TokenTextEncoder
from models.imputers.simple import Mean
from tests.conftest import Reads
from tests.makers import make_chest_xray
from trainers import gaussian
from trainers import run as pipeline
from trainers.config.build import build_data, build_encoder
from trainers.config.compose import CONFIGS, compose_config
from trainers.config.validate import validate
from trainers.loading import Run
from utils.errors import UserError
from utils.metrics import classification_metrics, metric_names

SPLITS = ("train", "val", "test")
SHARED = Path(os.environ.get("DYMO_DATA", CONFIGS.parent / "data"))
SIZES = {"text_length": 12, "side": 16, "stored_side": 20}


@pytest.fixture(scope="module")
def food(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in of 8 classes; do not change it."""
    root = tmp_path_factory.mktemp("food") / "Food101"
    make_food101(root, counts=(5, 2, 3))
    return root


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("films") / "MMIMDb"
    make_mmimdb(root, counts=(46, 23, 23))
    return root


@pytest.fixture
def root(food: Path, tmp_path: Path) -> Path:
    """A copy of Food-101 to spoil."""
    return Path(shutil.copytree(food, tmp_path / "Food101"))


@pytest.fixture
def films_root(films: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(films, tmp_path / "MMIMDb"))


def built(kind: type[ImageTextModule], root: Path, folder: Path, **settings: Any) -> ImageTextModule:
    arguments = {"tokenizer": str(root / "vocab.txt"), "statistics": "warn", **SIZES, **settings}
    return kind(store=str(folder / "store"), root=str(root), **arguments)  # type: ignore[call-arg]


def prepared(*arguments: Any, **settings: Any) -> ImageTextModule:
    data = built(*arguments, **settings)
    data.prepare()
    return data


# -------------------------------------------------------------------------------------------------------------- tokens


def slow_word_pieces(text: str, vocabulary: list[str]) -> list[int]:
    """BERT's uncased WordPiece from its description: words and single punctuation marks, longest match first."""
    ids = [vocabulary.index("[CLS]")]
    for word in re.findall(r"\w+|[^\w\s]", text.lower()):
        pieces, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = [e for e in range(len(word), start, -1) if prefix + word[start:e] in vocabulary]
            if not ends:
                pieces = ["[UNK]"]
                break
            pieces.append(prefix + word[start : ends[0]])
            start = ends[0]
        ids += [vocabulary.index(piece) for piece in pieces]
    return [*ids, vocabulary.index("[SEP]")]


def test_ids_are_those_of_a_slow_word_piece(tmp_path: Path) -> None:
    file = write_vocabulary(tmp_path / "v.txt", ["frozen yogurt", "recipes"])
    vocabulary = file.read_text().splitlines()
    texts = ["Frozen yogurt", "recipes, yogurts!", "", "Ωmega frozenfrozen", "one two three four five"]
    ids, cut = tokenise(texts, load_tokenizer(str(file)), 12)
    assert ids.dtype == np.int32 and ids.shape == (5, 12) and vocabulary[0] == "[PAD]"
    for text, row in zip(texts, ids.tolist()):
        whole = slow_word_pieces(text, vocabulary)
        expected = whole if len(whole) <= 12 else [*whole[:11], vocabulary.index("[SEP]")]
        assert row == expected + [0] * (12 - len(expected)), text
    assert cut == sum(len(slow_word_pieces(text, vocabulary)) > 12 for text in texts) == 1


def test_the_real_vocabulary() -> None:
    file = SHARED / "vocab" / "bert-base-uncased-vocab.txt"
    if not file.is_file():
        pytest.skip(f"no vocabulary {file} (DYMO_DATA names another place); the test above covers the code")
    tokenizer = load_tokenizer(str(file))
    ids, cut = tokenise(["A dog with COVID-19 [MASK]"], tokenizer, 12)
    # Ids of bert-base-uncased: line numbers of its vocabulary, counted from 0.
    assert ids.tolist() == [[101, 1037, 3899, 2007, 2522, 17258, 1011, 2539, 103, 102, 0, 0]] and cut == 0
    assert len(tokenizer) == 30522


def test_a_folder_does_as_well_as_a_file(tmp_path: Path) -> None:
    file = write_vocabulary(tmp_path / "vocab.txt", ["frozen yogurt"])
    expected = tokenise(["Frozen yogurt pie"], load_tokenizer(str(file)), 9)[0]
    load_tokenizer(str(file)).save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.json").is_file()
    for folder in (tmp_path, tmp_path / "saved"):
        assert np.array_equal(tokenise(["Frozen yogurt pie"], load_tokenizer(str(folder)), 9)[0], expected)


def test_a_tokenizer_that_cannot_be_had_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    mend = r"set dataset.tokenizer to a WordPiece vocabulary .*tokenizer\.json"
    with pytest.raises(UserError, match=rf"no vocabulary .*gone\.txt: {mend}"):
        load_tokenizer(str(tmp_path / "gone.txt"))
    with pytest.raises(UserError, match=rf"holds none of tokenizer\.json, .*: {mend}"):
        load_tokenizer(str(tmp_path))

    def offline(name: str, **_: Any) -> None:
        raise OSError(f"We couldn't connect to the hub for {name}\nand more")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", offline)
    with pytest.raises(UserError, match=rf"'some/bert' cannot be had \(We couldn't .*\): {mend}") as error:
        load_tokenizer("some/bert")
    assert "\n" not in str(error.value)
    (tmp_path / "words.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"lacks \[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\]"):
        load_tokenizer(str(tmp_path / "words.txt"))
    (tmp_path / "words.txt").write_text("a\n[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    with pytest.raises(UserError, match=r"begins with 'a' instead of \[PAD\]"):
        load_tokenizer(str(tmp_path / "words.txt"))
    (tmp_path / "words.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"cannot be read as text"):
        load_tokenizer(str(tmp_path / "words.txt"))
    file = write_vocabulary(tmp_path / "vocab.txt", ["a"])
    with pytest.raises(UserError, match=r"text_length=2 leaves no room"):
        tokenise(["a"], load_tokenizer(str(file)), 2)


def test_padding_is_zero_or_refused(tmp_path: Path) -> None:
    from transformers import BertTokenizer

    file = write_vocabulary(tmp_path / "vocab.txt", ["a"])
    tokenizer = BertTokenizer(vocab=str(file), pad_token="[MASK]")
    tokenizer.save_pretrained(tmp_path / "saved")
    with pytest.raises(UserError, match=r"pads with id 4, texts are stored with padding 0"):
        load_tokenizer(str(tmp_path / "saved"))


def test_words_that_tell_the_label_are_masked() -> None:
    mask = WordMask(["covid", "cov", "pneumoni", "acute respiratory"], "[MASK]")
    assert mask("COVID-19, SARS-CoV-2 and 2019-ncov") == ("[MASK], [MASK] and 2019-ncov", 2)
    assert mask("Bronchopneumonia; pneumonia/pneumonic") == ("Bronchopneumonia; [MASK]/[MASK]", 2)
    assert mask("an acute\n respiratorydistress discovered") == ("an [MASK] discovered", 1)
    assert WordMask([], "[MASK]")("covid") == ("covid", 0)


# ------------------------------------------------------------------------------------------------------------- Food-101


def test_every_row_of_food_against_the_files(food: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    data = prepared(Food101, food, tmp_path)
    split, classes = (json.loads((food / name).read_text()) for name in ("split.json", "class_idx.json"))
    titles: dict[str, str] = {}
    for part in ("train", "test"):
        with (food / f"texts/{part}_titles.csv").open(newline="") as stream:
            titles |= {name: title for name, title, _ in csv.reader(stream)}
    vocabulary = (food / "vocab.txt").read_text().splitlines()
    assert data.class_names == list(classes) != sorted(classes) and data.task == "multiclass"
    for part in SPLITS:
        packed = data.split(part)
        names = [name for name in split[part] if titles[name]]
        assert packed.names() == names
        ids, target = packed.read("text"), packed.read("target")
        for row, name in enumerate(names):
            whole = slow_word_pieces(titles[name], vocabulary)
            if len(whole) <= 12:
                assert ids[row].tolist() == whole + [0] * (12 - len(whole))
            assert target[row] == classes[name.rpartition("_")[0]]
    assert data.store.meta()["part_counts"]["text"]["blank"] == {"train": 2, "val": 0, "test": 2}  # type: ignore[index]
    assert "rows without text: 2 of 40 in train, 2 of 24 in test, the first is frozen_yogurt_0.jpg" in caplog.text
    assert "train has 38 rows, 61,142 were published" in caplog.text
    batch = next(iter(data.loader("test", batch_size=4)))
    assert {k: (tuple(v.shape), v.dtype) for k, v in batch.inputs.items()} == {
        "image": ((4, 3, 16, 16), torch.float32),
        "text": ((4, 12), torch.int64),
    }
    text = data.modalities[1]
    assert (text.kind, text.shape, text.vocabulary) == ("text", (12,), len(vocabulary))
    assert list(tmp_path.iterdir()) == [tmp_path / "store"], "nothing is left of the decoding"


def test_the_published_shapes() -> None:
    """docs/reference/datasets.md §14.5: Food-101 (40,) ids, MM-IMDb (256,) ids; CLIP's 224 pixels and normalisation."""
    for name, length, classes in (("Food101", 40, 101), ("MMIMDb", 256, 23)):
        dataset = configured(f"dataset={name}").dataset
        assert (dataset.text_length, dataset.side, dataset.num_classes) == (length, 224, classes)
        assert [round(v, 3) for v in (*dataset.mean, *dataset.deviation)] == [0.481, 0.458, 0.408, 0.269, 0.261, 0.276]
    assert Food101.published == {"train": 61_142, "val": 6_846, "test": 22_716}
    assert sum(Food101.published.values()) == 90_704 and Food101.published["train"] + Food101.published["val"] == 67_988
    assert MMIMDb.published == {"train": 15_552, "val": 2_608, "test": 7_799} and len(set(GENRES)) == 23


def test_without_the_split_of_map_the_titles_decide(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("split.json", "text.json", "class_idx.json"):
        (root / name).unlink()
    with pytest.raises(UserError, match=r"names files of 8 classes, Food-101 has 101: complete the download"):
        prepared(Food101, root, tmp_path)

    # All but the number of classes is as in the full set.
    monkeypatch.setattr(food101, "CLASSES", 8)
    make_food101(tmp_path / "more", counts=(20, 10, 3))
    for name in ("split.json", "text.json", "class_idx.json"):
        (tmp_path / "more" / name).unlink()
    data = prepared(Food101, tmp_path / "more", tmp_path)
    with (tmp_path / "more/texts/train_titles.csv").open(newline="") as stream:
        names = [name for name, title, _ in csv.reader(stream) if title]
    train, val = data.split("train").names(), data.split("val").names()
    # 6,846 of 67,988 rows are for validation: of 238, 24, three of each class.
    assert len(names) == 238 and len(val) == round(238 * 6846 / 67988) == 24
    assert [n for n in names if n not in set(val)] == train and sorted(train + val) == sorted(names)
    assert set(Counter(name.rpartition("_")[0] for name in val).values()) == {3}
    assert data.class_names == sorted(data.class_names)
    again = prepared(Food101, tmp_path / "more", tmp_path / "again")
    assert again.split("val").names() == val
    assert prepared(Food101, tmp_path / "more", tmp_path / "other", split_seed=1).split("val").names() != val


def test_text_json_will_do(root: Path, tmp_path: Path) -> None:
    shutil.rmtree(root / "texts")
    data = prepared(Food101, root, tmp_path)
    assert [len(data.split(s)) for s in SPLITS] == [38, 16, 22]


def spoil_split(root: Path) -> None:
    content = json.loads((root / "split.json").read_text())
    content["val"] = content["train"][:2]
    (root / "split.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "settings", "message"),
    [
        (lambda r: None, {"statistics": "refuse"}, r"train has 38 rows, 61,142 were published; val .*statistics=warn"),
        (
            lambda r: shutil.rmtree(r / "texts") or (r / "text.json").unlink(),
            {},
            r"no Food-101 in .*dataset\.demo=true",
        ),
        (lambda r: (r / "images/train/pho/pho_1.jpg").unlink(), {}, r"without their image file: 1 of 38 in train"),
        (
            lambda r: (r / "images/test/pho/pho_8.jpg").write_bytes(b"x"),
            {},
            r"1 of 22 images of split 'test' cannot be",
        ),
        (lambda r: (r / "texts/test_titles.csv").write_text("a.jpg,b\n"), {}, r"1 rows have fewer than three fields"),
        (
            lambda r: (r / "texts/test_titles.csv").write_text("a_1.jpg,b,a\na_1.jpg,c,a\n"),
            {},
            r"lists a_1\.jpg twice \(1 such rows\)",
        ),
        (
            lambda r: (r / "class_idx.json").write_text('{"pho": 0}'),
            {},
            r"lacks the class of 70 rows, the first is fro",
        ),
        (lambda r: (r / "class_idx.json").write_text('{"pho": 3}'), {}, r"does not number its 1 classes from 0 on"),
        (lambda r: (r / "split.json").write_text('{"train": []}'), {}, r"has no list 'val' \(it has train\)"),
        (lambda r: (r / "split.json").write_text("[1]"), {}, r"holds no lists train, val, test"),
        (lambda r: (r / "split.json").write_text("{"), {}, r"split\.json cannot be read as JSON"),
        (spoil_split, {}, r"lists frozen_yogurt_0\.jpg twice \(2 such entries\)"),
        (lambda r: None, {"without_text": "refuse"}, r"rows without text: 2 of 40 in train.*without_text=leave_out"),
        (lambda r: None, {"without_text": "keep"}, r"dataset.without_text=keep: must be leave_out, missing or refuse"),
        (lambda r: None, {"tokenizer": "nowhere.txt"}, r"there is no vocabulary nowhere\.txt"),
        (lambda r: None, {"stored_side": 8}, r"dataset.stored_side=8: images are stored no smaller than side=16"),
        (lambda r: None, {"mean": [0.5, 0.5, 0.5]}, r"dataset.mean and dataset.deviation: give three numbers each"),
        (
            lambda r: None,
            {"mean": [0, 0, 0], "deviation": [1, 1, 0]},
            r"dataset.deviation=\[1, 1, 0\]: must be positive",
        ),
    ],
)
def test_bad_food_is_named_with_counts(
    root: Path, tmp_path: Path, spoil: Callable[[Path], Any], settings: dict[str, Any], message: str
) -> None:
    spoil(root)
    with pytest.raises(UserError, match=message) as error:
        prepared(Food101, root, tmp_path, **settings)
    assert "\n" not in str(error.value) and not (tmp_path / "store").exists()


def test_an_unquoted_comma_belongs_to_the_title(root: Path, tmp_path: Path) -> None:
    lines = (root / "texts/train_titles.csv").read_text().splitlines()
    row = next(i for i, line in enumerate(lines) if line.startswith("pho_1.jpg"))
    lines[row] = "pho_1.jpg,easy, homemade, pho,pho"
    (root / "texts/train_titles.csv").write_text("\n".join(lines) + "\n")
    data = prepared(Food101, root, tmp_path)
    packed = data.split("train")
    ids = packed.read("text")[packed.names().index("pho_1.jpg")].tolist()
    vocabulary = (root / "vocab.txt").read_text().splitlines()
    expected = slow_word_pieces("easy, homemade, pho", vocabulary)
    assert ids == expected + [0] * (12 - len(expected))


def test_an_interrupted_prepare_goes_on(
    root: Path, tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "CHUNK", 8)
    listed = json.loads((root / "split.json").read_text())["train"]
    names = [name for name in listed if name not in ("frozen_yogurt_0.jpg", "tacos_0.jpg")]  # those without a title
    assert len(names) == 38
    reads.stop_at = Path(names[20]).stem
    with pytest.raises(KeyboardInterrupt):
        prepared(Food101, root, tmp_path)
    assert not (tmp_path / "store").exists()
    reads.all()
    reads.stop_at = None
    data = prepared(Food101, root, tmp_path)
    second = reads.all()
    assert not {Path(name).stem for name in names[:16]} & set(second) and Path(names[20]).stem in second
    expected = ImageReader(20, resample=Image.Resampling.BICUBIC, fit="crop")
    for row in (0, 20, 37):
        file = root / "images/train" / names[row].rpartition("_")[0] / names[row]
        assert np.array_equal(data.split("train").read("image")[row].numpy(), expected(file))


def test_a_row_without_text_can_stay_with_a_missing_text(food: Path, tmp_path: Path) -> None:
    data = prepared(Food101, food, tmp_path, without_text="missing")
    assert [len(data.split(s)) for s in SPLITS] == [40, 16, 24] and set(data.natural_rows("val")) == set()
    absent = data.natural_rows("test")["text"]
    packed = data.split("test")
    assert [name for name, removed in zip(packed.names(), absent) if removed] == ["frozen_yogurt_7.jpg", "tacos_7.jpg"]
    empty = slow_word_pieces("", (food / "vocab.txt").read_text().splitlines())
    assert packed.read("text")[torch.from_numpy(absent)].tolist() == [empty + [0] * 10] * 2
    # Strings for display: the words of the ids, without special tokens.
    ids, pieces = packed.read("text")[:5], (food / "vocab.txt").read_text().splitlines()
    words = [" ".join(pieces[i] for i in row if i and not pieces[i].startswith("[")) for row in ids.tolist()]
    assert data.strings("text", ids) == [text.replace(" ##", "") for text in words] and any(words)
    for spec, expected in (
        ("none", [[False, True]] * 2),
        ("whole_1", [[False, True]] * 2),
        ("whole_0", [[False, True]] * 2),  # they keep the only modality that they have
    ):
        mask = data.mask("test", parse_scenario(spec))
        assert mask[absent].tolist() == expected and not mask.all(1).any()
        others = [spec == "whole_0", spec == "whole_1"]
        assert (mask[~absent] == others).all()
    batch = next(iter(data.loader("test", parse_scenario("none"), batch_size=24)))
    assert not batch.complete and batch.observed()["text"][torch.from_numpy(absent)].sum() == 0


# -------------------------------------------------------------------------------------------------------------- MM-IMDb


def test_every_film_against_its_file(films: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    data = prepared(MMIMDb, films, tmp_path, text_length=40)
    split = json.loads((films / "split.json").read_text())
    vocabulary = (films / "vocab.txt").read_text().splitlines()
    outside = 0
    assert data.task == "multilabel" and data.class_names == list(GENRES)
    for part, name in zip(SPLITS, ("train", "dev", "test")):
        packed = data.split(part)
        assert packed.names() == split[name]
        ids, target = packed.read("text"), packed.read("target")
        assert target.dtype == torch.float32 and target.shape == (len(packed), 23)
        for row, film in enumerate(split[name]):
            content = json.loads((films / f"labels/{film}.json").read_text())
            outside += len(set(content["genres"]) - set(GENRES))
            assert target[row].tolist() == [float(genre in content["genres"]) for genre in GENRES]
            whole = slow_word_pieces(content["plot"][0], vocabulary)
            assert len(whole) <= 40 and ids[row].tolist() == whole + [0] * (40 - len(whole))
    assert outside == 4 and "genres outside the 23 are left out: News (4)" in caplog.text
    assert data.store.meta()["source"]["genres_left_out"] == {"News": 4}  # type: ignore[index]


def test_the_layout_of_the_archive(films_root: Path, films: Path, tmp_path: Path) -> None:
    (films_root / "dataset").mkdir()
    for file in [*films_root.glob("labels/*"), *films_root.glob("images/*")]:
        file.rename(films_root / "dataset" / file.name)
    for name in ("labels", "images"):
        (films_root / name).rmdir()
    ours, other = prepared(MMIMDb, films_root, tmp_path), prepared(MMIMDb, films, tmp_path / "other")
    for name in ("image", "text", "target"):
        assert torch.equal(ours.split("test").read(name), other.split("test").read(name))


def film(root: Path, number: int, **changes: Any) -> None:
    file = root / f"labels/{number:07d}.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda r: film(r, 3, plot=[]) or film(r, 70, plot=[" "]),
            r"without text: 1 of 46 in train, 1 of 23 in test, .*3",
        ),
        (lambda r: (r / "labels/0000003.json").unlink(), r"1 of 92 films have no file in .*first is 0000003\.json"),
        (lambda r: film(r, 3, genres="Drama"), r"0000003\.json has no list of genres"),
        (lambda r: (r / "labels/0000003.json").write_text("{"), r"0000003\.json cannot be read as JSON"),
        (lambda r: (r / "images/0000003.jpeg").unlink(), r"without their image file: 1 of 46 in train"),
        (
            lambda r: [film(r, i, genres=["Drama"]) for i in range(1, 47)],
            r"no training row has the label Comedy, Romance",
        ),
        (lambda r: (r / "split.json").unlink(), r"no MM-IMDb in .*archive\.org/details/mmimdb"),
    ],
)
def test_bad_films_are_named_with_counts(
    films_root: Path, tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    spoil(films_root)
    with pytest.raises(UserError, match=message) as error:
        prepared(MMIMDb, films_root, tmp_path, without_text="refuse")
    assert "\n" not in str(error.value)


# -------------------------------------------------------------------------------------------------------------- the CSV


@pytest.fixture
def xrays(tmp_path: Path) -> Path:
    return make_chest_xray(tmp_path / "data")


def notes(csv_file: Path, folder: Path, **changes: Any) -> ImageText:
    arguments: dict[str, Any] = {
        "store": str(folder / "store"),
        "name": "Notes",
        "csv": str(csv_file),
        "images": str(csv_file.parent / "images"),
        "image": "filename",
        "text": "clinical_notes",
        "label": "finding",
        "classes": {"COVID": ["COVID-19", "COVID-19, ARDS"], "SARS": "SARS", "PCP": "Pneumocystis", "Lipoid": "Lipoid",
                    "Strep": "Streptococcus", "None": ["No Finding"]},
        "leave_out": ["todo", "Unknown"],
        "min_groups": 6,
        "group": "patientid",
        "mask_words": ["sars", "cov", "pcp", "pneumoni"],
        "without_text": "missing",
        "tokenizer": str(csv_file.parents[1] / "vocab/bert-base-uncased-vocab.txt"),
        **SIZES,
    }  # fmt: skip
    return ImageText(**{**arguments, **changes})


def test_rows_of_a_csv_against_a_loop(xrays: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    data = notes(xrays, tmp_path)
    data.prepare()
    frame = pd.read_csv(xrays, dtype=str, keep_default_na=False)
    of = {"COVID-19": "COVID", "COVID-19, ARDS": "COVID", "SARS": "SARS", "Pneumocystis": "PCP"}
    of |= {"Streptococcus": "Strep", "No Finding": "None"}
    lipoid = frame[frame["finding"] == "Lipoid"]
    remaining = frame[frame["finding"].isin(list(of))]
    assert data.class_names == ["COVID", "SARS", "PCP", "Strep", "None"]
    assert (
        f"classes with fewer than 6 values of 'patientid' left out: 'Lipoid' ({lipoid.patientid.nunique()})"
        in caplog.text
    )
    assert f"{(frame['finding'] == 'todo').sum()} rows left out: label 'todo'" in caplog.text
    homes: dict[str, set[str]] = {}
    masked = 0
    tokenizer = load_tokenizer(data.tokenizer)
    rows = remaining.set_index("filename")
    seen = []
    for split in SPLITS:
        packed = data.split(split)
        absent = data.natural_rows(split).get("text", np.zeros(len(packed), dtype=bool))
        for name, ids, target, removed in zip(
            packed.names(), packed.read("text").tolist(), packed.read("target"), absent
        ):
            row = rows.loc[name]
            homes.setdefault(row["patientid"], set()).add(split)
            assert of[row["finding"]] == data.class_names[int(target)] and removed == (row["clinical_notes"] == "")
            words = row["clinical_notes"].lower().replace(",", " ,").split()
            told = ["[MASK]" if w.startswith(("sars", "cov", "pcp", "pneumoni")) else w for w in words]
            masked += told.count("[MASK]")
            expected = tokenizer(" ".join(told), truncation=True, max_length=12)["input_ids"]
            assert ids == expected + [0] * (12 - len(expected))
            seen.append(name)
    assert sorted(seen) == sorted(remaining["filename"]) and all(map(lambda s: len(s) == 1, homes.values()))
    assert masked > 20 and f"{masked} words masked in" in caplog.text
    assert data.store.meta()["source"]["left_out"]["label 'todo'"] == (frame["finding"] == "todo").sum()  # type: ignore[index]


def test_rare_classes_can_become_one(xrays: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(xrays, dtype=str, keep_default_na=False)
    frame.loc[frame["finding"] == "SARS", "finding"] = np.where(
        np.arange((frame["finding"] == "SARS").sum()) < 6, "SARS", "Lipoid"
    )
    frame.to_csv(xrays, index=False)
    data = notes(xrays, tmp_path, rare_class="Other", min_groups=9)
    data.prepare()
    assert data.class_names == ["COVID", "PCP", "Strep", "None", "Other"]
    targets = np.concatenate([data.split(s).read("target").numpy() for s in SPLITS])
    assert (targets == 4).sum() == frame["finding"].isin(["SARS", "Lipoid"]).sum() > 0
    with pytest.raises(UserError, match=r"fewer than two classes have at least 50 values of 'patientid' \('COVID'"):
        notes(xrays, tmp_path, min_groups=50).prepare()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": {"SARS": ["SARS"], "PCP": ["SARS"]}}, r"the label 'SARS' stands in two classes"),
        (
            {"classes": ["SARS", "Pneumocystis"]},
            r"\d+ labels in column 'finding' are outside dataset.classes, 'Streptococcus' \(",
        ),
        ({"text": "finding"}, r"column 'finding' is a label and an input"),
        ({"text": []}, r"dataset.text is empty"),
        ({"text": "note"}, r"lacks 1 of 4 columns: note"),
        ({"mask_words": ["sars", ""]}, r"dataset.mask_words holds ''"),
        ({"label": ["finding", "sex"], "classes": None}, r"min_groups are for one label column"),
        ({"leave_out": ["todo"]}, r"2 labels in column 'finding' .*'Unknown' \(2\) \(the first in row \d+\)"),
    ],
)
def test_bad_settings_of_a_csv(xrays: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        notes(xrays, tmp_path, **changes).prepare()


def test_a_row_is_named_by_its_place_in_the_file(xrays: Path, tmp_path: Path) -> None:
    """Although rows before it are left out."""
    frame = pd.read_csv(xrays, dtype=str, keep_default_na=False)
    frame.loc[30, "finding"] = "new"
    frame.to_csv(xrays, index=False)
    with pytest.raises(UserError, match=r"1 labels .*'new' \(1\) \(the first in row 31\)"):
        notes(xrays, tmp_path).prepare()


def test_texts_of_several_columns_are_joined(xrays: Path, tmp_path: Path) -> None:
    data = notes(xrays, tmp_path, text=["sex", "clinical_notes"], mask_words=[])
    content = data.find_source().load()
    frame = pd.read_csv(xrays, dtype=str, keep_default_na=False).set_index("filename")
    assert len(content.names) == sum(map(len, content.splits.values()))
    for name, text in zip(content.names, content.inputs["text"].strings):
        assert text == " ".join(filter(None, [frame.loc[name, "sex"], frame.loc[name, "clinical_notes"]]))


# ------------------------------------------------------------------------------------------------------- missing tables


def test_columns_follow_the_kinds_and_seeds_the_default(food: Path, tmp_path: Path) -> None:
    data = prepared(Food101, food, tmp_path)
    scenario = parse_scenario({"kind": "image_text", "strategy": "both", "rate": 0.7})
    assert scenario == parse_scenario("image_text_both_0.7") and scenario.name == "image_text_both_0.7"
    for split in SPLITS:
        assert data.mask_seed(split, scenario) == 0
        codes = map_codes(len(data.split(split)), "both", 0.7, 0)
        assert np.array_equal(data.mask(split, scenario), np.stack([codes == 2, codes == 1], 1))
    data.missing_seed = 2026
    assert data.mask_seed("train", scenario) == 1
    codes = map_codes(50, "both", 0.7, 5)
    audio_first = scenario.generate(Rows(50, 2, 5, ["audio", "video"]))
    assert np.array_equal(audio_first, np.stack([codes == 1, codes == 2], 1))
    for kinds in (["image", "image"], ["image", "table"], ["text", "audio"]):
        with pytest.raises(UserError, match=r"is for an image \(or video\) and a text \(or audio\), the data set has "):
            scenario.generate(Rows(50, 2, 5, kinds))
    with pytest.raises(UserError, match=r"is for an image and a text, the data set has 5 modalities"):
        parse_scenarios(["image_text_both_0.7"], 5)
    for spec, message in (
        ("image_text_table_0.7", r"'table' cannot be missing, known are text, image, both"),
        ("image_text_0.7", r"'' cannot be missing"),
        ("image_text_both_much", r"'much' is not a rate; write for example image_text_both_0\.7"),
        ("image_text_both_1.2", r"the rate 1\.2 is outside \[0, 1\]"),
        ({"kind": "image_text", "rate": 0.7, "generator": "exact"}, r"unknown key 'generator'"),
    ):
        with pytest.raises(UserError, match=message):
            parse_scenario(spec)  # type: ignore[arg-type]


def test_tables_of_the_original_are_read(food: Path, tmp_path: Path) -> None:
    data = prepared(Food101, food, tmp_path)
    n = len(data.split("test"))
    codes = map_codes(n, "both", 0.7, 3)
    file = tmp_path / "food101_test_missing_both_07.pt"
    for table in (torch.from_numpy(codes).float(), torch.from_numpy(codes)):  # MAP's are float
        torch.save(table, file)
        scenario = parse_scenario(f"file:{file}")
        assert np.array_equal(data.mask("test", scenario), np.stack([codes == 2, codes == 1], 1))
    assert scenario.slug == "file_food101_test_missing_both_07"
    for content, message in (
        (torch.zeros(n + 1), rf"has {n + 1} rows but the split has {n}"),
        (torch.full((n,), 3.0), r"holds no missing table of MAP"),
        (torch.full((n,), float("nan")), r"holds no missing table of MAP"),
        ({"table": codes.tolist()}, r"holds no missing table of MAP"),
        (Path("x"), r"cannot be read \(UnpicklingError\)"),  # an object: nothing of it is executed
    ):
        torch.save(content, file)
        with pytest.raises(UserError, match=message):
            data.mask("test", scenario)
    file.unlink()
    with pytest.raises(UserError, match=r"does not exist"):
        data.mask("test", scenario)


# ------------------------------------------------------------------------------------------------ images and transforms


def test_the_central_square_is_that_of_torchvision(tmp_path: Path) -> None:
    """Resize of the shorter side, then CenterCrop (docs/reference/datasets.md §9.3)."""
    from torchvision import transforms
    from torchvision.transforms import InterpolationMode

    steps = transforms.Compose([transforms.Resize(32, InterpolationMode.BICUBIC), transforms.CenterCrop(32)])
    rng = np.random.default_rng(0)
    read = ImageReader(32, resample=Image.Resampling.BICUBIC, fit="crop")
    for size in ((64, 96), (96, 64), (64, 64), (32, 48)):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        coarse.save(tmp_path / "x.png")
        difference = np.abs(read(tmp_path / "x.png").astype(int) - np.asarray(steps(coarse)).transpose(2, 0, 1))
        assert difference.max() <= 2, size
    stretched = ImageReader(32, resample=Image.Resampling.BICUBIC)(tmp_path / "x.png")
    assert np.abs(stretched.astype(int) - read(tmp_path / "x.png")).max() > 20


def test_images_are_normalised_and_training_images_augmented(food: Path, tmp_path: Path) -> None:
    mean, deviation = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    crop = JointAugmentation(1.0, colour_rate=0, grey_rate=0, blur_rate=0, crop_scale=(0.5, 1.0))
    data = prepared(Food101, food, tmp_path, mean=mean, deviation=deviation, augmentation=crop, stored_side=16)
    stored = data.split("train").read("image").float() / 255
    expected = (stored - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]
    plain = next(iter(data.loader("train", batch_size=38))).inputs["image"]
    torch.testing.assert_close(plain.contiguous(), expected)
    torch.testing.assert_close(data.pixels("image", plain).contiguous(), stored)
    epochs = []
    for epoch in (0, 0, 1):
        loader = data.loader("train", train=True, batch_size=38)
        loader.set_epoch(epoch)
        batch = next(iter(loader))
        epochs.append(batch.inputs["image"][batch.index.argsort()])
        assert torch.equal(batch.inputs["text"], data.split("train").read("text")[batch.index].long())
    assert torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], plain)
    no_change = ImageTransform({"image": ImageForm(16)}, JointAugmentation(rate=0.0))
    assert torch.equal(no_change({"image": stored}, torch.Generator().manual_seed(0))["image"], stored)


# ---------------------------------------------------------------------------------------------------------- the encoder


def test_padding_takes_no_part_in_the_encoder() -> None:
    torch.manual_seed(0)
    encoder = TokenTextEncoder(20, 8, width=16, blocks=2, heads=2)
    for parameter in encoder.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    ids = torch.tensor([[2, 7, 9, 3, 0, 0, 0, 0], [2, 5, 3, 0, 0, 0, 0, 0], [0] * 8])
    out = encoder(ids)
    assert out.shape == (3, 1, 16) and encoder.tokens == 1 and torch.isfinite(out).all()
    with torch.no_grad():
        encoder.pos_embeddings[:, 4:] += torch.randn(4, 16)
        encoder.embedding.weight[0] += torch.randn(16)
    torch.testing.assert_close(encoder(ids), out)
    torch.testing.assert_close(encoder(ids[1:2]), out[1:2])
    with torch.no_grad():
        encoder.pos_embeddings[:, 3:4] += torch.randn(16)
    assert not torch.allclose(encoder(ids)[0], out[0]) and torch.allclose(encoder(ids)[1:], out[1:], atol=1e-6)
    anything = encoder(torch.tensor([[2**40, -5, 3, 0, 0, 0, 0, 0]]))
    assert torch.isfinite(anything).all()


def test_without_blocks_the_encoder_is_a_mean() -> None:
    encoder = TokenTextEncoder(20, 4, width=16, blocks=0, vector_width=5)
    ids = torch.tensor([[2, 7, 3, 0]])
    rows = [
        encoder.cls_token[0, 0],
        *(encoder.embedding.weight[t] + encoder.pos_embeddings[0, i] for i, t in enumerate([2, 7, 3])),
    ]
    expected = encoder.proj(sum(encoder.norm(row) for row in rows) / 4)
    assert encoder.width == 5
    torch.testing.assert_close(encoder(ids)[0, 0], expected)


def test_the_vocabulary_is_that_of_the_data() -> None:
    text = Modality("text", "text", (12,), vocabulary=77)
    node = DictConfig({"_target_": "models.encoders.token_text.TokenTextEncoder", "length": 12, "width": 8, "heads": 2})
    assert build_encoder(node, "x", text).embedding.num_embeddings == 77
    with pytest.raises(UserError, match=r"the ids of text 'text' have no mean"):
        Mean([text])


# -------------------------------------------------------------------------------------------------- the whole way


def configured(*overrides: str) -> DictConfig:
    return compose_config(*overrides)


def small(folder: Path, *more: str) -> list[str]:
    return [
        *("dataset.side=32", "dataset.stored_side=40", "dataset.encoders.image.architecture=resnet18"),
        *("+dataset.encoders.text.width=16", "+dataset.encoders.text.heads=2"),
        *(f"paths.{key}={folder / key}" for key in ("data", "cache", "output")),
        *("trainer=cpu", "trainer.enable_progress_bar=false", "trainer.limit_train_batches=3"),
        *("model.training.max_epochs=1", "model.training.batch_size=16", "stages=[prepare,fit,test]"),
        *more,
    ]


def run(*overrides: str) -> tuple[Run, pd.DataFrame]:
    cfg = configured(*overrides)
    pipeline.run(cfg)
    context = Run(cfg)
    return context, pd.read_csv(context.directory / "results.csv")


def test_several_labels_from_files_to_results(tmp_path: Path) -> None:
    token = ["model.module.width=16", "model.module.heads=2"]
    context, results = run("dataset=MMIMDb", "dataset.demo=true", "model=ModDrop", *token, *small(tmp_path))
    assert set(results["metric"]) == set(metric_names("multilabel")) and len(set(results["scenario"])) == 6
    saved = np.load(context.directory / "predictions" / "none.npz")
    messages = saved["logits"] > 0
    for metric in ("macro", "micro", "weighted", "samples"):
        row = results[(results.metric == f"f1_{metric}") & (results.scenario == "none")]
        expected = f1_score(saved["target"], messages, average=metric, zero_division=0)
        assert row["value"].item() == pytest.approx(expected, abs=1e-6)
    assert "val_f1_macro" in pd.read_csv(context.fit_directory / "metrics.csv")
    with pytest.raises(UserError, match=r"MMIMDb has several labels, and the classes of DynamicTransformer exclude"):
        run("dataset=MMIMDb", "dataset.demo=true", "model=DynamicTransformer", *small(tmp_path))
    with pytest.raises(UserError, match=r"dataset.monitor=val_f1_macro is for several labels, Food101 has one"):
        run("dataset=Food101", "dataset.demo=true", "dataset.monitor=val_f1_macro", "model=ModDrop", *small(tmp_path))


def test_f1_of_several_labels_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(50, 6)), (rng.random((50, 6)) < 0.3).astype(np.float32)
    logits[3], target[3] = -1, 0  # nothing said, nothing true
    metrics = classification_metrics("multilabel", 6)
    for part in (slice(0, 20), slice(20, 50)):
        metrics.update(torch.from_numpy(logits[part]), torch.from_numpy(target[part]))
    actual = metrics.compute()
    for average in ("macro", "micro", "weighted", "samples"):
        expected = f1_score(target, logits > 0, average=average, zero_division=0)
        assert float(actual[f"f1_{average}"]) == pytest.approx(expected, abs=1e-6), average


def test_training_and_test_under_a_missing_table(tmp_path: Path) -> None:
    """The protocol of MAP: the same rate in training, validation and test."""
    protocol = [f"missing.{part}=image_text_both_0.7" for part in ("train", "val")]
    protocol += ["missing.test=[image_text_both_0.7,image_text_image_0.7]"]
    vector = ["model.vector_width=8", "model.modality=text"]
    context, results = run(
        "dataset=Food101", "dataset.demo=true", "model=Unimodal", *vector, *protocol, *small(tmp_path)
    )
    assert set(results["scenario"]) == {"image_text_both_0.7", "image_text_image_0.7"}
    about = json.loads((context.directory / "masks" / "image_text_both_0.7.json").read_text())
    n = len(context.data.split("test"))
    assert about["generator"] == "MAP both" and about["seed"] == 0 and about["realised_rate"] == int(n * 0.7) / 2 / n


def test_the_x_rays_and_their_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_chest_xray(tmp_path / "data", patients=80)
    vector = ["model.vector_width=8", "dataset.text_length=24"]
    context, results = run(
        "dataset=ChestXrayNotes", "model=Multimodal_CONCAT", *vector, *small(tmp_path), "imputer=Zero"
    )
    assert context.data.class_names == ["COVID-19", "SARS", "Pneumocystis", "Bacterial", "No Finding"]
    assert np.isfinite(results["value"]).all() and context.data.natural_rows("train")["text"].any()
    tokenizer = load_tokenizer(str(tmp_path / "data/vocab/bert-base-uncased-vocab.txt"))
    written = " ".join(tokenizer.decode(row) for row in context.data.split("train").read("text").tolist())
    assert "[MASK]" in written and not re.search(r"sars|covid|pcp|pneumoni", written)

    # The stage, not only the function, knows which rows have no note.
    seen: list[Batch] = []

    def watched(model: Any, batches: Any, **arguments: Any) -> Any:
        seen.extend(batches)
        return estimate(model, batches, **arguments)

    monkeypatch.setattr(gaussian, "estimate", watched)
    narrow = ["model.module.width=16", "model.module.heads=2", "model.module.projection=4"]
    cfg = configured(
        *("dataset=ChestXrayNotes", "model=DynamicTransformer", "dataset.text_length=24", *narrow),
        *small(tmp_path, "imputer=Zero", "stages=[fit,gaussian]"),
    )
    pipeline.run(cfg)
    counted = [absent_modalities(batch, context.data.modality_names) for batch in seen]
    lacking = sum(int(absent[:, 1].sum()) for absent in counted if absent is not None)
    assert lacking == context.data.natural_rows("train")["text"].sum() > 0


def test_the_real_x_rays(tmp_path: Path) -> None:
    if not (SHARED / "chest_xray").is_dir():
        pytest.skip(f"no X-rays in {SHARED} (DYMO_DATA names another place); made data cover the code above")
    tiny = ("dataset.side=16", "dataset.stored_side=16")
    cfg = configured("dataset=ChestXrayNotes", f"paths.data={SHARED}", f"paths.cache={tmp_path}", *tiny)
    data = build_data(cfg)
    data.prepare()
    meta = data.store.meta()
    assert meta is not None and sum(meta["counts"].values()) == 466 == 573 - 84 - 1 - 22
    assert sum(meta["part_counts"]["text"]["blank"].values()) == 100 and meta["parts"]["text"]["vocabulary"] == 30522
    totals = {name: sum(meta["class_counts"][s][name] for s in SPLITS) for name in data.class_names}
    assert totals == {"COVID-19": 396, "SARS": 16, "Pneumocystis": 13, "Bacterial": 33, "No Finding": 8}
    frame = pd.read_csv(SHARED / "chest_xray/metadata.csv", dtype=str).set_index("filename")
    patients = [set(frame.loc[data.split(s).names(), "patientid"]) for s in SPLITS]
    assert not patients[0] & patients[1] and not patients[0] & patients[2] and not patients[1] & patients[2]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "dataset.encoders.image.image_size=128",
            r"dataset.encoders.image.image_size=128 is not dataset.side=224: the enc",
        ),
        ("dataset.encoders.text.length=77", r"dataset.encoders.text.length=77 is not dataset.text_length=40"),
        ("missing.test=[table_value_0.5]", None),
        ("model.module.width=12", None),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_any_work(override: str, message: str | None) -> None:
    cfg = configured("dataset=Food101", "model=ModDrop", override)
    if message is None:  # found later, in the data or when the model is built
        validate(cfg)
        return
    with pytest.raises(UserError, match=message):
        validate(cfg)


def test_stand_ins_are_the_same_each_time_and_can_be_learned(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    for folder in ("a", "b"):
        make_food101(tmp_path / folder)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 8 * 35 + 6
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    data = prepared(Food101, tmp_path / "a", tmp_path, side=8, stored_side=8, text_length=16)
    scores = {}
    features: dict[str, list[np.ndarray]] = {"image": [], "text": []}
    for split in ("train", "test"):
        packed = data.split(split)
        features["image"].append(packed.read("image").flatten(1).numpy() / 255)
        words = np.zeros((len(packed), data.modalities[1].vocabulary or 0))
        np.put_along_axis(words, packed.read("text").numpy().astype(np.int64), 1, axis=1)
        features["text"].append(words)
    for name, (train, test) in features.items():
        model = LogisticRegression(max_iter=500).fit(train, data.split("train").read("target").numpy())
        scores[name] = model.score(test, data.split("test").read("target").numpy())
    # Chance is 0.125; a twentieth of the titles is off topic.
    assert scores["image"] > 0.375 and 0.85 < scores["text"] < 1, scores

"""Readers of pictures, tables and texts against right values: deep and turned images, order of files, constant columns,
absent content, texts without tokens, spellings, published splits. All files are made here by seeded makers."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from omegaconf import OmegaConf
from PIL import Image

from datasets.cremad import CREMAD
from datasets.demo.cremad import make_cremad
from datasets.demo.food101 import make_food101
from datasets.demo.mmimdb import make_mmimdb
from datasets.demo.multi_feature_digits import make_views
from datasets.dvm_table import standardised
from datasets.food101 import Food101
from datasets.image_table import ImageTable
from datasets.image_text import ImageText
from datasets.missingness import parse_scenario
from datasets.mmimdb import MMIMDb
from datasets.modality_parts.files import channel_statistics
from datasets.modality_parts.table import z_score_scale
from datasets.modality_parts.text import text_arrays
from datasets.multi_feature_digits import MultiFeatureDigits
from datasets.polymnist_build import load_backgrounds
from datasets.readers.audio import LogSTFT
from datasets.readers.images import ImageReader
from datasets.readers.mst_files import photo_files
from datasets.readers.pictures import _eight_bits, frame_files, open_picture
from datasets.readers.video import ClipReader, Frames
from datasets.scaling import mean_and_deviation
from models.cmpt.cmpt import CMPT
from models.dymo.method import DyMo
from trainers import attention, evaluate, published
from trainers.report import pictures
from utils.errors import UserError
from utils.files import natural_key

SIDE = 16
TURNS = {  # EXIF tag -> what a viewer does to the stored pixels (H, W), from the EXIF specification
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).T,
    8: np.rot90,
}


def gradient(top: int, side: int = SIDE) -> np.ndarray:
    """(side, side) values rising from 0 to ``top``."""
    return np.linspace(0, top, side * side).round().reshape(side, side)


# ------------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_use_their_whole_range(tmp_path: Path, suffix: str) -> None:
    values = gradient(65535).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / f"a{suffix}")
    expected = np.floor(values / 257 + 0.5)
    assert np.array_equal(np.asarray(open_picture(tmp_path / f"a{suffix}", 1)), expected)
    stored = ImageReader(SIDE)(tmp_path / f"a{suffix}")
    assert stored.shape == (3, SIDE, SIDE) and abs(stored.mean() - 127.5) < 1
    assert (stored == expected).all()


def test_fewer_bits_in_16_are_named_or_scaled(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    values = gradient(4095).astype(np.uint16)
    Image.fromarray(values).save(file)
    with pytest.raises(ValueError, match=r"16-bit values end at 4095, as of 12-bit data: set dataset.image_bits=12"):
        open_picture(file, 1)
    assert np.array_equal(np.asarray(open_picture(file, 1, 12)), np.floor(values / 4095 * 255 + 0.5))
    assert np.asarray(open_picture(file, 1, 16)).max() == round(4095 / 257)
    with pytest.raises(ValueError, match=r"from 0 to 4095 are outside 0 to 1023 \(10 bits\)"):
        open_picture(file, 1, 10)


def test_a_tiff_may_declare_its_bits() -> None:
    values = gradient(4095).astype(np.uint16)
    assert np.array_equal(_eight_bits(values, "I;16", None, 12), np.floor(values / 4095 * 255 + 0.5))


def test_deep_images_are_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    values = gradient(65535).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(open_picture(tmp_path / "a.png", 1)), np.rot90(np.floor(values / 257 + 0.5), -1))


def test_float_images_are_scaled_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.tif"
    values = (gradient(1000) / 1000).astype(np.float32)
    Image.fromarray(values).save(file)
    assert np.array_equal(np.asarray(open_picture(file, 1)), np.round(values * 255))
    for bad in (values * 2, values - 0.5, np.where(values > 0.9, np.nan, values).astype(np.float32)):
        Image.fromarray(bad.astype(np.float32)).save(file)
        with pytest.raises(ValueError, match=r"floating-point values outside \[0, 1\]"):
            open_picture(file, 1)


def test_32_bit_integers_are_read_as_16_bits_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.tif"
    Image.fromarray(gradient(65535).astype(np.int32)).save(file)
    assert np.array_equal(np.asarray(open_picture(file, 1)), np.floor(gradient(65535) / 257 + 0.5))
    Image.fromarray(gradient(70000).astype(np.int32)).save(file)
    with pytest.raises(ValueError, match="from 0 to 70000 are outside 0 to 65535"):
        open_picture(file, 1)


@pytest.mark.parametrize("tag", TURNS)
def test_orientation_is_what_a_viewer_shows(tmp_path: Path, tag: int) -> None:
    pixels = np.random.default_rng(tag).integers(0, 256, (12, 20)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = tag
    for name, how in (("a.png", {}), ("a.tif", {"compression": "tiff_deflate"})):  # lossless
        Image.fromarray(pixels).save(tmp_path / name, exif=exif, **how)
        assert np.array_equal(np.asarray(open_picture(tmp_path / name, 1)), TURNS[tag](pixels))
    Image.fromarray(pixels).save(tmp_path / "plain.jpg", quality=95)
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", quality=95, exif=exif)
    plain = np.asarray(open_picture(tmp_path / "plain.jpg", 1))
    assert np.array_equal(np.asarray(open_picture(tmp_path / "turned.jpg", 1)), TURNS[tag](plain))
    Image.fromarray(pixels).save(tmp_path / "raw.tif", exif=exif)
    if tag < 5:
        assert np.array_equal(np.asarray(open_picture(tmp_path / "raw.tif", 1)), TURNS[tag](pixels))
    else:
        with pytest.raises(ValueError, match="uncompressed TIFF with an orientation of 90 degrees"):
            open_picture(tmp_path / "raw.tif", 1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_8_bit_images_are_what_they_were(tmp_path: Path, mode: str, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3)).astype(np.uint8)
    file = tmp_path / f"a.{'jpg' if mode == 'CMYK' else 'png'}"
    Image.fromarray(pixels).convert(mode).save(file)
    with Image.open(file) as image:  # the rule before deep images and orientation were read
        planes = image.convert({1: "L", 3: "RGB"}[channels]).split()
    before = np.stack([np.asarray(p.crop((0, 0, 24, 20)).resize((10, 10), Image.Resampling.BILINEAR)) for p in planes])
    assert np.array_equal(ImageReader(10, channels)(file), before)


def test_every_reader_follows_the_rules(tmp_path: Path) -> None:
    """Backgrounds of PolyMNIST, and frames of clips; CSV data sets are tested below."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(5):
        Image.fromarray(gradient(65535, 40).astype(np.uint16)).save(tmp_path / f"{i}.png")
    assert abs(load_backgrounds(tmp_path)["0.png"].mean() - 127.5) < 1
    pixels = np.repeat(gradient(255, 32)[:, :, None], 3, 2).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.png", exif=exif)
    assert np.array_equal(load_backgrounds(tmp_path)["0.png"], np.rot90(pixels, -1))
    clip = tmp_path / "clip"
    clip.mkdir()
    Image.fromarray(pixels).save(clip / "1.png", exif=exif)
    frames, count = ClipReader(32, 1)(clip)
    assert count == 1 and np.array_equal(frames[0].transpose(1, 2, 0), np.rot90(pixels, -1))


# ---------------------------------------------------------------------------------------------------------------- order


def numbered(folder: Path, numbers: list[int], side: int = 8) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for n in numbers:
        Image.fromarray(np.full((side, side, 3), 10 * n, dtype=np.uint8)).save(folder / f"{n}.png")


def test_frames_without_leading_zeros_are_in_order(tmp_path: Path) -> None:
    numbered(tmp_path / "clip", list(range(1, 13)))
    assert [int(f.stem) for f in frame_files(tmp_path / "clip")] == list(range(1, 13))
    frames, count = ClipReader(8, 6)(tmp_path / "clip")
    assert count == 6 and (frames[:, 0, 0, 0] // 10).tolist() == [2, 4, 6, 8, 10, 12]


def test_folders_of_pictures_are_in_order(tmp_path: Path) -> None:
    numbered(tmp_path / "backgrounds", [1, 2, 3, 4, 5, 10, 11], 30)
    assert list(load_backgrounds(tmp_path / "backgrounds")) == [f"{n}.png" for n in (1, 2, 3, 4, 5)]
    for digit in range(10):
        numbered(tmp_path / "photos" / str(digit), [1, 2, 10])
    assert [file.stem for _, file in photo_files(tmp_path / "photos")] == ["1", "2", "10"] * 10


def test_natural_order_against_numbers() -> None:
    rng = random.Random(0)
    for width in (1, 4):  # without and with leading zeros
        names = [f"seed{n:0{width}d}_fold{k}" for n in range(120) for k in range(3)]
        shuffled = rng.sample(names, len(names))
        assert sorted(shuffled, key=natural_key) == names
    assert sorted(["b", "a10", "a9", "a"], key=natural_key) == ["a", "a9", "a10", "b"]


# -------------------------------------------------------------------------------------------------------------- scaling


def test_a_constant_is_not_divided_by_a_rounding_error() -> None:
    column = np.full(42, 0.1)
    assert column.std(ddof=1) > 0, "the case: equal numbers with a deviation"
    for ddof in (0, 1):
        mean, deviation = mean_and_deviation(column, ddof)
        assert (mean, deviation) == (0.1, 1.0)
    assert standardised(np.array([0.1, 0.2]), column).tolist() == [0.0, 0.1]
    values = np.random.default_rng(0).normal(3, 2, (50, 4))
    mean, deviation = mean_and_deviation(values, 1)
    assert np.array_equal(mean, values.mean(0)) and np.array_equal(deviation, values.std(0, ddof=1))
    assert channel_statistics([column[:30, None], column[30:, None]], 1) == ([0.1], [1.0])
    cells = np.ma.masked_array(np.stack([column, np.arange(42.0)], 1))
    np.testing.assert_array_equal(z_score_scale(cells).deviation, [1.0, 1 / np.arange(42.0).std()])
    single = mean_and_deviation(values[:1], 1)
    assert np.array_equal(single[0], values[0]) and (single[1] == 1).all()


def made_table(folder: Path, image: Callable[[int], np.ndarray] | None = None, **columns: list[Any]) -> Path:
    """``<folder>/a.csv`` with 30 rows in three splits, and PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    pixels = image or (lambda i: rng.integers(0, 256, (20, 20, 3)).astype(np.uint8))
    for i in range(30):
        Image.fromarray(pixels(i)).save(folder / f"p{i}.png")
    frame = pd.DataFrame(
        {
            "image": [f"p{i}.png" for i in range(30)],
            "label": [("a", "b")[i % 2] for i in range(30)],
            "split": ["train"] * 18 + ["val"] * 6 + ["test"] * 6,
            "x": rng.normal(size=30).round(3),
            **columns,
        }
    )
    frame.to_csv(folder / "a.csv", index=False)
    return folder / "a.csv"


def table(csv: Path, store: str = "store", **changes: Any) -> ImageTable:
    arguments = {
        "name": "A",
        "csv": str(csv),
        "image": "image",
        "label": "label",
        "classes": ["a", "b"],
        "continuous": ["x"],
        "split": "split",
        "split_values": {s: s for s in ("train", "val", "test")},
        "side": SIDE,
        **changes,
    }
    return ImageTable(store=str(csv.parent / store), **arguments)


def test_constant_columns_of_a_csv(tmp_path: Path) -> None:
    csv = made_table(tmp_path, y=[0.1] * 24 + [0.2] + [0.1] * 5)
    for scaling in ("standard", "min_max"):
        data = table(csv, f"store-{scaling}", continuous=["x", "y"], scaling=scaling)
        data.prepare()
        assert (data.split("train").read("table")[:, 1] == 0).all()
        assert data.split("test").read("table")[:, 1].tolist() == pytest.approx([0.1, 0, 0, 0, 0, 0])
        assert np.abs(data.number_scale.deviation).max() < 1e3


def test_constant_columns_of_the_digits(tmp_path: Path) -> None:
    make_views(tmp_path)
    file = tmp_path / "mfeat-mor"
    values = np.loadtxt(file)
    values[:, 2] = 0.1
    np.savetxt(file, values, fmt="%.5f")
    data = MultiFeatureDigits(store=str(tmp_path / "store"), root=str(tmp_path))
    data.prepare()
    parts = [data.split(s).read("mor") for s in ("train", "val", "test")]
    assert all((part[:, 2] == 0).all() for part in parts)
    held_out = np.abs(np.concatenate(parts)).max()
    assert held_out < 10


# --------------------------------------------------------------------------------------------------- stores of old code


def as_packed_before(data: Any, **values: Any) -> None:
    """Make the store look as if the first version of the rules had packed it."""
    file = data.store.folder / "meta.json"
    meta = json.loads(file.read_text())
    signature = meta.pop("source_signature")
    meta.pop("reading_rules"), meta.pop("reading_changes", None), meta.pop("files")
    file.write_text(json.dumps(meta | {"signature": signature} | values))


def test_a_store_that_old_rules_packed_alike_is_kept(tmp_path: Path) -> None:
    csv = made_table(tmp_path, y=[5.0] * 30)
    data = table(csv, continuous=["x", "y"])
    data.prepare()
    signature = data.store.meta()["signature"]  # type: ignore[index]
    as_packed_before(data)
    stamp = (data.store.folder / "train" / "image.npy").stat().st_ino
    again = table(csv, continuous=["x", "y"])
    again.prepare()
    assert (data.store.folder / "train" / "image.npy").stat().st_ino == stamp
    assert again.store.meta()["signature"] == signature, "runs on it go on"  # type: ignore[index]


@pytest.mark.parametrize("case", ["deep", "turned", "constant"])
def test_a_store_that_old_rules_packed_wrongly_is_made_again(
    tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    deep = case == "deep"
    csv = made_table(
        tmp_path,
        (lambda i: gradient(65535, 20).astype(np.uint16)) if deep else None,
        y=[0.1] * 30 if case == "constant" else list(range(30)),
    )
    if case == "turned":
        exif = Image.Exif()
        exif[0x0112] = 3
        with Image.open(tmp_path / "p4.png") as image:
            image.load()
        image.save(tmp_path / "p4.png", exif=exif)
    data = table(csv, continuous=["x", "y"])
    data.prepare()
    new = data.store.meta()
    assert new is not None and new["signature"] != new["source_signature"]
    as_packed_before(data)
    file = data.store.folder / "train" / "table.npy"
    if case == "constant":  # as the old code stored it
        content = np.load(file)
        content[:, 1] = -0.5
        np.save(file, content)
    caplog.set_level(logging.WARNING)
    table(csv, continuous=["x", "y"]).prepare()
    assert "earlier rules read some content of" in caplog.text
    again = data.store.meta()
    assert again is not None and again["signature"] == new["signature"], "other than that of the old content"


def test_image_bits_of_a_data_set(tmp_path: Path) -> None:
    csv = made_table(tmp_path, lambda i: gradient(4095, SIDE).astype(np.uint16))
    with pytest.raises(UserError, match=r"18 of 18 images of split 'train' cannot be read: .*dataset.image_bits=12"):
        table(csv).prepare()
    data = table(csv, image_bits=12)
    data.prepare()
    stored = data.split("train").read("image")
    assert np.array_equal(stored[0, 0].numpy(), np.floor(gradient(4095) / 4095 * 255 + 0.5))
    with pytest.raises(UserError, match=r"dataset\.image_bits=4: must be a whole number from 8 to 16"):
        table(csv, image_bits=4)


# ------------------------------------------------------------------------------------------------------- absent content


def test_absent_content_is_drawn_as_absent() -> None:
    """The pixels of a row that has no photograph appear nowhere in its block."""
    photo = np.full((2, 3, 8, 8), 255, dtype=np.uint8)
    photo[:, 1:] = 0  # bright red, which nothing else in the figure is
    data = {
        "index": np.arange(2),
        "target": np.zeros(2, dtype=int),
        "prediction": np.zeros(2, dtype=int),
        "missing": np.array([[True, False], [True, False]]),
        "absent": np.array([[True, False], [False, False]]),
        "modality_names": np.array(["image", "table"]),
        "class_names": np.array(["a", "b"]),
        "accepted": np.full((2, 1), -1),
        "rewards": np.full((2, 1, 2), np.nan),
        "original_image": photo,
        "recovered_image": np.zeros_like(photo),
    }
    figure = pictures.samples(data, "t")
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert texts.count("not in the data") == 1
    shown = [image for ax in figure.axes for image in ax.images if np.asarray(image.get_array())[..., 0].max() == 255]
    assert len(shown) == 1, "the photograph of the row that has one"
    plt.close("all")


def half_without_images(folder: Path) -> ImageTable:
    """Rows 0, 2, 4 ... have a red photograph, the others have none."""
    red = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    red[..., 0] = 255
    csv = made_table(folder, lambda i: red)
    frame = pd.read_csv(csv)
    frame.loc[frame.index % 2 == 1, "image"] = ""
    frame.to_csv(csv, index=False)
    data = table(csv, without_image="missing")
    data.prepare()
    return data


class PlainDyMo(DyMo):
    """Everything that the pictures of the report ask for, without networks."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def complete(self, batch: Any) -> Any:
        return batch, {name: torch.zeros_like(x) for name, x in batch.inputs.items()}

    def __call__(self, batch: Any) -> Any:
        b, m = batch.missing.shape
        extras = {
            "final_missing": batch.missing,
            "rewards": torch.zeros(b, 1, m),
            "accepted": torch.full((b, 1), -1),
        }
        return SimpleNamespace(logits=torch.zeros(b, 2), extras=extras)


def test_examples_hold_no_content_of_another_row(tmp_path: Path) -> None:
    data = half_without_images(tmp_path)
    cfg = OmegaConf.create({"report": {"samples": 6}})
    scenario = parse_scenario("whole_0")
    context = SimpleNamespace(data=data, cfg=cfg, device="cpu", directory=tmp_path, scenarios=[scenario])
    mask, cells = data.masks("test", scenario)
    evaluate.write_examples(
        context,
        PlainDyMo(),
        {"whole_0": mask},
        {"whole_0": cells},
        {"whole_0": None},  # type: ignore[arg-type]
    )
    with np.load(tmp_path / "examples" / "whole_0.npz") as file:
        absent, original = file["absent"], file["original_image"]
    assert absent.tolist() == [[False, False], [True, False]] * 3
    assert (original[absent[:, 0]] == 0).all() and (original[~absent[:, 0], 0] == 255).all()


class PlainCMPT(CMPT):
    proxy = None

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def attention_maps(self, modality: int, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"class token": torch.ones(len(x), 2, 2)}


def test_attention_is_drawn_over_photographs_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = half_without_images(tmp_path)
    asked: list[int] = []
    rows = data.rows
    monkeypatch.setattr(data, "rows", lambda split, r, device: (asked.extend(r.tolist()), rows(split, r, device))[1])
    mask, _ = data.masks("test", parse_scenario("none"))
    n = len(mask)
    arrays = {"index": np.arange(n), "target": np.zeros(n, dtype=int), "logits": np.eye(2)[np.zeros(n, dtype=int)]}
    run = SimpleNamespace(dataset="A")
    monkeypatch.setattr(attention, "load_pair", lambda *_: (run, [arrays, arrays]))
    monkeypatch.setattr(attention, "sorted_predictions", lambda *_: {"missing": mask})
    monkeypatch.setattr(attention, "hidden_modalities", lambda *_: [])
    cfg = OmegaConf.create({"dataset": {"name": "A"}})
    directory = SimpleNamespace(path=tmp_path)
    context = SimpleNamespace(data=data, device="cpu", label="CMPT", load_model=PlainCMPT, cfg=cfg, directory=directory)
    attention.attention(context, tmp_path, "none", 6)  # type: ignore[arg-type]
    assert asked == [0, 2, 4]
    plt.close("all")


# ---------------------------------------------------------------------------------------------------------------- texts

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat"]


def texts(folder: Path, column: list[str], **changes: Any) -> ImageText:
    csv = made_table(folder, text=column)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    arguments: dict[str, Any] = {
        "name": "T",
        "csv": str(csv),
        "image": "image",
        "label": "label",
        "classes": ["a", "b"],
        "text": "text",
        "split": "split",
        "split_values": {s: s for s in ("train", "val", "test")},
        "tokenizer": str(folder / "vocab.txt"),
        "text_length": 8,
        "side": SIDE,
        **changes,
    }
    return ImageText(store=str(folder / "store"), **arguments)


def test_texts_without_a_token_are_no_texts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    column = ["a dog"] * 30
    column[0], column[3], column[25] = "\u200b\u200b", "", "\u200b"
    caplog.set_level(logging.WARNING)
    remaining = texts(tmp_path / "missing", column, without_text="missing")
    remaining.prepare()
    assert np.flatnonzero(remaining.natural_rows("train")["text"]).tolist() == [0, 3]
    assert np.flatnonzero(remaining.natural_rows("test")["text"]).tolist() == [1]
    assert "2 of them have characters of which the tokenizer makes no token" in caplog.text
    meta = remaining.store.meta()
    assert meta is not None and meta["part_counts"]["text"]["blank"] == {"train": 2, "val": 0, "test": 1}
    less = texts(tmp_path / "less", column, without_text="leave_out")
    less.prepare()
    assert [len(less.split(s)) for s in ("train", "val", "test")] == [16, 6, 5]
    assert "p0.png" not in less.split("train").names()
    with pytest.raises(UserError, match=r"rows without text: 2 of 18 in train, 1 of 6 in test, the first is p0.png"):
        texts(tmp_path / "refused", column, without_text="refuse").prepare()


def test_the_share_of_unknown_words_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    texts(tmp_path / "known", ["a dog", "a horse"] * 15).prepare()
    assert "25.0 % of 60 tokens are unknown ([UNK])" in caplog.text and "less than half" not in caplog.text
    caplog.clear()
    texts(tmp_path / "unknown", ["ein Hund bellt"] * 30).prepare()
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert any("knows less than half of the words (100.0 % of 90 tokens are [UNK])" in text for text in warnings)


def test_new_rows_in_words_that_the_tokenizer_does_not_know_are_pointed_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vocabulary = texts(tmp_path, ["a dog"] * 30).tokenizer
    for column, is_warned in ((["a dog", "ein Hund"], False), (["ein Hund", "a Hund"], True)):
        caplog.clear()
        encoder: Any = SimpleNamespace(cells=lambda _, column=column: column, missing_values=[""])
        arrays = text_arrays(encoder, "text", ["words"], [], vocabulary, 8)
        assert arrays["text"].shape == (2, 8)
        assert ("knows less than half of the words (75.0 % of 4 tokens" in caplog.text) is is_warned


# ------------------------------------------------------------------------------------------------------------ spellings


def test_levels_merge_spellings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sex = (["M", "m", "Male", "male", "F", "female"] * 5)[:30]
    csv = made_table(tmp_path, sex=sex)
    caplog.set_level(logging.WARNING)
    apart = table(csv, "apart", categorical={"sex": None}, continuous=[])
    apart.prepare()
    assert apart.modalities[1].cardinalities == (6,)
    assert "differ only in case or blanks: 'M' (5), 'm' (5); 'Male' (5), 'male' (5)" in caplog.text
    merged = {"male": ["M", "m", "Male", "male"], "female": ["F ", "female"]}
    data = table(csv, "merged", categorical={"sex": merged}, continuous=[])
    data.prepare()
    expected = [0.0 if s.lower().startswith("m") else 1.0 for s in sex]
    codes = torch.cat([data.split(s).read("table")[:, 0] for s in ("train", "val", "test")])
    assert data.modalities[1].cardinalities == (2,) and codes.tolist() == expected
    with pytest.raises(UserError, match=r"'F' \(5\)"):
        table(csv, "x", categorical={"sex": {"male": merged["male"], "female": ["female"]}}, continuous=[]).prepare()
    with pytest.raises(UserError, match=r"categorical.sex: the value 'M' stands in two levels"):
        table(csv, categorical={"sex": {"male": ["M"], "female": ["M"]}}, continuous=[])


@pytest.mark.parametrize(
    "cells, classes",
    [(["0.0", "1.0"], [0.0, 1.0]), (["0.0", "1.0"], ["0.0 ", " 1.0"]), (["yes", "no"], ["yes", "no"])],
)
def test_class_names_are_text(tmp_path: Path, cells: list[str], classes: list[Any]) -> None:
    csv = made_table(tmp_path, label=cells * 15)
    data = table(csv, classes=classes)
    data.prepare()
    assert data.class_names == cells and data.split("train").read("target").tolist() == [0, 1] * 9


@pytest.mark.parametrize("cells, classes", [(["yes", "no"], [True, False]), (["0.50", "1.50"], [0.5, 1.5])])
def test_names_that_yaml_changed_are_to_be_quoted(tmp_path: Path, cells: list[str], classes: list[Any]) -> None:
    csv = made_table(tmp_path, label=cells * 15, level=cells * 15)
    with pytest.raises(UserError, match=rf'dataset.classes holds {classes[0]}, .* in quotes \("{cells[0]}", '):
        table(csv, classes=classes).prepare()
    with pytest.raises(UserError, match=rf"dataset.categorical.level holds {classes[0]}, "):
        table(csv, classes=cells, categorical={"level": classes}).prepare()


# ------------------------------------------------------------------------------------------------- noise and protocols


def test_running_masks_of_a_data_set(tmp_path: Path) -> None:
    data = texts(tmp_path, ["a dog"] * 30)
    data.prepare()
    scenario = parse_scenario("image_text_running_text_0.5")
    rng = random.Random(0)
    for split, n in (("train", 18), ("val", 6), ("test", 6)):
        expected = np.zeros(n, dtype=bool)
        expected[rng.sample(range(n), n // 2)] = True
        assert np.array_equal(data.mask(split, scenario)[:, 1], expected)


@pytest.mark.parametrize("has_list", [True, False])
def test_food_without_validation_rows(tmp_path: Path, has_list: bool) -> None:
    root = tmp_path / "Food101"
    make_food101(root, counts=(12, 2, 3))
    if not has_list:
        (root / "split.json").unlink()
    parts = {}
    for validation in (None, "test"):
        data = Food101(
            store=str(tmp_path / str(validation)),
            root=str(root),
            statistics="warn",
            tokenizer=str(root / "vocab.txt"),
            text_length=8,
            side=SIDE,
            validation=validation,
        )
        data.prepare()
        parts[validation] = {s: data.split(s).names() for s in ("train", "val", "test")}
    drawn, whole = parts[None], parts["test"]
    assert sorted(whole["train"]) == sorted(drawn["train"] + drawn["val"]) and whole["test"] == drawn["test"]
    assert whole["val"] == whole["test"]
    assert data.expected_counts() == {"train": 67_988, "val": 22_716, "test": 22_716}
    with pytest.raises(UserError, match=r"dataset\.validation=0\.1: must be test, or null"):
        Food101(store="x", root=str(root), tokenizer="x", text_length=8, validation="0.1")


def test_films_keep_their_list_and_clips_all_train(tmp_path: Path) -> None:
    root = tmp_path / "MMIMDb"
    make_mmimdb(root, counts=(46, 23, 23))
    arguments: dict[str, Any] = {"statistics": "warn", "tokenizer": str(root / "vocab.txt"), "text_length": 8}
    data = MMIMDb(store=str(tmp_path / "films"), root=str(root), side=SIDE, validation="test", **arguments)
    data.prepare()
    assert [len(data.split(s)) for s in ("train", "val", "test")] == [46, 23, 23]
    assert data.split("val").names() == data.split("test").names()
    clips = tmp_path / "CREMA-D"
    make_cremad(clips)
    listed = {s: len((clips / f"{s}.csv").read_text().splitlines()) for s in ("train", "test")}
    data = CREMAD(
        str(tmp_path / "clips"),
        root=str(clips),
        audio=LogSTFT(rate=8000, seconds=1.0, n_fft=64, hop=64),
        frames=Frames(count=1, side=16),
        stored_side=16,
        validation="test",
        bad_clips={"silent": "keep"},
    )
    data.prepare()
    assert {s: len(data.split(s)) for s in ("train", "test")} == listed


def test_the_training_rows_stand_beside_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(__file__).parents[2] / "docs" / "published" / "cmpt.csv"

    def printed() -> str:
        published.main([str(file), "--table", "table_2", "--output", str(tmp_path)])
        return capsys.readouterr().out

    text = printed()
    for rows in ("67,988", "6,698", "14,739"):
        assert f"The paper trains on {rows} rows and has no validation split; ours train on" in text
    run = tmp_path / "Food101" / "CMPT" / "complete" / "seed0"
    run.mkdir(parents=True)
    row = ("Food101", "CMPT", 0, "whole_0", "accuracy", 0.7, 100)
    columns = ["dataset", "model", "seed", "scenario", "metric", "value", "n"]
    pd.DataFrame([row], columns=columns).to_csv(run / "results.csv", index=False)
    (run / "DONE").touch()
    (run / "config.yaml").write_text("dataset:\n  name: Food101\n  validation: test\n")
    text = printed()
    assert "67,988 rows and has no validation split; so do these runs of ours (dataset.validation=test)" in text
    assert "6,698 rows and has no validation split; ours train on 6,028" in text


@pytest.mark.parametrize("fit", ["stretch", "crop"])
@pytest.mark.parametrize("box", [None, (3, 2, 40, 25)])
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_are_resized_as_each_alone(channels: int, box: Any, fit: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (31, 47, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    picture = Image.fromarray(pixels).convert({1: "L", 3: "RGB"}[channels])
    left, upper, right, lower = box or (0, 0, 47, 31)
    if fit == "crop":
        margin = (right - left - (lower - upper)) / 2
        left, right = left + margin, right - margin
    for resample in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC):
        if fit == "crop":
            planes = [plane.resize((20, 20), resample, box=(left, upper, right, lower)) for plane in picture.split()]
        else:
            planes = [plane.crop((left, upper, right, lower)).resize((20, 20), resample) for plane in picture.split()]
        actual = ImageReader(20, channels, box, resample, fit)(tmp_path / "a.png")
        assert actual.flags.c_contiguous and np.array_equal(actual, np.stack([np.asarray(plane) for plane in planes]))

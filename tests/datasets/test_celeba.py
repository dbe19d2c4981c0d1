"""CelebA: joins, partitions, texts, the image transform, resumable decoding, bad input
(docs/reference/datasets.md §3, §13.3).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from datasets.celeba import BOX, CelebA, read_face, read_table
from datasets.demo.celeba import CELEBA_ATTRIBUTES, make_celeba
from datasets.readers import images
from datasets.readers.images import ImageReader, decode_images, load_images
from datasets.readers.text import attribute_texts, decode
from tests.conftest import Reads
from utils.errors import UserError

SPLITS = ("train", "val", "test")
TEXTS = "list_attr_text_256_False_True_celeba.csv"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in of 30 / 12 / 8 faces; do not change it."""
    root = tmp_path_factory.mktemp("celeba") / "CelebA"
    make_celeba(root, counts=(30, 12, 8))
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy to spoil; the images are links."""
    copy = tmp_path / "CelebA"
    (copy / "img_align_celeba").mkdir(parents=True)
    for file in made.glob("img_align_celeba/*"):
        (copy / "img_align_celeba" / file.name).hardlink_to(file)
    for file in made.glob("*.csv"):
        (copy / file.name).write_text(file.read_text())
    return copy


def built(root: Path, folder: Path, **settings: object) -> CelebA:
    data = CelebA(store=str(folder / "store"), root=str(root), **settings)  # type: ignore[arg-type]
    data.prepare()
    return data


def attributes(root: Path) -> pd.DataFrame:
    return pd.read_csv(root / "list_attr_celeba.csv", index_col=0)


# ------------------------------------------------------------------------------------------------------------ the image


def test_the_image_equals_the_published_transform(made: Path) -> None:
    """torchvision's ToTensor, rows 35-181 and columns 15-161, ToPILImage, bicubic 64 x 64, ToTensor
    (docs/reference/datasets.md §3.5).
    """
    from torchvision import transforms
    from torchvision.transforms import InterpolationMode

    steps = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Lambda(lambda x: x[:, (218 - 148) // 2 : 182, (178 - 148) // 2 : 162]),
            transforms.ToPILImage(),
            transforms.Resize((64, 64), InterpolationMode.BICUBIC),
            transforms.ToTensor(),
        ]
    )
    assert (BOX[2] - BOX[0], BOX[3] - BOX[1]) == (147, 147)
    for file in sorted(made.glob("img_align_celeba/*.jpg"))[:5]:
        with Image.open(file) as image:
            expected = steps(image.convert("RGB"))
        ours = torch.from_numpy(read_face(file).copy()).float() / 255
        assert ours.shape == (3, 64, 64) and (ours - expected).abs().max() <= 1 / 255 + 1e-6
        assert (ours == expected).float().mean() > 0.99


def test_a_grey_image_becomes_colour_and_a_small_one_is_refused(tmp_path: Path) -> None:
    Image.new("L", (178, 218), 77).save(tmp_path / "grey.jpg")
    assert (read_face(tmp_path / "grey.jpg") == 77).all()
    Image.new("RGB", (161, 218)).save(tmp_path / "small.jpg")
    files = [tmp_path / "small.jpg", tmp_path / "grey.jpg"]
    with pytest.raises(
        UserError, match=r"1 of 2 faces .*small\.jpg \(161x218 pixels, at least 162x182 are needed\); res"
    ):
        load_images(files, read_face, "faces")


# ------------------------------------------------------------------------------------------------------------ the store


def test_every_row_against_the_files(made: Path, tmp_path: Path) -> None:
    data = built(made, tmp_path)
    table = attributes(made)
    assert [len(data.split(s)) for s in SPLITS] == [30, 12, 8]
    assert data.class_names == ["not blond hair", "blond hair"] and data.task == "binary"
    names = [f"{i:06d}" for i in range(1, 51)]
    expected = attribute_texts(list(table.columns), table.to_numpy() == 1, 256, np.random.default_rng(2025))
    row = 0
    for split in SPLITS:
        packed = data.split(split)
        assert packed.names() == names[row : row + len(packed)]
        assert decode(packed.read("text")) == expected[row : row + len(packed)]
        for i, name in enumerate(packed.names()):
            face = read_face(made / f"img_align_celeba/{name}.jpg")
            assert np.array_equal(packed.read("img")[i].numpy(), face)
            assert packed.read("target")[i] == (table.loc[f"{name}.jpg", "Blond_Hair"] == 1)
        row += len(packed)
    batch = next(iter(data.loader("test", batch_size=4)))
    assert {k: tuple(v.shape) for k, v in batch.inputs.items()} == {"img": (4, 3, 64, 64), "text": (4, 256, 71)}
    assert batch.inputs["img"].max() <= 1 and (batch.inputs["text"].sum(2) == 1).all()
    assert list(tmp_path.iterdir()) == [tmp_path / "store"], "nothing is left of the decoding"


def test_rows_are_joined_by_name_not_by_place(made: Path, root: Path, tmp_path: Path) -> None:
    reference = built(made, tmp_path / "a")
    lines = (root / "list_eval_partition.csv").read_text().splitlines()
    (root / "list_eval_partition.csv").write_text("\n".join([lines[0], *lines[:0:-1]]))
    other = built(root, tmp_path / "b")
    for split in SPLITS:
        assert other.split(split).names() == reference.split(split).names()
        assert torch.equal(other.split(split).read("img"), reference.split(split).read("img"))
        assert torch.equal(other.split(split).read("text"), reference.split(split).read("text"))


def test_the_text_forms_of_the_tables_read_the_same(made: Path, root: Path, tmp_path: Path) -> None:
    table = attributes(root)
    rows = [f"{name}  " + "  ".join(f"{v:2d}" for v in row) for name, row in zip(table.index, table.to_numpy())]
    (root / "list_attr_celeba.txt").write_text("\n".join(["50", " ".join(table.columns) + " ", *rows]) + "\n")
    partition = pd.read_csv(root / "list_eval_partition.csv").to_numpy()
    (root / "list_eval_partition.txt").write_text("".join(f"{name} {part}\n" for name, part in partition))
    for header, stem in ((True, "list_attr_celeba"), (False, "list_eval_partition")):
        csv, txt = (read_table(root / f"{stem}{suffix}", header) for suffix in (".csv", ".txt"))
        assert csv.index.tolist() == txt.index.tolist() and csv.columns.tolist() == txt.columns.tolist()
        assert np.array_equal(csv, txt)
        (root / f"{stem}.csv").unlink()
    (root / "img_align_celeba").rename(root / "inner")
    (root / "img_align_celeba").mkdir()
    (root / "inner").rename(root / "img_align_celeba/img_align_celeba")  # as one archive unpacks
    one, two = built(made, tmp_path / "a"), built(root, tmp_path / "b")
    assert torch.equal(one.split("val").read("img"), two.split("val").read("img"))
    assert torch.equal(one.split("val").read("text"), two.split("val").read("text"))


def test_partitions(made: Path, root: Path, tmp_path: Path) -> None:
    table = attributes(made)["Blond_Hair"] == 1
    official = built(made, tmp_path / "official")
    swapped = built(made, tmp_path / "swapped", partition="official_swapped")
    assert [len(swapped.split(s)) for s in SPLITS] == [30, 8, 12]
    assert swapped.split("val").names() == official.split("test").names()
    balanced = built(made, tmp_path / "balanced", partition="balanced")
    for split in SPLITS:
        present = balanced.split(split)
        blond = [n for n in official.split(split).names() if table[f"{n}.jpg"]]
        assert set(blond) <= set(present.names()) and len(present) == 2 * len(blond)
        assert present.read("target").sum() == len(blond) and present.names() == sorted(present.names())
        assert set(present.names()) <= set(official.split(split).names())
    other = built(made, tmp_path / "other", partition="balanced", balance_seed=1)
    assert other.split("train").names() != balanced.split("train").names()
    names = [f"{i:06d}.jpg" for i in range(1, 51)]
    lines = [f"{name},{0 if i < 40 else 2}" for i, name in enumerate(names)]
    (root / "mine.csv").write_text("\n".join(["image_id,partition", *lines]))
    separate = built(made, tmp_path / "own", partition_file=str(root / "mine.csv"))
    assert len(separate.split("train")) == 40 and len(separate.split("test")) == 10 and not separate.has_split("val")
    with pytest.raises(UserError, match=r"dataset\.partition=even: must be one of official, official_swapped"):
        CelebA(store="s", partition="even")
    with pytest.raises(UserError, match=r"dataset\.partition_file: there is no file nowhere\.csv"):
        built(made, tmp_path / "none", partition_file="nowhere.csv")


def test_the_target_can_be_left_out_of_the_text(made: Path, tmp_path: Path) -> None:
    leaky, clean = built(made, tmp_path / "a"), built(made, tmp_path / "b", drop_target_attribute=True)
    for split in SPLITS:
        blond = leaky.split(split).read("target") == 1
        named = torch.tensor(["blond hair" in text for text in decode(leaky.split(split).read("text"))])
        assert torch.equal(named, blond), "as published, the text tells the class"
        texts = decode(clean.split(split).read("text"))
        assert not any("blond" in text for text in texts) and any("young" in text for text in texts)
        assert torch.equal(clean.split(split).read("target") == 1, blond)
    smiling = built(made, tmp_path / "c", target="Smiling", drop_target_attribute=True)
    texts = decode(smiling.split("train").read("text"))
    assert not any("smiling" in text for text in texts) and any("blond hair" in text for text in texts)
    expected = [attributes(made).loc[f"{n}.jpg", "Smiling"] == 1 for n in smiling.split("train").names()]
    assert smiling.split("train").read("target").tolist() == expected
    assert smiling.class_names == ["not smiling", "smiling"]


def test_the_texts_of_the_original_are_taken_where_they_are(root: Path, tmp_path: Path) -> None:
    names = [f"{i:06d}.jpg" for i in range(50, 0, -1)]
    texts = {name: f"{'*' * i}text, of {name}".ljust(256, "*") for i, name in enumerate(names)}
    pd.DataFrame({"image_id": names, "text": texts.values()}).to_csv(root / TEXTS, index=False)
    data = built(root, tmp_path)
    for split in SPLITS:
        expected = [texts[f"{n}.jpg"] for n in data.split(split).names()]
        assert decode(data.split(split).read("text")) == expected
    assert data.store.meta()["source"]["texts"] == "read"  # type: ignore[index]
    dropped = built(root, tmp_path / "dropped", drop_target_attribute=True)
    assert not any("text, of" in text for text in decode(dropped.split("train").read("text")))


def test_the_store_follows_files_and_settings(root: Path, tmp_path: Path) -> None:
    data = built(root, tmp_path)
    stamp = (data.store.folder / "meta.json").stat().st_ino
    data.prepare()
    assert (data.store.folder / "meta.json").stat().st_ino == stamp
    file = root / "img_align_celeba/000031.jpg"
    file.unlink()
    Image.new("RGB", (178, 218), (200, 0, 0)).save(file)
    data.prepare()
    assert abs(int(data.split("val").read("img")[0, 0, 0, 0]) - 200) < 3
    assert len(built(root, tmp_path, partition="official_swapped").split("val")) == 8


# -------------------------------------------------------------------------------------------------- resumable decoding


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.png" for i in range(10)]
    for i, path in enumerate(paths):
        Image.new("RGB", (8, 8), (20 * i, 1, 2)).save(path)
    return paths


READ = ImageReader(4)


def test_decoding_goes_on_where_it_was_interrupted(
    pictures: list[Path], tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "CHUNK", 3)
    folder, reads.stop_at = tmp_path / "out", "7"
    with pytest.raises(KeyboardInterrupt):
        decode_images({"train": pictures}, folder, READ)
    assert {"0", "1", "2", "3", "4", "5"} <= set(reads.all())
    reads.stop_at = None
    target = decode_images({"train": pictures}, folder, READ)["train"]
    assert reads.all() == ["6", "7", "8", "9"], "what was noted as done is not decoded again"
    array = np.load(target)
    assert array.shape == (10, 3, 4, 4) and array.dtype == np.uint8
    assert array[:, 0, 0, 0].tolist() == [20 * i for i in range(10)]
    assert np.array_equal(array, load_images(pictures, READ))

    Image.new("RGB", (8, 8), (255, 1, 2)).save(pictures[4], compress_level=0)
    reads.all()
    decode_images({"train": pictures, "val": pictures[:2]}, folder, READ)
    assert reads.all() == ["0", "1", "4"], "a file that changed, and the other split"
    assert np.load(target)[4, 0, 0, 0] == 255
    others = [ImageReader(2), ImageReader(4, channels=1), ImageReader(4, box=(0, 0, 5, 5))]
    others.append(ImageReader(4, resample=Image.Resampling.BICUBIC))
    for paths, read in ((pictures[:5], READ), *((pictures, read) for read in others)):
        target = decode_images({"train": paths}, folder, read)["train"]
        assert len(reads.all()) == len(paths)
        assert np.load(target).shape == (len(paths), read.channels, read.side, read.side)
        assert len(list(folder.glob("train.*"))) == 2, "of the work for something else nothing is left"


def test_bad_images_are_counted_and_the_others_are_kept(
    pictures: list[Path], tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "CHUNK", 2)
    content = [picture.read_bytes() for picture in pictures]
    files = {"train": pictures, "val": pictures[:7]}
    for i in (1, 3, 6, 9):
        pictures[i].write_bytes(content[i][:40])
    message = (
        r"4 of 10 images of split 'train' cannot be read: .*1\.png \(.*3\.png \(.*6\.png \(.*, and 1 more; restore"
    )
    with pytest.raises(UserError, match=message):
        decode_images(files, tmp_path, READ)
    pictures[6].unlink()
    with pytest.raises(
        UserError, match=r"image file: 1 of 10 in train, 1 of 7 in val, the first is .*6\.png; .*restore"
    ):
        decode_images(files, tmp_path, READ)
    reads.all()
    for i in (1, 3, 6, 9):
        pictures[i].write_bytes(content[i])
    decode_images({"train": pictures}, tmp_path, READ)
    assert reads.all() == ["1", "3", "6", "9"]


def test_an_interrupted_prepare_goes_on(made: Path, tmp_path: Path, reads: Reads) -> None:
    """Interrupted in the validation images, the training images are not decoded again; no store before the end."""
    reads.stop_at = "000035"
    with pytest.raises(KeyboardInterrupt):
        built(made, tmp_path)
    assert len(reads.all()) >= 30 and not (tmp_path / "store").exists()
    reads.stop_at = None
    data = built(made, tmp_path)
    assert reads.all() == [f"{i:06d}" for i in range(31, 51)]
    assert [len(data.split(s)) for s in SPLITS] == [30, 12, 8] and len(list(tmp_path.iterdir())) == 1


def test_two_processes_decode_once(made: Path, tmp_path: Path, reads: Reads) -> None:
    """The second waits for the first (here threads: the lock belongs to the open file), then finds the store."""
    with ThreadPoolExecutor(3) as pool:
        pair = list(pool.map(lambda _: built(made, tmp_path), range(3)))
    assert reads.all() == [f"{i:06d}" for i in range(1, 51)]
    assert [len(data.split("val")) for data in pair] == [12, 12, 12] and len(list(tmp_path.iterdir())) == 1


def test_a_folder_of_something_else_is_refused_before_anything_is_decoded(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.celeba.decode_images", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(UserError, match=r"holds '.*', which is no part of a packed store"):
        CelebA(store=str(made), root=str(made)).prepare()


# ------------------------------------------------------------------------------------------------------------ bad input


def _line(file: str, number: int, change: Callable[[str], str | None]) -> Callable[[Path], None]:
    """Change (or, with None, remove) a line of a table."""

    def spoil(root: Path) -> None:
        lines = (root / file).read_text().splitlines()
        changed = change(lines[number])
        lines[number : number + 1] = [] if changed is None else [changed]
        (root / file).write_text("\n".join(lines) + "\n")

    return spoil


def _texts(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        names = [f"{i:06d}.jpg" for i in range(1, 51)]
        change(pd.DataFrame({"image_id": names, "text": ["*" * 256] * 50})).to_csv(root / TEXTS, index=False)

    return spoil


def _no_blond(root: Path) -> None:
    table = attributes(root)
    table["Blond_Hair"] = -1
    table.to_csv(root / "list_attr_celeba.csv")


def _announce(root: Path) -> None:
    table = attributes(root)
    rows = [f"{name} " + " ".join(map(str, row)) for name, row in zip(table.index, table.to_numpy())]
    (root / "list_attr_celeba.csv").unlink()
    (root / "list_attr_celeba.txt").write_text("\n".join(["51", " ".join(table.columns), *rows]))


def _unreadable(root: Path) -> None:
    file = root / "img_align_celeba/000033.jpg"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[: len(content) // 2])


ATTRIBUTES, PARTITION = "list_attr_celeba.csv", "list_eval_partition.csv"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            _unreadable,
            r"1 of 12 images of split 'val' cannot be read: .*000033\.jpg \(.*truncated.*\); restore these files",
        ),
        (
            lambda r: (r / "img_align_celeba/000007.jpg").unlink(),
            r"align_celeba lacks 000007\.jpg, which .* \(1 such",
        ),
        (_line(ATTRIBUTES, 0, lambda s: s.replace("Blond_Hair", "Hair")), r"has no column 'Blond_Hair' \(it has 5_o_C"),
        (
            _line(ATTRIBUTES, 3, lambda s: s[:-2] + "2"),
            r"row 3 \(000003\.jpg\) holds .* 'Young', expected -1 or 1",
        ),
        (
            _line(ATTRIBUTES, 3, lambda s: s + "x"),
            r"row 3 \(000003\.jpg\) holds '-?1x' .* expected a whole number",
        ),
        (_line(ATTRIBUTES, 3, lambda s: s.rsplit(",", 1)[0]), r"row 3 \(000003\.jpg\) holds .* in column 'Young'"),
        (_line(ATTRIBUTES, 3, lambda s: s.replace("3.jpg", "2.jpg")), r"list_attr_celeba\.csv lists 000002\.jpg twice"),
        (_line(ATTRIBUTES, 9, lambda s: None), r"attr_celeba\.csv lacks 000009\.jpg, which list_eval.* 49 rows and 50"),
        (_line(PARTITION, 9, lambda s: None), r"partition\.csv lacks 000009\.jpg, which list_attr.* 49 rows and 50"),
        (_line(PARTITION, 9, lambda s: s[:-1] + "3"), r"row 9 \(000009\.jpg\) holds 3, expected 0 \(train\), 1 .*or 2"),
        (_line(PARTITION, 0, lambda s: s + ",more"), r"has 2 columns besides|holds nan|holds ''"),
        (lambda r: (r / PARTITION).write_text(""), r"list_eval_partition\.csv cannot be read as a table .*again"),
        (lambda r: (r / PARTITION).unlink(), r"no list_eval_partition\.csv or list_eval_partition\.txt in .*CelebA"),
        (_announce, r"list_attr_celeba\.txt announces 51 rows and holds 50"),
        (_no_blond, r"no image of class 1 in split 'train'"),
        (
            _texts(lambda t: t.replace("*" * 256, "*" * 255)),
            r"of 000001\.jpg has 255 characters, expected 256 \(50",
        ),
        (_texts(lambda t: t.replace("*" * 256, "É" + "*" * 255)), r"text 1 holds 'É' at place 1, which is none of the"),
        (_texts(lambda t: t.rename(columns={"text": "words"})), r"has no column 'text' \(only image_id, words\)"),
        (_texts(lambda t: t.iloc[1:]), r"celeba\.csv lacks 000001\.jpg \(1 such images\): restore or remove it"),
        (lambda r: (r / "alphabet.json").write_text('["a"]'), r"is not the published alphabet of 71 characters"),
    ],
)
def test_bad_files_are_named_with_their_mend(
    root: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(root)
    with pytest.raises(UserError, match=message) as error:
        built(root, tmp_path)
    assert "\n" not in str(error.value) and not (tmp_path / "store").exists()


def test_nothing_found_names_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no CelebA: looked for .*/nowhere/img_align_celeba: .*dataset\.demo=true"):
        built(tmp_path / "nowhere", tmp_path)
    with pytest.raises(UserError, match=r"looked for dataset\.root \(null\)"):
        CelebA(store=str(tmp_path / "store")).prepare()


# --------------------------------------------------------------------------------------------------------- the stand-in


def test_the_stand_in_is_what_it_promises(tmp_path: Path) -> None:
    """600 faces with the official attributes, blond hair about 25 % and visible; text without the word less sure."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    root = str(tmp_path / "CelebA-demo")
    make_celeba(tmp_path / "CelebA-demo")
    data = CelebA(store=str(tmp_path / "store"), root=root, demo=True, drop_target_attribute=True)
    data.prepare()
    assert [len(data.split(s)) for s in SPLITS] == [420, 80, 100]
    table = attributes(tmp_path / "CelebA-demo")
    assert list(table.columns) == list(CELEBA_ATTRIBUTES) and set(np.unique(table)) == {-1, 1}
    assert 0.18 < (table["Blond_Hair"] == 1).mean() < 0.32
    with Image.open(tmp_path / "CelebA-demo/img_align_celeba/000600.jpg") as image:
        assert image.size == (178, 218)
    words = [a.replace("_", " ").lower() for a in CELEBA_ATTRIBUTES if a != "Blond_Hair"]
    scores = {}
    for name in ("img", "text"):
        parts = []
        for split in ("train", "test"):
            packed = data.split(split)
            if name == "img":
                x = torch.nn.functional.avg_pool2d(packed.read("img").float() / 255, 4).flatten(1).numpy()
            else:
                x = np.array([[word in text for word in words] for text in decode(packed.read("text"))])
            parts.append((x, packed.read("target").numpy()))
        model = LogisticRegression(C=0.1, max_iter=500).fit(*parts[0])
        scores[name] = roc_auc_score(parts[1][1], model.predict_proba(parts[1][0])[:, 1])
    assert min(scores.values()) > 0.7 and max(scores.values()) < 0.999, scores
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        make_celeba(tmp_path / name, seed=seed, counts=(3, 1, 1))
    one, two, other = (
        b"".join(f.read_bytes() for f in sorted((tmp_path / n).rglob("*.*"))) for n in ("one", "two", "other")
    )
    assert one == two != other

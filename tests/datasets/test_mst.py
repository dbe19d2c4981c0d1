"""MNIST-SVHN-Text: pairs, sources, splits, bad input (docs/reference/datasets.md §2, §13.2, §14.6)."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.demo.folders import demo_folder, ensure_demo
from datasets.demo.mst import make_mst, write_mat
from datasets.mst import MST, pair_by_class
from datasets.readers.mnist import mnist_files, read_mnist
from datasets.readers.mst_files import photo_files, read_mat, read_mnist_pt
from datasets.readers.text import DIGIT_WORDS, decode
from tests.makers import make_mnist_idx, write_idx
from utils.errors import UserError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
SPLITS = ("train", "val", "test")
# Images of each digit, 0 to 9, in the official files.
MNIST_TRAIN = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
MNIST_TEST = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
SVHN_TRAIN = [4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659]
SVHN_TEST = [1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595]


def shuffled(counts: list[int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(10), counts))


def coded_numbers(n: int) -> np.ndarray:
    """Images (n, 3, 32, 32) that tell their number (first two pixels) and their axes (the others)."""
    images = np.zeros((n, 3, 32, 32), dtype=np.uint8)
    images[:, 0] = np.arange(32)[:, None] * 2
    images[:, 1] = np.arange(32) * 3
    images[:, 2, 0, 0], images[:, 2, 0, 1] = np.arange(n) // 256, np.arange(n) % 256
    return images


def make_raw(folder: Path, n_train: int = 100, n_test: int = 60) -> dict[str, str]:
    """MNIST and SVHN as they are downloaded; the house numbers are coded."""
    make_mnist_idx(folder / "mnist", n_train, n_test)
    (folder / "svhn").mkdir()
    for part, n in (("train", n_train + 30), ("test", n_test + 20)):
        write_mat(folder / f"svhn/{part}_32x32.mat", coded_numbers(n), np.arange(n) % 10)
    return {"mnist": str(folder / "mnist"), "svhn": str(folder / "svhn")}


def numbers(images: torch.Tensor) -> np.ndarray:
    """Which of the coded images these are."""
    return images[:, 2, 0, 0].numpy().astype(int) * 256 + images[:, 2, 0, 1].numpy()


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_raw(tmp_path_factory.mktemp("raw"))


def built(folder: Path, **settings: object) -> MST:
    data = MST(store=str(folder / "store"), **settings)  # type: ignore[arg-type]
    data.prepare()
    return data


# ---------------------------------------------------------------------------------------------------------------- pairs


def test_the_published_number_of_pairs() -> None:
    """Σ min of the class counts is 56,068 and 10,000, twenty times over (docs/reference/datasets.md §2.3, §14.6)."""
    for mnist, svhn, expected in ((MNIST_TRAIN, SVHN_TRAIN, 1_121_360), (MNIST_TEST, SVHN_TEST, 200_000)):
        assert sum(map(min, mnist, svhn)) * 20 == expected
        labels_a, labels_b = shuffled(mnist), shuffled(svhn, 1)
        a, b = pair_by_class(labels_a, labels_b)
        assert len(a) == len(b) == expected
        assert (labels_a[a] == labels_b[b]).all() and (np.diff(labels_a[a]) >= 0).all()
        assert set(np.bincount(a, minlength=len(labels_a)).tolist()) == {0, 20} - ({0} if expected < 10**6 else set())


def test_pairing_equals_the_description_step_by_step() -> None:
    """Sorted labels, one seeded stream of torch permutations, first of one side and then of the other
    (docs/reference/datasets.md §2.3).
    """
    rng = np.random.default_rng(0)
    labels_a, labels_b = torch.from_numpy(rng.integers(0, 10, 90)), torch.from_numpy(rng.integers(0, 10, 120))
    sorted_a, order_a = labels_a.sort(stable=True)
    sorted_b, order_b = labels_b.sort(stable=True)
    state = torch.random.get_rng_state()
    torch.manual_seed(2025)
    expected_a, expected_b = [], []
    for c in range(10):
        a, b = order_a[sorted_a == c], order_b[sorted_b == c]
        n = min(len(a), len(b), 7)
        for _ in range(3):
            expected_a.append(a[:n][torch.randperm(n)])
            expected_b.append(b[:n][torch.randperm(n)])
    torch.random.set_rng_state(state)
    a, b = pair_by_class(labels_a.numpy(), labels_b.numpy(), pairings=3, max_per_class=7)
    assert a.tolist() == torch.cat(expected_a).tolist() and b.tolist() == torch.cat(expected_b).tolist()
    assert np.bincount(labels_a[torch.from_numpy(a)]).max() == 21
    assert not np.array_equal(pair_by_class(labels_a.numpy(), labels_b.numpy(), pairings=3, seed=1)[0], a)


# -------------------------------------------------------------------------------------------------------- the downloads


def test_built_from_the_downloads(raw: dict[str, str], tmp_path: Path) -> None:
    """Counts of every split, and every row of pixels against the files."""
    data = built(tmp_path, **raw, pairings=4)
    assert [len(data.split(s)) for s in SPLITS] == [400, 72, 168]
    meta = data.store.meta()
    assert meta and meta["source"]["kind"] == "mnist+svhn" and meta["class_counts"]["test"]["7"] in (16, 17)
    files = mnist_files(Path(raw["mnist"]))
    for split in SPLITS:
        part = "train" if split == "train" else "test"
        images, labels = read_mnist(files, part)
        target = data.split(split).read("target").numpy()
        svhn, mnist = data.split(split).read("svhn"), data.split(split).read("mnist")
        assert (numbers(svhn) % 10 == target).all(), "the house number has the class"
        assert (svhn[:, :2] == torch.from_numpy(coded_numbers(1)[:, :2])).all(), "channels, rows, columns are in place"
        known = {(image.tobytes(), int(label)) for image, label in zip(images, labels)}
        assert {(image.numpy().tobytes(), int(t)) for image, t in zip(mnist[:, 0], target)} <= known
        assert [t.strip() for t in decode(data.split(split).read("text"))] == [DIGIT_WORDS[t] for t in target]
        different = len({image.numpy().tobytes() for image in mnist})
        assert len(data.split(split).array("mnist")) == different <= len(images), "every image is stored once"
    shares = [np.bincount(data.split(s).read("target")) for s in ("val", "test")]
    assert (np.abs(shares[0] - 0.3 * 24) < 1).all() and (shares[0] + shares[1] == 24).all(), "divided by class"


def test_batches_have_the_published_shapes(raw: dict[str, str], tmp_path: Path) -> None:
    data = built(tmp_path, **raw, pairings=2)
    batch = next(iter(data.loader("test", batch_size=8)))
    assert {k: (tuple(v.shape), v.dtype) for k, v in batch.inputs.items()} == {
        "mnist": ((8, 1, 28, 28), torch.float32),
        "svhn": ((8, 3, 32, 32), torch.float32),
        "text": ((8, 8, 71), torch.float32),
    }
    assert [m.shape for m in data.modalities] == [(1, 28, 28), (3, 32, 32), (8, 71)]
    assert (batch.inputs["text"].sum((1, 2)) == 8).all() and batch.inputs["svhn"].max() <= 1
    for split in ("val", "test"):
        first, again = (torch.cat([b.inputs["text"] for b in data.loader(split)]) for _ in range(2))
        assert torch.equal(first, again), "the text of validation and test never changes"


def test_words_move_from_epoch_to_epoch_in_training_alone(raw: dict[str, str], tmp_path: Path) -> None:
    data = built(tmp_path, **raw, pairings=4, reshuffle_pairs=["text"])
    loader, starts = data.loader("train", train=True, batch_size=400), []
    stored = data.split("train").read("mnist").float() / 255
    for epoch in range(3):
        loader.set_epoch(epoch)
        batch = next(iter(loader))
        order = batch.index.argsort()
        assert torch.equal(batch.inputs["mnist"][order], stored)
        texts = decode(batch.inputs["text"][order])
        assert [t.strip() for t in texts] == [DIGIT_WORDS[t] for t in batch.target[order]]
        starts.append([len(t) - len(t.lstrip()) for t in texts])
    assert np.mean(np.array(starts[0]) == starts[1]) < 0.5
    with pytest.raises(UserError, match=r"dataset\.reshuffle_pairs names 'word', MST has mnist, svhn, text"):
        MST(store=str(tmp_path / "s"), reshuffle_pairs=["word"])
    assert MST(store=str(tmp_path / "s"), reshuffle_pairs="text").reshuffle_pairs == ["text"]


def test_seeds_decide_what_they_say(raw: dict[str, str], tmp_path: Path) -> None:
    base = built(tmp_path / "base", **raw, pairings=2)

    def same(other: MST, split: str, name: str) -> bool:
        one, two = base.split(split).read(name), other.split(split).read(name)
        return one.shape == two.shape and torch.equal(one, two)

    again = built(tmp_path / "again", **raw, pairings=2)
    assert all(same(again, s, n) for s in SPLITS for n in ("mnist", "svhn", "text", "target"))
    pairs = built(tmp_path / "pairs", **raw, pairings=2, pair_seed=1)
    assert same(pairs, "train", "text") and not same(pairs, "train", "svhn")
    split = built(tmp_path / "split", **raw, pairings=2, split_seed=1)
    assert same(split, "train", "svhn") and not same(split, "val", "svhn")
    text = built(tmp_path / "text", **raw, pairings=2, text_seed=1)
    assert same(text, "train", "svhn") and not same(text, "train", "text") and not same(text, "test", "text")


@pytest.mark.parametrize("disjoint", [False, True])
def test_disjoint_instances(raw: dict[str, str], tmp_path: Path, disjoint: bool) -> None:
    data = built(tmp_path, **raw, pairings=20, disjoint_instances=disjoint)
    shown = [set(numbers(data.split(s).read("svhn")).tolist()) for s in ("val", "test")]
    pictures = [{x.numpy().tobytes() for x in data.split(s).read("mnist")} for s in ("val", "test")]
    assert bool(shown[0] & shown[1]) is bool(pictures[0] & pictures[1]) is not disjoint
    assert all(set(data.split(s).read("target").tolist()) == set(range(10)) for s in ("val", "test"))
    # 60 test images by class: 18 and 42 of MNIST; the published share of pairs, 30 and 70 in a hundred, either way.
    assert [len(data.split(s)) for s in ("val", "test")] == [360, 840]


def test_the_store_is_made_again_when_a_file_or_setting_changes(tmp_path: Path) -> None:
    raw = make_raw(tmp_path)
    data = built(tmp_path, **raw, pairings=1)
    stamp = (data.store.folder / "meta.json").stat().st_mtime_ns
    data.prepare()
    assert (data.store.folder / "meta.json").stat().st_mtime_ns == stamp
    write_mat(Path(raw["svhn"]) / "train_32x32.mat", 255 - coded_numbers(130), np.arange(130) % 10)
    data.prepare()
    assert data.split("train").read("svhn")[0, 0, 0, 0] == 255
    assert len(built(tmp_path, **raw, pairings=2).split("train")) == 200


# ---------------------------------------------------------------------------------------------------------- photographs


def make_photos(folder: Path, per_class: int = 10) -> Path:
    rng = np.random.default_rng(0)
    for digit in range(10):
        (folder / str(digit)).mkdir(parents=True)
        for i in range(per_class):
            picture = np.full((40, 40, 3), (20 * digit, 10 * i, 128), dtype=np.uint8)
            suffix = ("JPG", "png")[int(rng.integers(2))]
            Image.fromarray(picture).save(folder / f"{digit}/{i}.{suffix}", quality=95)
    (folder / "0" / "._0.JPG").touch()
    (folder / "0" / "notes.txt").touch()
    return folder


def test_photographs_stand_in_for_house_numbers(raw: dict[str, str], tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "photos")
    data = built(tmp_path, mnist=raw["mnist"], svhn=str(folder), pairings=3)
    # 8 and 2 photographs of each class meet 10 and 6 digits.
    assert [len(data.split(s)) for s in SPLITS] == [240, 18, 42]
    colours = []
    for split in SPLITS:
        svhn, target = data.split(split).read("svhn").float(), data.split(split).read("target")
        assert svhn.shape[1:] == (3, 32, 32) and (svhn.mean((2, 3))[:, 0] - 20 * target).abs().max() < 4
        assert (svhn.mean((2, 3))[:, 2] - 128).abs().max() < 4
        colours.append({(int(t), round(float(c) / 10)) for t, c in zip(target, svhn.mean((2, 3))[:, 1])})
    assert not colours[0] & (colours[1] | colours[2]), "no photograph is in both parts"
    assert len(colours[0]) == 80 and len(colours[1] | colours[2]) == 20


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: shutil.rmtree(f / "7"), r"photos/7 holds no photograph \(\.jpg or \.png\) of the digit 7"),
        (
            lambda f: (f / "3/4.png").write_bytes(b"no image"),
            r"1 of 50 photographs cannot be read: .*3/4\.png \(.*; restore these",
        ),
        (lambda f: [shutil.rmtree(f / str(d)) for d in range(10)], r"neither train_32x32\.mat and test_32x32\.mat nor"),
    ],
)
def test_bad_photographs_are_named(
    raw: dict[str, str], tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    folder = make_photos(tmp_path / "photos", per_class=5)
    spoil(folder)
    with pytest.raises(UserError, match=message):
        built(tmp_path, mnist=raw["mnist"], svhn=str(folder))


@pytest.mark.skipif(
    not ((SHARED / "sign_digits").is_dir() and (SHARED / "mnist").is_dir()),
    reason=f"no photographs of signed digits or no MNIST in {SHARED}",
)
def test_real_mnist_with_real_photographs(tmp_path: Path) -> None:
    """2,062 photographs of 204 to 208 a class; every class has far more handwritten digits."""
    photos = photo_files(SHARED / "sign_digits")
    counts = Counter(digit for digit, _ in photos)
    assert len(photos) == 2062 and {204, 208} == {min(counts.values()), max(counts.values())}
    data = built(tmp_path, mnist=str(SHARED / "mnist"), svhn=str(SHARED / "sign_digits"))
    n_test = round(0.2 * 2062)
    assert len(data.split("train")) == 20 * (2062 - n_test)
    assert len(data.split("val")) + len(data.split("test")) == 20 * n_test
    assert len(data.split("val")) == round(0.3 * 20 * n_test)
    row = next(i for i, name in enumerate(data.split("test").read("target").tolist()) if name == 6)
    small = np.asarray(Image.open(photos[0][1]).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC))
    train = data.split("train").read("svhn")
    tests = torch.cat([data.split(s).read("svhn") for s in ("val", "test")])
    actual = [(x == torch.from_numpy(small.transpose(2, 0, 1).copy())).flatten(1).all(1).any() for x in (train, tests)]
    assert sum(map(bool, actual)) == 1 and tests[row].shape == (3, 32, 32)


# ------------------------------------------------------------------------------------------------- the prepared folders


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """The original's folders, with coded house numbers: 80 / 40 / 40 digits, 90 / 50 / 50 numbers, no pairs."""
    root = tmp_path / "MNIST_SVHN_TEXT"
    (root / "MNIST/processed").mkdir(parents=True)
    (root / "SVHN").mkdir()
    rng = np.random.default_rng(0)
    for split, n in (("train", 80), ("val", 40), ("test", 40)):
        images = torch.from_numpy(rng.integers(0, 256, (n, 28, 28), dtype=np.uint8))
        torch.save((images, torch.arange(n) % 10), root / f"MNIST/processed/{split}{'ing' * (split == 'train')}.pt")
        write_mat(root / f"SVHN/{split}_32x32.mat", coded_numbers(n + 10), np.arange(n + 10) % 10)
    shutil.copy(root / "MNIST/processed/test.pt", root / "MNIST/processed/val.pt")
    return root


def write_pairs(root: Path, split: str, mnist: list[int], svhn: list[int]) -> None:
    folder = root / "MNIST_SVHN/processed"
    folder.mkdir(parents=True, exist_ok=True)
    for side, rows in (("mnist", mnist), ("svhn", svhn)):
        torch.save(torch.tensor(rows), folder / f"{split}-ms-{side}-idx.pt")


def test_ten_stands_for_zero_and_axes_are_turned(prepared: Path) -> None:
    """Against scipy's own view of the file: X (32, 32, 3, N), y in 1 to 10 (docs/reference/datasets.md §2.2)."""
    from scipy.io import loadmat

    file = prepared / "SVHN/train_32x32.mat"
    content = loadmat(file)
    assert content["X"].shape == (32, 32, 3, 90) and set(content["y"].ravel()) == set(range(1, 11))
    images, labels = read_mat(file)
    for row in (0, 9, 57):
        assert np.array_equal(images[row].transpose(1, 2, 0), content["X"][..., row])
        assert labels[row] == content["y"][row, 0] % 10
    assert images.shape == (90, 3, 32, 32) and labels.dtype == np.int64


def test_the_published_pairs_are_taken_as_they_are(prepared: Path, tmp_path: Path) -> None:
    pairs = {"train": ([3, 13, 70, 3], [83, 3, 10, 3]), "val": ([1, 11], [1, 41]), "test": ([0, 39, 20], [40, 9, 0])}
    for split, (a, b) in pairs.items():
        write_pairs(prepared, split, a, b)
    spoilt = torch.load(prepared / "MNIST/processed/training.pt", weights_only=True)
    with pytest.raises(UserError, match="no image of class 1, 2, 4, 5, 6, 7, 8, 9 in split 'train'"):
        built(tmp_path, root=str(prepared))
    pairs["train"] = ([*range(80), 3], [*range(80), 83])
    write_pairs(prepared, "train", *pairs["train"])
    data = built(tmp_path, root=str(prepared))
    for split, (a, b) in pairs.items():
        source = torch.load(prepared / f"MNIST/processed/{split}{'ing' * (split == 'train')}.pt", weights_only=True)
        assert torch.equal(data.split(split).read("mnist")[:, 0], source[0][a])
        assert torch.equal(data.split(split).read("target"), source[1][a])
        assert numbers(data.split(split).read("svhn")).tolist() == b
    assert torch.equal(data.split("train").read("mnist")[80, 0], spoilt[0][3])


def test_without_pairs_they_are_made(prepared: Path, tmp_path: Path) -> None:
    data = built(tmp_path, root=str(prepared), pairings=5)
    # Eight of each digit meet nine numbers; four meet five.
    assert [len(data.split(s)) for s in SPLITS] == [400, 60, 140]
    _, labels = read_mnist_pt(prepared / "MNIST/processed/training.pt")
    a, b = pair_by_class(labels, read_mat(prepared / "SVHN/train_32x32.mat")[1], pairings=5)
    assert numbers(data.split("train").read("svhn")).tolist() == b.tolist()
    assert data.split("train").read("target").tolist() == labels[a].tolist()
    (prepared / "MNIST/processed/val.pt").unlink()
    (prepared / "SVHN/val_32x32.mat").unlink()
    again = built(tmp_path / "again", root=str(prepared), pairings=5)
    for split in SPLITS:  # validation images are copies of the test images
        assert torch.equal(again.split(split).read("svhn"), data.split(split).read("svhn"))


def _pt(content: object) -> Callable[[Path], object]:
    return lambda root: torch.save(content, root / "MNIST/processed/training.pt")


def _mat(**content: np.ndarray) -> Callable[[Path], object]:
    from scipy.io import savemat

    return lambda root: savemat(root / "SVHN/train_32x32.mat", content)


X, Y = np.zeros((32, 32, 3, 4), dtype=np.uint8), np.array([[1], [2], [10], [4]], dtype=np.uint8)
IMAGES = torch.zeros(4, 28, 28, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_mat(X=X, y=np.where(Y == 10, 0, Y)), r"train_32x32\.mat holds the label 0 in row 3, expected 1 to 10"),
        (_mat(X=X, y=Y + 1), r"holds the label 11 in row 3"),
        (_mat(X=X, y=Y[:3]), r"holds 4 images but 3 labels"),
        (_mat(X=X.astype(float), y=Y), r"holds X \(32, 32, 3, 4\) float64, expected \(32, 32, 3, N\) uint8"),
        (_mat(X=X), r"has no variable 'y': take the cropped digits"),
        (lambda r: (r / "SVHN/train_32x32.mat").write_bytes(b"x" * 300), r"cannot be read as a MATLAB file .*again"),
        (
            lambda r: os.truncate(r / "SVHN/train_32x32.mat", 2000),
            r"train_32x32\.mat cannot be read as a MATLAB file .*download it again",
        ),
        (_pt((IMAGES, torch.tensor([0, 1, 10, 3]))), r"training\.pt holds the label 10 in row 3, expected 0 to 9"),
        (_pt((IMAGES, torch.tensor([0, 1, 2]))), r"labels \(3,\), expected \(N, 28, 28\) uint8 and \(N,\)"),
        (_pt((IMAGES.float(), torch.arange(4))), r"holds \(4, 28, 28\) float32"),
        (_pt({"images": IMAGES}), r"training\.pt holds no pair of tensors"),
        (_pt((IMAGES, Path("x"))), r"training\.pt cannot be read \(UnpicklingError\): restore or remove it"),
        (
            lambda r: (r / "MNIST/processed/training.pt").unlink(),
            r"train_32x32\.mat exists but .*training\.pt does not",
        ),
        (lambda r: (r / "alphabet.json").write_text("[]"), r"alphabet\.json is not the published alphabet"),
        (
            lambda r: write_pairs(r, "train", [1, 2], [1, 3]),
            r"of unlike classes \(2 with 3 in row 2, 1 such",
        ),
        (
            lambda r: write_pairs(r, "train", [1, 80], [1, 0]),
            r"ms-mnist-idx\.pt names the item 80 in row 2, there",
        ),
        (lambda r: write_pairs(r, "train", [1, 2, 3], [1, 2]), r"has 3 rows but .*train-ms-svhn-idx\.pt 2"),
        (lambda r: write_pairs(r, "train", [0.5], [1]), r"train-ms-mnist-idx\.pt holds no vector of row numbers"),
        (lambda r: write_pairs(r, "test", [1], [1]), r"has test-ms-mnist-idx\.pt but no val-ms-mnist"),
        (
            lambda r: (
                write_pairs(r, "train", [1], [1]),
                (r / "MNIST_SVHN/processed/train-ms-svhn-idx.pt").unlink(),
            ),
            r"train-ms-svhn-idx\.pt does not exist, its partner does",
        ),
        (lambda r: [shutil.rmtree(r / "MNIST"), *(f.unlink() for f in r.glob("SVHN/*"))], r"has no MNIST/processed"),
    ],
)
def test_bad_prepared_folders_are_named_with_their_mend(
    prepared: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(prepared)
    with pytest.raises(UserError, match=message) as error:
        built(tmp_path, root=str(prepared), pairings=2)
    assert "\n" not in str(error.value) and not (tmp_path / "store").exists()


# ------------------------------------------------------------------------------------------------- nothing there, demo


def test_bad_downloads_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no MST: looked for .*nowhere/MNIST/processed .*dataset\.demo=true"):
        built(tmp_path, root=str(tmp_path / "nowhere"))
    for key in ("pairings", "max_per_class"):
        with pytest.raises(UserError, match=rf"dataset\.{key}=0: it must be 1 or more"):
            MST(store="s", **{key: 0})
    raw = make_raw(tmp_path)
    write_idx(Path(raw["mnist"]) / "train-labels-idx1-ubyte", np.zeros(99, dtype=np.uint8), gz=True)
    with pytest.raises(UserError, match=r"holds 100 images but .*train-labels-idx1-ubyte\.gz 99"):
        built(tmp_path, **raw)
    write_idx(Path(raw["mnist"]) / "train-labels-idx1-ubyte", np.arange(100, dtype=np.uint8) % 9, gz=True)
    with pytest.raises(UserError, match=r"no image of class 9 in split 'train' \(pairs of MNIST and SVHN\)"):
        built(tmp_path, **raw)
    (Path(raw["svhn"]) / "test_32x32.mat").unlink()
    with pytest.raises(UserError, match=r"test_32x32\.mat does not exist: download both files"):
        built(tmp_path, **raw)


def test_download_fetches_what_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, asked = make_raw(tmp_path / "there"), []

    def fetch(root: str, split: str, download: bool) -> None:
        asked.append(split)
        Path(root).mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(raw["svhn"]) / f"{split}_32x32.mat", root)

    monkeypatch.setattr("torchvision.datasets.SVHN", fetch)
    data = built(tmp_path, root=str(tmp_path / "root"), mnist=raw["mnist"], download=True, pairings=1)
    assert asked == ["train", "test"] and len(data.split("train")) == 100

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no route")

    monkeypatch.setattr("torchvision.datasets.SVHN", fail)
    with pytest.raises(UserError, match=r"could not be downloaded into .*no route.*dataset\.mnist and dataset\.svhn"):
        built(tmp_path, root=str(tmp_path / "other"), mnist=raw["mnist"], download=True)


def test_the_stand_in_is_made_once_and_the_same_each_time(tmp_path: Path) -> None:
    root = ensure_demo(tmp_path / "MST-demo", make_mst)
    data = built(tmp_path, root=str(root), demo=True, pairings=2)
    counts = [len(data.split(s)) for s in SPLITS]
    assert counts[0] > 2000 and counts[1] == round(0.3 * (counts[1] + counts[2]))
    assert not (tmp_path / "MST").exists()
    stamps = {f: f.stat().st_mtime_ns for f in (tmp_path / "MST-demo").rglob("*")}
    assert ensure_demo(tmp_path / "MST-demo", make_mst) == root
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "MST-demo").rglob("*")} == stamps
    make_mst(tmp_path / "one", per_class=8)
    make_mst(tmp_path / "two", per_class=8)
    make_mst(tmp_path / "other", seed=1, per_class=8)
    one, two, other = (read_mat(tmp_path / n / "SVHN/train_32x32.mat") for n in ("one", "two", "other"))
    assert np.array_equal(one[0], two[0]) and np.array_equal(one[1], two[1]) and not np.array_equal(one[0], other[0])
    (tmp_path / "MST-demo" / "demo.json").unlink()
    with pytest.raises(UserError, match=r"MST-demo holds no demo data made by dataset\.demo=true: move it away"):
        ensure_demo(tmp_path / "MST-demo", make_mst)
    with pytest.raises(UserError, match=r"dataset\.root, which is null"):
        demo_folder(None)
    assert demo_folder(tmp_path / "MST") == tmp_path / "MST-demo"


def test_every_modality_of_the_stand_in_tells_the_digit(tmp_path: Path) -> None:
    """Each alone, far above the chance of 10 %, and not all alike (docs/reference/datasets.md §13.9)."""
    from sklearn.neighbors import KNeighborsClassifier

    root = ensure_demo(tmp_path / "MST-demo", make_mst)
    data = built(tmp_path, root=str(root), demo=True, pairings=1, disjoint_instances=True)
    scores = {}
    for name in data.modality_names:
        parts = []
        for split in ("train", "test"):
            batch = data.rows(split, np.arange(len(data.split(split))))
            x = batch.inputs[name]
            if name == "svhn":  # ink and ground have random colours: the distance from the ground's, at the digit
                x = (x - x[:, :, :2].mean((2, 3), keepdim=True)).abs().mean(1)[:, 2:30, 6:26]
                x = x / x.flatten(1).norm(dim=1)[:, None, None]
            parts.append((x.flatten(1).numpy(), batch.target.numpy()))
        scores[name] = KNeighborsClassifier(3).fit(*parts[0]).score(*parts[1])
    assert scores["text"] > 0.99 and scores["mnist"] > 0.9 and 0.5 < scores["svhn"] < scores["mnist"] - 0.02, scores

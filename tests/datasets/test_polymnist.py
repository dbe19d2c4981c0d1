"""PolyMNIST and Digits: the recipe, the two sources, bad files, the packed store, and the loader over it."""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import os
import shutil
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.batch import Modality
from datasets.digits import SIZES, Digits, load_digit_images
from datasets.loader import PackedLoader
from datasets.missingness import Complete, parse_scenario
from datasets.polymnist import PolyMNIST, scan_layout
from datasets.polymnist_build import PHOTOGRAPHS, VIEWS, build_tuples, deform, load_backgrounds, load_photographs
from datasets.polymnist_export import write_masks, write_official_layout
from datasets.readers.mnist import mnist_files, read_idx, read_mnist
from datasets.splits import stratified_split
from datasets.storage import PackedStore
from tests.makers import make_mnist_idx, make_polymnist_folder, write_idx
from tests.simulated_device import DEVICE, SimulatedDevice
from utils.errors import UserError
from utils.transfer import on_host

REAL_MNIST = Path(os.environ.get("MNIST_DIR", Path(__file__).parents[2].parent / "shared" / "data" / "mnist"))
needs_mnist = pytest.mark.skipif(
    not REAL_MNIST.is_dir(),
    reason=f"the real MNIST is not at {REAL_MNIST}: set MNIST_DIR to a folder with its idx files",
)


def position_coded(height: int, width: int) -> np.ndarray:
    """A background (height, width, 3) whose red is the column, green the row, blue 20: all below 128."""
    picture = np.full((height, width, 3), 20, dtype=np.uint8)
    picture[..., 0] = np.arange(width)
    picture[..., 1] = np.arange(height)[:, None]
    return picture


CODED = [position_coded(60 + 5 * i, 110 - 5 * i) for i in range(5)]


def take_apart(patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Glyphs (N, 28, 28) bool and corners (N, 2) as x, y of patches (N, 3, 28, 28) cut from position-coded pictures.

    Asserts that each patch is a contiguous crop, inverted on all three channels or on none.
    """
    glyph = patches[:, 0] >= 128
    background = np.where(glyph[:, None], 255 - patches, patches).astype(int)
    x, y = background[:, 0, 0, 0], background[:, 1, 0, 0]
    grid = np.arange(28)
    np.testing.assert_array_equal(background[:, 0], np.broadcast_to(x[:, None, None] + grid, glyph.shape))
    np.testing.assert_array_equal(background[:, 1], np.broadcast_to(y[:, None, None] + grid[:, None], glyph.shape))
    assert (background[:, 2] == 20).all()
    np.testing.assert_array_equal(patches >= 128, np.broadcast_to(glyph[:, None], patches.shape))
    return glyph, np.stack([x, y], axis=1)


def multiset(glyphs: np.ndarray) -> Counter[bytes]:
    return Counter(glyph.tobytes() for glyph in glyphs)


def random_digits(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, size=(n, 28, 28), dtype=np.uint8), rng.permutation(np.arange(n) % 10)


def save_pictures(folder: Path, pictures: list[np.ndarray]) -> str:
    folder.mkdir(parents=True)
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{i}.png")
    return str(folder)


def tensors(data: PolyMNIST, split: str) -> dict[str, np.ndarray]:
    packed = data.split(split)
    return {key: packed.read(key).numpy() for key in (*VIEWS, "target")} | {"name": np.array(packed.names())}


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mnist_idx(tmp_path_factory.mktemp("mnist"), n_train=200, n_test=100)


@pytest.fixture(scope="module")
def coded_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_pictures(tmp_path_factory.mktemp("pictures") / "coded", CODED)


@pytest.fixture(scope="module")
def built(mnist: Path, coded_folder: str, tmp_path_factory: pytest.TempPathFactory) -> PolyMNIST:
    store = tmp_path_factory.mktemp("built") / "store"
    data = PolyMNIST(store=str(store), mnist=str(mnist), backgrounds=coded_folder)
    data.prepare()
    return data


class TestRecipe:
    def test_equals_a_loop_over_single_pixels(self):
        """The recipe once more, pixel by pixel in floating point, with the rounding of the original file writer."""
        images, labels = random_digits(23)
        expected: dict[str, list[np.ndarray]] = {view: [] for view in VIEWS}
        names = []
        rng = np.random.default_rng(5)
        for digit in range(10):
            members = [j for j in range(23) if labels[j] == digit]
            names += [f"{i}.{digit}" for i in range(len(members))]
            for view, background in zip(VIEWS, CODED):
                height, width = background.shape[:2]
                order = rng.permutation(members)
                corners = rng.integers(0, [width - 28, height - 28], size=(len(members), 2))
                for j, (x0, y0) in zip(order, corners):
                    patch = np.zeros((3, 28, 28), dtype=np.uint8)
                    for c in range(3):
                        for y in range(28):
                            for x in range(28):
                                value = background[y0 + y, x0 + x, c] / 255
                                if images[j, y, x] > 128:
                                    value = 1 - value
                                patch[c, y, x] = int(min(max(value * 255 + 0.5, 0), 255))
                    expected[view].append(patch)
        arrays, target, got_names = build_tuples(images, labels, CODED, np.random.default_rng(5))
        for view in VIEWS:
            np.testing.assert_array_equal(arrays[view], np.stack(expected[view]), err_msg=view)
        assert list(got_names) == names
        assert target.tolist() == [int(name.split(".")[1]) for name in names]

    def test_each_item_once_in_each_view(self):
        images, labels = random_digits(120)
        arrays, target, _ = build_tuples(images, labels, CODED, np.random.default_rng(0))
        for view in VIEWS:
            assert arrays[view].dtype == np.uint8
            glyphs, _ = take_apart(arrays[view])
            for digit in range(10):
                assert multiset(glyphs[target == digit]) == multiset(images[labels == digit] > 128)

    def test_the_threshold_is_strictly_above_128(self):
        images = np.full((10, 28, 28), 128, dtype=np.uint8)
        images[:, 3, 4] = 129
        arrays, _, _ = build_tuples(images, np.arange(10), CODED, np.random.default_rng(0))
        glyphs, _ = take_apart(arrays["m0"])
        assert glyphs[:, 3, 4].all()
        assert glyphs.sum() == 10

    def test_views_share_nothing_but_the_label(self):
        images, labels = random_digits(300)
        arrays, target, _ = build_tuples(images, labels, CODED, np.random.default_rng(0))
        item = {glyph.tobytes(): j for j, glyph in enumerate(images > 128)}
        rows = np.array([[item[g.tobytes()] for g in take_apart(arrays[view])[0]] for view in VIEWS])
        assert (labels[rows] == target).all()
        for a in range(5):
            for b in range(a):
                # 300 draws at 1/30: ten are expected to agree by chance.
                assert (rows[a] == rows[b]).sum() < 30

    def test_the_upper_bound_of_the_corner_is_exclusive(self):
        images, labels = random_digits(200)
        backgrounds = [position_coded(29, 30), position_coded(31, 29), *CODED[2:]]
        arrays, _, _ = build_tuples(images, labels, backgrounds, np.random.default_rng(0))
        for view, xs, ys in (("m0", {0, 1}, {0}), ("m1", {0}, {0, 1, 2})):
            _, corners = take_apart(arrays[view])
            assert set(corners[:, 0].tolist()) == xs
            assert set(corners[:, 1].tolist()) == ys

    def test_contrast_moves_pixels_of_the_digit_a_part_of_the_way(self):
        images, labels = random_digits(40)
        contrast = [1.0, 0.5, 0.25, 0.7, 0.01]
        plain, _, _ = build_tuples(images, labels, CODED, np.random.default_rng(3))
        arrays, _, _ = build_tuples(images, labels, CODED, np.random.default_rng(3), contrast=contrast)
        for view, share in zip(VIEWS, contrast):
            glyph = take_apart(plain[view])[0][:, None]
            photograph = np.where(glyph, 255 - plain[view], plain[view]).astype(float)
            wanted = np.where(glyph, (1 - share) * photograph + share * (255 - photograph), photograph)
            assert np.abs(arrays[view] - wanted).max() <= 0.5
        np.testing.assert_array_equal(arrays["m0"], plain["m0"])

    def test_deformed_views_keep_digits_corners_and_the_other_views(self):
        images, labels = (part[:200] for part in load_digit_images())
        plain, target, _ = build_tuples(images, labels, CODED, np.random.default_rng(3))
        arrays, same, _ = build_tuples(images, labels, CODED, np.random.default_rng(3), deformation=[0, 1, 0, 2, 0])
        np.testing.assert_array_equal(target, same)
        for view, is_deformed in zip(VIEWS, (False, True, False, True, False)):
            (glyph, corners), (changed, kept) = take_apart(plain[view]), take_apart(arrays[view])
            np.testing.assert_array_equal(corners, kept)
            assert (glyph != changed).any() == is_deformed
        share = [(take_apart(plain[v])[0] ^ take_apart(arrays[v])[0]).mean() for v in ("m1", "m3")]
        assert 0 < share[0] < share[1] < 0.3

    def test_the_division_is_stratified(self):
        labels = np.repeat(np.arange(10), np.arange(100, 200, 10))
        val, test = stratified_split(labels, (435, 1015), seed=2025)
        assert sorted([*val, *test]) == list(range(1450))
        assert np.abs(np.bincount(labels[val]) - 0.3 * np.bincount(labels)).max() < 1
        again, _ = stratified_split(labels, (435, 1015), seed=2025)
        other, _ = stratified_split(labels, (435, 1015), seed=1)
        assert (val == again).all()
        assert (val != other).any()

    def test_a_division_that_cannot_be_had_says_so(self):
        with pytest.raises(UserError, match="cannot divide 10 items into parts of 3 and 7"):
            stratified_split(np.arange(10), (3, 7), seed=0)


class TestBuiltFromMnist:
    def test_splits_and_class_counts(self, built: PolyMNIST):
        assert {name: len(built.split(name)) for name in ("train", "val", "test")} == {
            "train": 200,
            "val": 30,
            "test": 70,
        }
        meta = built.store.meta()
        assert meta is not None
        assert meta["counts"] == {"train": 200, "val": 30, "test": 70}
        assert meta["class_counts"]["val"] == {str(digit): 3 for digit in range(10)}
        assert meta["class_counts"]["test"] == {str(digit): 7 for digit in range(10)}
        assert meta["source"]["kind"] == "mnist"
        assert (meta["source"]["build_seed"], meta["source"]["split_seed"]) == (42, 2025)
        assert list(meta["source"]["backgrounds"]) == [f"{i}.png" for i in range(5)]

    def test_rows_are_sorted_and_val_and_test_keep_their_names(self, built: PolyMNIST):
        names = {split: built.split(split).names() for split in ("train", "val", "test")}
        for split, split_names in names.items():
            keys = [(int(digit), int(i)) for i, digit in (name.split(".") for name in split_names)]
            assert keys == sorted(keys)
            assert [digit for digit, _ in keys] == built.split(split).read("target").tolist()
        together = {*names["val"], *names["test"]}
        assert together == {f"{i}.{digit}" for i in range(10) for digit in range(10)}

    def test_every_digit_of_mnist_once_in_each_view(self, built: PolyMNIST, mnist: Path):
        files = mnist_files(mnist)
        for part, splits in (("train", ("train",)), ("test", ("val", "test"))):
            images, _ = read_mnist(files, part)
            for view in VIEWS:
                glyphs = [take_apart(built.split(split).read(view).numpy())[0] for split in splits]
                assert multiset(np.concatenate(glyphs)) == multiset(images > 128)

    def test_the_seed_decides_every_byte(self, built: PolyMNIST, mnist: Path, coded_folder: str, tmp_path: Path):
        same = PolyMNIST(store=str(tmp_path / "same"), mnist=str(mnist), backgrounds=coded_folder)
        other = PolyMNIST(store=str(tmp_path / "other"), mnist=str(mnist), backgrounds=coded_folder, build_seed=43)
        same.prepare()
        other.prepare()
        for file in sorted(built.store.folder.rglob("*")):
            if file.is_file():
                relative = file.relative_to(built.store.folder)
                assert file.read_bytes() == (same.store.folder / relative).read_bytes(), relative
        for view in VIEWS:
            assert (tensors(built, "train")[view] != tensors(other, "train")[view]).any()
            assert (tensors(built, "test")[view] != tensors(other, "test")[view]).any()
        assert built.split("val").names() == other.split("val").names()

    def test_the_split_seed_moves_tuples_between_val_and_test_only(
        self, built: PolyMNIST, mnist: Path, coded_folder: str, tmp_path: Path
    ):
        other = PolyMNIST(store=str(tmp_path / "s"), mnist=str(mnist), backgrounds=coded_folder, split_seed=1)
        other.prepare()
        assert_same(tensors(built, "train"), tensors(other, "train"))
        assert built.split("val").names() != other.split("val").names()

    def test_train_and_test_draw_from_independent_streams(self, coded_folder: str, tmp_path: Path):
        folder = make_mnist_idx(tmp_path / "mnist", n_train=100, n_test=100)
        for content, ndim in (("images", 3), ("labels", 1)):
            shutil.copy(folder / f"train-{content}-idx{ndim}-ubyte.gz", folder / f"t10k-{content}-idx{ndim}-ubyte.gz")
        data = PolyMNIST(store=str(tmp_path / "store"), mnist=str(folder), backgrounds=coded_folder)
        data.prepare()
        test = tensors(data, "test")
        rows = np.flatnonzero(np.isin(tensors(data, "train")["name"], test["name"]))
        assert (tensors(data, "train")["m0"][rows] != test["m0"]).any(axis=(1, 2, 3)).all()

    def test_plain_files_read_as_torchvision_reads_them(self, mnist: Path, tmp_path: Path):
        from torchvision.datasets.mnist import read_image_file, read_label_file

        plain = make_mnist_idx(tmp_path, n_train=200, n_test=100, gz=False)
        for part in ("train", "test"):
            images, labels = read_mnist(mnist_files(plain), part)
            assert (images == read_mnist(mnist_files(mnist), part)[0]).all()
            assert (images == read_image_file(str(mnist_files(plain)[f"{part} images"])).numpy()).all()
            assert (labels == read_label_file(str(mnist_files(plain)[f"{part} labels"])).numpy()).all()

    def test_download_goes_into_root(self, monkeypatch: pytest.MonkeyPatch, coded_folder: str, tmp_path: Path):
        monkeypatch.setattr(
            "torchvision.datasets.MNIST", lambda root, train, download: make_mnist_idx(Path(root) / "MNIST" / "raw")
        )
        root = tmp_path / "root"
        data = PolyMNIST(store=str(tmp_path / "store"), root=str(root), download=True, backgrounds=coded_folder)
        data.prepare()
        assert len(data.split("train")) == 100

    def test_a_failed_download_names_the_way_round(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

        monkeypatch.setattr("torchvision.datasets.MNIST", fail)
        with pytest.raises(UserError, match=r"could not be downloaded.*dataset\.mnist"):
            PolyMNIST(store=str(tmp_path / "store"), root=str(tmp_path), download=True).prepare()


class TestDeformation:
    def test_of_strength_zero_changes_nothing(self):
        images, _ = random_digits(3)
        np.testing.assert_array_equal(deform(images, 0.0, np.random.default_rng(0)), images)

    def test_displacements_have_the_stated_deviation(self):
        """In a ramp, a pixel's value is its column or row: what changes is the displacement in x or y."""
        side = 200
        ramp = np.broadcast_to(np.arange(side, dtype=np.uint8), (40, side, side))
        inner = (slice(None), slice(20, -20), slice(20, -20))
        for picture in (ramp.swapaxes(1, 2), ramp):
            shifts = deform(picture, 3.0, np.random.default_rng(0))[inner].astype(float) - picture[inner]
            assert abs(shifts.std() - 3.0) < 0.15
        neighbours = np.corrcoef(shifts[:, :, 1:].ravel(), shifts[:, :, :-1].ravel())[0, 1]
        assert neighbours > 0.9

    def test_every_image_has_its_own(self):
        images = np.repeat(load_digit_images()[0][:1], 2, axis=0)
        one, other = deform(images, 1.0, np.random.default_rng(0))
        assert (one != other).any()


class TestHardViews:
    @pytest.mark.parametrize(
        "settings",
        [{"contrast": [0.5] * 5}, {"deformation": [1, 0, 0, 0, 0]}, {"photographs": ["brick", *PHOTOGRAPHS[1:]]}],
    )
    def test_a_store_says_how_its_views_were_made(self, settings: dict[str, list], mnist: Path, tmp_path: Path):
        plain = PolyMNIST(store=str(tmp_path / "plain"), mnist=str(mnist))
        hard = PolyMNIST(store=str(tmp_path / "hard"), mnist=str(mnist), **settings)
        assert plain.find_source().signature != hard.find_source().signature

    def test_no_setting_is_the_published_recipe(self, mnist: Path, tmp_path: Path):
        """Also for stores that were packed before there were these settings."""
        source = PolyMNIST(store=str(tmp_path / "store"), mnist=str(mnist)).find_source()
        assert source.about.keys() == {"mnist", "build_seed", "split_seed", "recipe_version", "backgrounds"}
        arguments = {"mnist": str(mnist), "build_seed": 42}
        later = {"photographs": None, "contrast": None, "deformation": None}
        assert PolyMNIST.packing_arguments(arguments | later) == PolyMNIST.packing_arguments(arguments)

    @pytest.mark.parametrize("values", [0.5, [0.5] * 4, [0.5, 0.5, 0.5, 0.5, 1.5], ["a"] * 5, [0.5] * 4 + [0]])
    def test_a_contrast_out_of_range_is_refused(self, values: object, tmp_path: Path):
        with pytest.raises(UserError, match=r"dataset\.contrast=.*give 5 numbers from 0\.01 to 1, one per view"):
            PolyMNIST(store=str(tmp_path), contrast=values)

    def test_the_official_files_are_as_they_are(self, tmp_path: Path):
        make_polymnist_folder(tmp_path / "official", per_class=1)
        for settings in ({"contrast": [0.5] * 5}, {"photographs": list(PHOTOGRAPHS)}):
            data = PolyMNIST(store=str(tmp_path / "store"), root=str(tmp_path / "official"), **settings)
            with pytest.raises(UserError, match=r"official has the official files: set dataset\.root=null"):
                data.find_source()

    def test_harder_views_need_mnist(self, tmp_path: Path):
        with pytest.raises(UserError, match=r"is built from MNIST: set dataset\.mnist to a folder"):
            PolyMNIST(store=str(tmp_path), contrast=[0.5] * 5).find_source()

    def test_photographs_and_a_folder_are_one_too_many(self, tmp_path: Path):
        with pytest.raises(UserError, match="both given: set one of them to null"):
            PolyMNIST(store=str(tmp_path), backgrounds=str(tmp_path), photographs=list(PHOTOGRAPHS))

    def test_unknown_and_repeated_photographs_are_refused(self):
        with pytest.raises(UserError, match="there is no cofee, choose from astronaut, brick"):
            load_photographs(["cofee", *PHOTOGRAPHS[1:]])
        with pytest.raises(UserError, match="has 4 different names: give 5, one per view"):
            load_photographs(["china", "china", *PHOTOGRAPHS[:3]])

    @pytest.mark.parametrize("photographs", ["china", 5, []])
    def test_photographs_are_a_list_of_five_names(self, photographs: object, mnist: Path, tmp_path: Path):
        with pytest.raises(UserError, match=r"dataset\.photographs.* give (a list of )?5"):
            PolyMNIST(store=str(tmp_path), mnist=str(mnist), photographs=photographs).find_source()

    def test_grey_photographs_have_three_channels(self):
        pictures = load_photographs(["brick", "grass", "gravel", "chelsea", "hubble_deep_field"])
        assert all(picture.shape[2:] == (3,) and picture.dtype == np.uint8 for picture in pictures.values())
        assert (pictures["brick"][..., 0] == pictures["brick"][..., 2]).all()


class TestBackgrounds:
    def test_the_bundled_photographs_need_no_network(self, monkeypatch: pytest.MonkeyPatch):
        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("network access")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        pictures = load_photographs(PHOTOGRAPHS)
        assert {name: picture.shape for name, picture in pictures.items()} == {
            "retina": (1411, 1411, 3),
            "coffee": (400, 600, 3),
            "flower": (427, 640, 3),
            "china": (427, 640, 3),
            "immunohistochemistry": (512, 512, 3),
        }
        assert list(pictures) == ["retina", "coffee", "flower", "china", "immunohistochemistry"]
        assert {picture.dtype.name for picture in pictures.values()} == {"uint8"}

    def test_a_folder_gives_its_first_five_by_name_in_rgb(self, tmp_path: Path):
        rng = np.random.default_rng(0)
        for name in ("f", "b", "a", "e", "c", "d"):
            Image.fromarray(rng.integers(0, 256, (40, 50), dtype=np.uint8)).save(tmp_path / f"{name}.png")
        (tmp_path / "readme.txt").write_text("not a picture")
        pictures = load_backgrounds(tmp_path)
        assert list(pictures) == ["a.png", "b.png", "c.png", "d.png", "e.png"]
        grey = np.asarray(Image.open(tmp_path / "a.png"))
        np.testing.assert_array_equal(pictures["a.png"], np.stack([grey] * 3, axis=-1))

    def test_four_pictures_are_too_few(self, tmp_path: Path):
        folder = save_pictures(tmp_path / "four", CODED[:4])
        with pytest.raises(UserError, match="holds 4 images, 5 are needed"):
            load_backgrounds(folder)

    @pytest.mark.parametrize("shape", [(28, 90), (90, 28)])
    def test_a_picture_no_larger_than_a_digit_is_refused(self, shape: tuple[int, int], tmp_path: Path):
        folder = save_pictures(tmp_path / "small", [*CODED[:4], position_coded(*shape)])
        with pytest.raises(UserError, match=rf"4\.png is {shape[1]}x{shape[0]} pixels"):
            load_backgrounds(folder)

    def test_a_damaged_picture_is_named(self, tmp_path: Path):
        folder = save_pictures(tmp_path / "damaged", CODED)
        (tmp_path / "damaged" / "2.png").write_bytes(b"not a picture")
        with pytest.raises(UserError, match=r"2\.png cannot be read"):
            load_backgrounds(folder)

    def test_an_absent_folder_is_named(self, tmp_path: Path):
        with pytest.raises(UserError, match="nowhere does not exist"):
            load_backgrounds(tmp_path / "nowhere")


class TestOfficialLayout:
    def test_what_is_written_reads_back_the_same(self, built: PolyMNIST, tmp_path: Path):
        scenarios = [parse_scenario(s) for s in ("none", "whole_1234", "random_0.8")]
        write_official_layout(built, tmp_path / "root", scenarios)
        read = PolyMNIST(store=str(tmp_path / "store"), root=str(tmp_path / "root"))
        read.prepare()
        meta = read.store.meta()
        assert meta is not None
        assert meta["source"]["kind"] == "folder"
        for split in ("train", "val", "test"):
            assert_same(tensors(built, split), tensors(read, split))
            for scenario, spelling in zip(scenarios, ("whole_none", "whole_1_2_3_4", "random_0.8")):
                file = tmp_path / "root" / "missing_modality" / f"missing_{split}_{spelling}.csv"
                from_file = read.mask(split, parse_scenario(f"file:{file}"))
                np.testing.assert_array_equal(from_file, built.mask(split, scenario))
                assert json.loads(file.with_suffix(".csv.json").read_text())["scenario"] == scenario.name
        assert sorted(p.name for p in (tmp_path / "root").iterdir()) == ["missing_modality", "test", "train", "val"]

    def test_nothing_is_overwritten(self, built: PolyMNIST, tmp_path: Path):
        (tmp_path / "mine.txt").write_text("precious")
        with pytest.raises(UserError, match="is not empty"):
            write_official_layout(built, tmp_path)
        write_masks(built, tmp_path, [parse_scenario("random_0.4")])
        write_masks(built, tmp_path, [parse_scenario("random_0.4")])
        with pytest.raises(UserError, match=r"missing_train_random_0\.4\.csv holds another mask"):
            write_masks(built, tmp_path, [parse_scenario("random_global_0.4")])

    def test_a_scenario_from_a_file_has_no_name_there(self, built: PolyMNIST, tmp_path: Path):
        mask = tmp_path / "mask.csv"
        mask.write_text("True,False,False,False,False\n" * 200)
        with pytest.raises(UserError, match="has no name in the original layout"):
            write_masks(built, tmp_path, [parse_scenario(f"file:{mask}")])

    def test_without_a_store_it_says_what_to_run(self, tmp_path: Path):
        with pytest.raises(UserError, match="prepare"):
            write_official_layout(PolyMNIST(store=str(tmp_path / "store")), tmp_path / "out")

    def test_rows_are_in_numeric_order(self, tmp_path: Path):
        root = make_polymnist_folder(tmp_path / "root", per_class=12, splits=("train",))
        data = PolyMNIST(store=str(tmp_path / "store"), root=str(root))
        data.prepare()
        assert data.split("train").names() == [f"{i}.{digit}" for digit in range(10) for i in range(12)]
        row = data.split("train").names().index("10.3")
        pixels = np.asarray(Image.open(root / "train" / "m4" / "10.3.png")).transpose(2, 0, 1)
        np.testing.assert_array_equal(data.split("train").read("m4")[row].numpy(), pixels)

    def test_any_of_the_splits_may_be_alone(self, tmp_path: Path):
        root = make_polymnist_folder(tmp_path / "root", splits=("test",))
        data = PolyMNIST(store=str(tmp_path / "store"), root=str(root))
        data.prepare()
        assert len(data.split("test")) == 20
        assert not data.has_split("train")
        with pytest.raises(UserError, match=r"no split 'train' \(only test\)"):
            data.split("train")

    def test_other_files_are_ignored(self, tmp_path: Path):
        root = make_polymnist_folder(tmp_path / "root", splits=("test",))
        (root / "test" / "m0" / ".DS_Store").write_bytes(b"")
        (root / "test" / "m0" / "._0.1.png").write_bytes(b"")
        (root / "test" / "m0" / "Thumbs.db").write_bytes(b"")
        assert {len(files) for files in scan_layout(root)["test"].values()} == {20}

    def test_the_folders_go_before_mnist(self, mnist: Path, tmp_path: Path):
        root = make_polymnist_folder(tmp_path / "root")
        data = PolyMNIST(store=str(tmp_path / "store"), root=str(root), mnist=str(mnist))
        data.prepare()
        assert len(data.split("train")) == 20

    def test_an_absent_class_in_test_is_a_warning(self, tmp_path: Path, caplog: pytest.LogCaptureFixture):
        root = make_polymnist_folder(tmp_path / "root")
        for file in root.glob("test/m*/*.7.png"):
            file.unlink()
        data = PolyMNIST(store=str(tmp_path / "store"), root=str(root))
        with caplog.at_level(logging.WARNING):
            data.prepare()
        assert "no image of class 7 in split 'test'" in caplog.text
        assert len(data.split("test")) == 18


def _corrupt(root: Path) -> None:
    (root / "val" / "m2" / "1.4.png").write_bytes(b"no image")


def _cut(root: Path) -> None:
    file = root / "val" / "m2" / "1.4.png"
    file.write_bytes(file.read_bytes()[:-200])


def _small(root: Path) -> None:
    Image.new("RGB", (27, 28)).save(root / "val" / "m2" / "1.4.png")


def _grey(root: Path) -> None:
    Image.new("L", (28, 28)).save(root / "val" / "m2" / "1.4.png")


def _no_class(root: Path) -> None:
    for file in root.glob("train/m*/*.7.png"):
        file.unlink()


def _four_of_five(root: Path) -> None:
    (root / "val" / "m3" / "1.4.png").unlink()


def _other_number(root: Path) -> None:
    (root / "val" / "m3" / "1.4.png").rename(root / "val" / "m3" / "11.4.png")


def _no_folder(root: Path) -> None:
    shutil.rmtree(root / "test" / "m4")


def _no_files(root: Path) -> None:
    for file in root.glob("test/m*/*.png"):
        file.unlink()


def _other_name(root: Path) -> None:
    for view in VIEWS:
        (root / "val" / view / "1.4.png").rename(root / "val" / view / "four.png")


class TestBadFolders:
    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (_corrupt, r"val/m2/1\.4\.png cannot be read .*restore it.*download it again"),
            (_cut, r"val/m2/1\.4\.png cannot be read .*truncated.*download it again"),
            (_small, r"val/m2/1\.4\.png is a 27x28 RGB image, expected 28x28 RGB: restore it"),
            (_grey, r"val/m2/1\.4\.png is a 28x28 L image, expected 28x28 RGB: restore it"),
            (_no_class, r"no image of class 7 in split 'train' .*: it cannot be learned, restore its files"),
            (_four_of_five, r"val/m3 lacks 1\.4\.png, which .*val/m0 has \(1 such files\): restore it"),
            (_other_number, r"val/m0 lacks 11\.4\.png, which .*val/m3 has"),
            (_no_folder, r"test has m0, m1, m2, m3 but no folder m4"),
            (_no_files, r"test/m0 to m4 hold no PNG file"),
            (_other_name, r"four\.png is not named \{i\}\.\{digit\}\.png"),
        ],
    )
    def test_is_named_with_its_mend(self, spoil: Callable[[Path], None], message: str, tmp_path: Path):
        root = make_polymnist_folder(tmp_path / "root")
        spoil(root)
        data = PolyMNIST(store=str(tmp_path / "store"), root=str(root))
        with pytest.raises(UserError, match=message) as error:
            data.prepare()
        assert "\n" not in str(error.value)
        assert not data.store.folder.exists()

    def test_no_damaged_byte_of_a_png_goes_unnoticed_or_escapes_as_another_error(self, tmp_path: Path):
        from datasets.polymnist import read_png

        good = tmp_path / "good.png"
        rng = np.random.default_rng(0)
        Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)).save(good)
        content, pixels = good.read_bytes(), read_png(good)
        bad = tmp_path / "bad.png"
        refused = 0
        for position in [*range(60), *range(60, len(content), 29)]:
            bad.write_bytes(content[:position] + bytes([content[position] ^ 8]) + content[position + 1 :])
            try:
                np.testing.assert_array_equal(read_png(bad), pixels)
            except UserError:
                refused += 1
        assert refused > 100

    def test_nothing_found_names_the_three_mends(self, tmp_path: Path):
        with pytest.raises(UserError) as error:
            PolyMNIST(store=str(tmp_path / "store"), root=str(tmp_path / "nothing")).prepare()
        message = str(error.value)
        assert "\n" not in message
        for part in (str(tmp_path / "nothing"), "m0 to m4", "PolyMNIST.zip", "dataset.mnist", "dataset.download=true"):
            assert part in message

    def test_download_needs_a_root(self, tmp_path: Path):
        with pytest.raises(UserError, match=r"dataset\.root \(null\)"):
            PolyMNIST(store=str(tmp_path / "store"), download=True).prepare()


class TestBadMnist:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return make_mnist_idx(tmp_path / "mnist", n_train=50, n_test=50, gz=False)

    def prepare(self, folder: Path) -> None:
        PolyMNIST(store=str(folder.parent / "store"), mnist=str(folder)).prepare()

    def test_a_file_cut_short(self, folder: Path):
        file = folder / "train-images-idx3-ubyte"
        file.write_bytes(file.read_bytes()[:-1000])
        with pytest.raises(UserError, match=rf"{file} holds 38216 bytes \(unpacked\), 39216 are expected"):
            self.prepare(folder)

    def test_a_gz_file_cut_short(self, tmp_path: Path):
        file = write_idx(tmp_path / "labels", np.random.default_rng(0).integers(0, 10, 5000).astype(np.uint8), gz=True)
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        with pytest.raises(UserError, match=r"labels\.gz holds \d+ bytes \(unpacked\), 5008 are expected"):
            read_idx(file, 1)
        file.write_bytes(content[:-4])
        with pytest.raises(UserError, match=r"labels\.gz ends before its checksum"):
            read_idx(file, 1)
        file.write_bytes(content[:-6] + b"\0\0\0\0\0\0")
        with pytest.raises(UserError, match=r"labels\.gz is damaged"):
            read_idx(file, 1)

    def test_a_gz_file_under_a_plain_name(self, tmp_path: Path):
        file = tmp_path / "labels"
        file.write_bytes(gzip.compress(write_idx(tmp_path / "raw", np.arange(10, dtype=np.uint8)).read_bytes()))
        assert read_idx(file, 1).tolist() == list(range(10))

    @pytest.mark.parametrize("content", [b"", b"\0\0", b"\0\0\x08\x01\0\0"])
    def test_less_than_a_header(self, content: bytes, tmp_path: Path):
        (tmp_path / "labels").write_bytes(content)
        with pytest.raises(UserError, match=rf"holds {len(content)} bytes \(unpacked\), 8 are expected for the header"):
            read_idx(tmp_path / "labels", 1)

    def test_too_many_bytes(self, folder: Path):
        file = folder / "t10k-labels-idx1-ubyte"
        file.write_bytes(file.read_bytes() + b"\0")
        with pytest.raises(UserError, match=r"holds 59 bytes .*, 58 are expected for sizes 50"):
            self.prepare(folder)

    def test_another_magic_number(self, folder: Path):
        (folder / "train-images-idx3-ubyte").write_bytes(b"<html>not found</html>")
        with pytest.raises(UserError, match="train-images-idx3-ubyte starts with the bytes 3c68746d"):
            self.prepare(folder)

    def test_unequal_counts(self, folder: Path):
        write_idx(folder / "train-labels-idx1-ubyte", np.arange(49, dtype=np.uint8) % 10)
        with pytest.raises(UserError, match=r"holds 50 images but .* 49 labels"):
            self.prepare(folder)

    def test_images_of_another_size(self, folder: Path):
        write_idx(folder / "train-images-idx3-ubyte", np.zeros((50, 32, 32), dtype=np.uint8))
        with pytest.raises(UserError, match=r"images of \(32, 32\), expected 28x28"):
            self.prepare(folder)

    def test_a_label_above_nine(self, folder: Path):
        write_idx(folder / "train-labels-idx1-ubyte", np.arange(50, dtype=np.uint8) % 11)
        with pytest.raises(UserError, match="holds the label 10"):
            self.prepare(folder)

    def test_a_class_without_digits(self, folder: Path):
        write_idx(folder / "train-labels-idx1-ubyte", np.arange(50, dtype=np.uint8) % 9)
        with pytest.raises(UserError, match="no image of class 9 in split 'train'"):
            self.prepare(folder)

    def test_an_absent_file(self, folder: Path):
        (folder / "t10k-labels-idx1-ubyte").unlink()
        with pytest.raises(UserError, match=r"no t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte\.gz in"):
            self.prepare(folder)


class TestStore:
    @staticmethod
    def stamp(data: PolyMNIST) -> tuple[int, int]:
        status = (data.store.folder / "meta.json").stat()
        return status.st_ino, status.st_mtime_ns

    def test_it_is_used_again_while_nothing_changes(self, tmp_path: Path, caplog: pytest.LogCaptureFixture):
        root = make_polymnist_folder(tmp_path / "root")
        PolyMNIST(store=str(tmp_path / "store"), root=str(root)).prepare()
        data = PolyMNIST(store=str(tmp_path / "store"), root=str(root))
        before = self.stamp(data)
        with caplog.at_level(logging.INFO, logger="datasets.source"):
            data.prepare()
        assert self.stamp(data) == before
        assert "is up to date" in caplog.text

    def test_it_is_made_again_when_a_file_changes(self, tmp_path: Path, caplog: pytest.LogCaptureFixture):
        root = make_polymnist_folder(tmp_path / "root")
        data = PolyMNIST(store=str(tmp_path / "store"), root=str(root))
        data.prepare()
        assert data.split("test").read("m1")[3].any()
        name = data.split("test").names()[3]
        Image.new("RGB", (28, 28)).save(root / "test" / "m1" / f"{name}.png")
        with caplog.at_level(logging.INFO, logger="datasets.source"):
            data.prepare()
        assert "again: the source or its settings changed" in caplog.text
        assert not data.split("test").read("m1")[3].any()

    def test_a_newer_date_or_a_removed_tuple_is_a_change(self, tmp_path: Path):
        root = make_polymnist_folder(tmp_path / "root")
        data = PolyMNIST(store=str(tmp_path / "store"), root=str(root))
        data.prepare()
        assert len(data.split("test")) == 20
        before = self.stamp(data)
        os.utime(root / "train" / "m0" / "0.0.png", ns=(1, 1))
        data.prepare()
        after = self.stamp(data)
        assert after != before
        for view in VIEWS:
            (root / "test" / view / "0.0.png").unlink()
        data.prepare()
        assert self.stamp(data) != after
        assert len(data.split("test")) == 19

    @pytest.mark.parametrize("change", [{"build_seed": 1}, {"split_seed": 1}, {"backgrounds": None}])
    def test_other_settings_of_the_build_are_a_change(
        self, change: dict, mnist: Path, coded_folder: str, tmp_path: Path
    ):
        settings = {"store": str(tmp_path / "store"), "mnist": str(mnist), "backgrounds": coded_folder}
        data = PolyMNIST(**settings)
        data.prepare()
        before = self.stamp(data)
        data.prepare()
        assert self.stamp(data) == before
        PolyMNIST(**{**settings, **change}).prepare()
        assert self.stamp(data) != before

    def test_the_folder_of_the_raw_files_is_never_replaced(self, tmp_path: Path):
        root = make_polymnist_folder(tmp_path / "root")
        with pytest.raises(UserError, match="no part of a packed store"):
            PolyMNIST(store=str(root), root=str(root)).prepare()
        assert len(list(root.rglob("*.png"))) == 300

    def test_a_file_in_its_place_is_refused(self, mnist: Path, tmp_path: Path):
        (tmp_path / "store").write_text("")
        with pytest.raises(UserError, match="is a file"):
            PolyMNIST(store=str(tmp_path / "store"), mnist=str(mnist)).prepare()


class TestDigits:
    @pytest.fixture(scope="class")
    @staticmethod
    def glyphs_only(tmp_path_factory: pytest.TempPathFactory) -> Digits:
        """Built on black pictures, so that a view is its digit: 255 on the glyph, 0 elsewhere."""
        folder = tmp_path_factory.mktemp("digits")
        black = save_pictures(folder / "black", [np.zeros((40, 40, 3), dtype=np.uint8)] * 5)
        data = Digits(store=str(folder / "store"), backgrounds=black, train_pairings=3)
        data.prepare()
        return data

    def test_split_sizes_on_the_bundled_photographs(self, tmp_path: Path):
        data = Digits(store=str(tmp_path / "store"))
        data.prepare()
        assert {name: len(data.split(name)) for name in ("train", "val", "test")} == SIZES
        assert SIZES == {"train": 1257, "val": 180, "test": 360}
        meta = data.store.meta()
        assert meta is not None
        assert meta["dataset"] == "Digits"
        assert next(iter(meta["source"]["backgrounds"])) == "retina"
        total = Counter()
        for counts in meta["class_counts"].values():
            total.update(counts)
        assert list(total.values()) == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]

    def test_images_are_enlarged_and_centred(self):
        images, labels = load_digit_images()
        assert images.shape == (1797, 28, 28)
        assert labels.tolist()[:10] == list(range(10))
        border = np.ones((28, 28), dtype=bool)
        border[4:24, 4:24] = False
        assert not images[:, border].any()
        assert 0.05 < (images > 128).mean() < 0.3
        assert (images > 128).any(axis=(1, 2)).all()

    def test_no_digit_is_in_two_splits(self, glyphs_only: Digits):
        images, labels = load_digit_images()
        parts = stratified_split(labels, tuple(SIZES.values()), 2025)
        assert sorted(np.concatenate(parts)) == list(range(1797))
        for (split, size), rows in zip(SIZES.items(), parts):
            assert len(rows) == size
            target = glyphs_only.split(split).read("target").numpy()
            repeats = 3 if split == "train" else 1
            for view in VIEWS:
                pixels = glyphs_only.split(split).read(view).numpy()
                assert set(np.unique(pixels)) == {0, 255}
                for digit in range(10):
                    expected = multiset(images[rows][labels[rows] == digit] > 128)
                    got = multiset(pixels[target == digit][:, 0] > 128)
                    assert got == Counter({key: repeats * count for key, count in expected.items()})

    def test_pairings_go_on_numbering_and_draw_anew(self, glyphs_only: Digits):
        train = glyphs_only.split("train")
        target = train.read("target").numpy()
        assert len(train) == 3 * 1257
        n = int((target == 0).sum()) // 3
        assert train.names()[: 3 * n] == [f"{i}.0" for i in range(3 * n)]
        zeros = train.read("m0").numpy()[target == 0][:, 0]
        assert multiset(zeros[:n]) == multiset(zeros[n : 2 * n]) == multiset(zeros[2 * n :])
        assert (zeros[:n] != zeros[n : 2 * n]).any()

    def test_splits_do_not_depend_on_the_number_of_pairings(self, tmp_path: Path):
        stores = [Digits(store=str(tmp_path / str(k)), train_pairings=k) for k in (1, 2)]
        for data in stores:
            data.prepare()
        for split in ("val", "test"):
            assert_same(tensors(stores[0], split), tensors(stores[1], split))

    def test_no_pairing_is_refused(self, tmp_path: Path):
        with pytest.raises(UserError, match="train_pairings=0"):
            Digits(store=str(tmp_path), train_pairings=0)


class TestLoader:
    def test_batches(self, built: PolyMNIST):
        scenario = parse_scenario("random_0.8")
        batches = list(built.loader("train", scenario, batch_size=64))
        assert [len(batch) for batch in batches] == [64, 64, 64, 8]
        mask = built.mask("train", scenario)
        for batch in batches:
            assert list(batch.inputs) == list(VIEWS)
            for x in batch.inputs.values():
                assert x.shape == (len(batch), 3, 28, 28)
                assert x.dtype == torch.float32
                assert x.min() >= 0
                assert x.max() <= 1
            assert batch.missing.dtype == torch.bool
            assert batch.target.dtype == batch.index.dtype == torch.int64
            np.testing.assert_array_equal(batch.missing.numpy(), mask[batch.index.numpy()])
        first = batches[0].inputs["m2"][7]
        assert torch.equal(first, built.split("train").read("m2")[7] / 255)
        assert torch.cat([batch.index for batch in batches]).tolist() == list(range(200))

    def test_every_residence_gives_the_same_batches(self, built: PolyMNIST):
        loaders = [
            PackedLoader(
                built.split("train"),
                built.modalities,
                built.mask("train", Complete()),
                50,
                shuffle=True,
                residence=residence,
            )
            for residence in ("host", "mmap", "device", "auto")
        ]
        for batches in zip(*loaders):
            for other in batches[1:]:
                assert torch.equal(batches[0].index, other.index)
                for view in VIEWS:
                    assert torch.equal(batches[0].inputs[view], other.inputs[view])

    @pytest.mark.parametrize("residence", ["host", "device", "mmap"])
    def test_batches_go_to_a_device_without_waiting(self, built: PolyMNIST, residence: str):
        with SimulatedDevice() as device:
            options = {"shuffle": True, "jitter": 2, "seed": 1, "residence": residence}
            split, mask = built.split("train"), built.mask("train", Complete())
            loader = PackedLoader(split, built.modalities, mask, 50, device=DEVICE, **options)
            device.waits.clear()
            batches = list(loader)
            assert not device.waits and all(batch.index.device == DEVICE for batch in batches)
            rows = torch.cat([on_host(batch.index) for batch in batches])
            assert not device.waits  # the order was made on the host
        plain = PackedLoader(split, built.modalities, mask, 50, **options)
        assert torch.equal(rows, torch.cat([batch.index for batch in plain]))
        assert torch.equal(batches[1].inputs["m3"].inner, list(plain)[1].inputs["m3"])

    def test_channels_last_is_a_layout_of_the_same_images(self, built: PolyMNIST):
        images = {}
        for channels_last in (None, True, False):
            built.channels_last = channels_last
            images[channels_last] = built.rows("train", np.arange(3)).inputs["m1"]
        built.channels_last = None
        is_last = {key: x.is_contiguous(memory_format=torch.channels_last) for key, x in images.items()}
        assert is_last == {None: True, True: True, False: False}  # None: true on the CPU
        assert torch.equal(images[True], images[False]) and torch.equal(images[None], images[False])

    def order(self, data: PolyMNIST, seed: int, epoch: int, **options: int) -> list[int]:
        loader = PackedLoader(
            data.split("train"),
            data.modalities,
            data.mask("train", Complete()),
            32,
            shuffle=True,
            seed=seed,
            **options,
        )
        loader.set_epoch(epoch)
        return torch.cat([batch.index for batch in loader]).tolist()

    def test_the_order_depends_on_seed_and_epoch_alone(self, built: PolyMNIST):
        reference = self.order(built, seed=1, epoch=3)
        torch.manual_seed(99)
        assert self.order(built, seed=1, epoch=3) == reference
        assert sorted(reference) == list(range(200))
        assert self.order(built, seed=1, epoch=4) != reference
        assert self.order(built, seed=2, epoch=3) != reference

    def test_ranks_have_the_batches_of_one_process(self, built: PolyMNIST):
        """Step by step, with the same rows, whatever is left for the last step."""

        def steps(world: int, size: int, rank: int = 0) -> list[tuple[list[int], bool]]:
            loader = built.loader("train", train=True, batch_size=size, rank=rank, world_size=world)
            loader.set_epoch(3)
            batches = [(batch.index.tolist(), batch.is_filler) for batch in loader]
            assert len(batches) == len(loader)
            return batches

        for world, size in itertools.product((2, 3, 7, 201), (1, 13, 32, 99)):
            ranks = [steps(world, size, rank) for rank in range(world)]
            for (rows, _), *parts in zip(steps(1, size * world), *ranks, strict=True):
                assert sorted(rows) == sorted(row for part, is_filler in parts if not is_filler for row in part)
                assert all(len(part) == 1 for part, is_filler in parts if is_filler)
                lengths = [0 if is_filler else len(part) for part, is_filler in parts]
                assert max(lengths) - min(lengths) <= 1

    def test_no_rank_has_more_rows_than_another_without_a_remainder(self, built: PolyMNIST):
        data = PolyMNIST(store=str(built.store.folder), drop_last=True)
        for rank in range(3):
            loader = data.loader("train", train=True, batch_size=13, rank=rank, world_size=3)
            assert [(len(batch), batch.is_filler) for batch in loader] == [(13, False)] * 5  # 195 of 200 rows

    def test_in_evaluation_ranks_have_every_row_once_in_as_many_batches(self, built: PolyMNIST):
        for split, n in (("val", len(built.split("val"))), ("test", 70)):
            for world, size in itertools.product((1, 2, 3, 7, n + 1), (1, 2, 16, n)):
                of_ranks = [
                    [
                        batch.index.tolist()
                        for batch in built.loader(split, batch_size=size, rank=rank, world_size=world)
                    ]
                    for rank in range(world)
                ]
                rows = [row for batches in of_ranks for batch in batches for row in batch]
                assert sorted(rows) == list(range(n))
                assert all(batch for batches in of_ranks for batch in batches)
                if world <= n:
                    assert len({len(batches) for batches in of_ranks}) == 1
                assert max(len(batch) for batches in of_ranks for batch in batches) <= size + (world > 1)

    def test_drop_last(self, mnist: Path, built: PolyMNIST):
        data = PolyMNIST(store=str(built.store.folder), mnist=str(mnist), drop_last=True, batch_size=64)
        assert [len(batch) for batch in data.loader("train", train=True)] == [64, 64, 64]
        assert len(data.loader("train", train=True)) == 3
        assert sum(len(batch) for batch in data.loader("test")) == 70

    def test_new_pairs_keep_the_class_and_use_every_image_once(self, built: PolyMNIST):
        data = PolyMNIST(store=str(built.store.folder), reshuffle_pairs=True, batch_size=64)
        stored = {view: data.split("train").read(view) for view in VIEWS}
        target = data.split("train").read("target")
        loader = data.loader("train", train=True)
        drawn = []
        for epoch in range(2):
            loader.set_epoch(epoch)
            batches = list(loader)
            rows = torch.cat([batch.index for batch in batches])
            got_target = torch.cat([batch.target for batch in batches])
            assert torch.equal(got_target, target[rows])
            for view in VIEWS:
                pixels = (torch.cat([batch.inputs[view] for batch in batches]) * 255).round().byte()
                for digit in range(10):
                    assert multiset(pixels[got_target == digit].numpy()) == multiset(
                        stored[view][target == digit].numpy()
                    )
                column = torch.cat([batch.sources for batch in batches])[:, VIEWS.index(view)]
                assert torch.equal(pixels, stored[view][column]) and sorted(column.tolist()) == list(range(len(column)))
                drawn.append(pixels[rows.argsort()])
        assert len({pixels.numpy().tobytes() for pixels in drawn}) == 10
        evaluated = next(iter(data.loader("train", batch_size=200)))
        assert evaluated.sources is None
        assert torch.equal((evaluated.inputs["m0"] * 255).round().byte(), stored["m0"])

    def test_jitter_moves_each_image_by_its_own_offset(self, tmp_path: Path):
        """Offsets are read off the centre of the moved image; a loop then moves the image once more."""
        jitter, n = 3, 40
        images = np.random.default_rng(0).integers(0, 256, size=(n, 3, 12, 10), dtype=np.uint8)
        images[:, 0] = np.arange(10)
        images[:, 1] = np.arange(12)[:, None]
        store = PackedStore(tmp_path / "store")
        store.write({"train": {"a": images, "b": images, "target": np.arange(n)}}, {})
        modalities = [Modality("a", "image", (3, 12, 10)), Modality("b", "image", (3, 12, 10))]
        loader = PackedLoader(store.split("train"), modalities, np.zeros((n, 2), dtype=bool), n, jitter=jitter)
        batch = next(iter(loader))
        offsets = {}
        for name in ("a", "b"):
            moved = (batch.inputs[name] * 255).round().byte().numpy()
            offsets[name] = [(int(result[0, 6, 5]) - 5, int(result[1, 6, 5]) - 6) for result in moved]
            for image, result, (dx, dy) in zip(images, moved, offsets[name]):
                for y in range(12):
                    for x in range(10):
                        source = image[:, min(max(y + dy, 0), 11), min(max(x + dx, 0), 9)]
                        assert (result[:, y, x] == source).all()
            for axis in (0, 1):
                assert {offset[axis] for offset in offsets[name]} == set(range(-jitter, jitter + 1))
        assert offsets["a"] != offsets["b"]

    def test_jitter_is_for_training_only(self, built: PolyMNIST):
        data = PolyMNIST(store=str(built.store.folder), jitter=2, batch_size=200)
        stored = data.split("train").read("m0") / 255
        batch = next(iter(data.loader("train", train=True)))
        assert not torch.equal(batch.inputs["m0"], stored[batch.index])
        assert torch.equal(next(iter(data.loader("train", batch_size=200))).inputs["m0"], stored)

    def test_low_keeps_all_classes_and_the_order(self, built: PolyMNIST):
        data = PolyMNIST(store=str(built.store.folder), train_fraction=0.25)
        target = data.split("train").read("target")
        assert len(target) == 50
        assert set(target.tolist()) == set(range(10))
        assert (target.diff() >= 0).all()
        assert len(data.split("test")) == 70
        names = data.split("train").names()
        whole = built.split("train").names()
        rows = [whole.index(name) for name in names]
        assert torch.equal(data.split("train").read("m3"), built.split("train").read("m3")[rows])

    def test_a_share_that_keeps_nothing_is_refused(self, built: PolyMNIST):
        with pytest.raises(UserError, match="keeps no row"):
            PolyMNIST(store=str(built.store.folder), train_fraction=0.001).split("train")

    def test_nan_is_refused_unless_it_is_marked_missing(self, tmp_path: Path):
        store = PackedStore(tmp_path / "store")
        table = np.zeros((4, 3), dtype=np.float32)
        table[2, 1] = np.nan
        arrays = {
            "image": np.zeros((4, 1, 2, 2), dtype=np.uint8),
            "table": table,
            "target": np.arange(4),
            "nan_rows": np.stack([np.zeros(4, dtype=bool), np.isnan(table).any(axis=1)], axis=1),
        }
        store.write({"train": arrays}, {})
        modalities = [Modality("image", "image", (1, 2, 2)), Modality("table", "table", (3,))]
        mask = np.zeros((4, 2), dtype=bool)
        with pytest.raises(UserError, match="row 2 of modality 'table' holds NaN but is marked as observed"):
            PackedLoader(store.split("train"), modalities, mask, 4)
        mask[2, 1] = True
        batch = next(iter(PackedLoader(store.split("train"), modalities, mask, 4)))
        assert not batch.observed()["table"].isnan().any()


@needs_mnist
class TestRealMnist:
    def test_the_files_hold_the_known_digits(self):
        files = mnist_files(REAL_MNIST)
        images, labels = read_mnist(files, "train")
        assert images.shape == (60000, 28, 28)
        assert np.bincount(labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
        assert labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
        _, test_labels = read_mnist(files, "test")
        assert np.bincount(test_labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]

    @pytest.mark.slow
    def test_the_full_build(self, coded_folder: str, tmp_path: Path):
        data = PolyMNIST(store=str(tmp_path / "store"), mnist=str(REAL_MNIST), backgrounds=coded_folder)
        data.prepare()
        assert {name: len(data.split(name)) for name in ("train", "val", "test")} == {
            "train": 60000,
            "val": 3000,
            "test": 7000,
        }
        images, labels = read_mnist(mnist_files(REAL_MNIST), "train")
        target = data.split("train").read("target").numpy()
        assert np.bincount(target).tolist() == np.bincount(labels).tolist()
        for view in VIEWS:
            assert multiset(data.split("train").memory_map(view)[:, 0].numpy() >= 128) == multiset(images > 128)
        val = np.bincount(data.split("val").read("target").numpy())
        assert np.abs(val - 0.3 * np.bincount(read_mnist(mnist_files(REAL_MNIST), "test")[1])).max() < 1

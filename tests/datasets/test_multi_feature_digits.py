"""Six-view digits: both file formats against numpy, the split, standardisation, bad files; the vector encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from datasets.demo.multi_feature_digits import make_views
from datasets.missingness import parse_scenario
from datasets.multi_feature_digits import VIEWS, MultiFeatureDigits, read_view
from models.encoders.vector import VectorEncoder
from utils.errors import UserError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    make_views(folder)
    return folder


def prepared(root: Path, store: Path, **settings) -> MultiFeatureDigits:
    data = MultiFeatureDigits(store=str(store), root=str(root), **settings)
    data.prepare()
    return data


def titled(raw: Path, folder: Path) -> Path:
    """The same digits in another order, as tables with a heading and the class in the last column."""
    order = np.random.default_rng(1).permutation(200)
    for view in VIEWS:
        frame = pd.DataFrame(np.loadtxt(raw / f"mfeat-{view}")).assign(label=np.repeat(np.arange(10), 20))
        frame.iloc[order].to_csv(folder / f"mfeat-{view}.csv", index=False)
    return folder


def test_splits_hold_each_digit_once_standardised_by_the_training_rows(raw: Path, tmp_path: Path) -> None:
    data = prepared(raw, tmp_path / "store")
    parts = {split: data.split(split) for split in ("train", "val", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 120, "val": 20, "test": 60}
    for split, per_class in (("train", 12), ("val", 2), ("test", 6)):
        assert np.bincount(parts[split].read("target").numpy()).tolist() == [per_class] * 10
    for view, features in VIEWS.items():
        train = parts["train"].read(view).double().numpy()
        np.testing.assert_allclose(train.mean(0), np.zeros(features), atol=1e-6)
        np.testing.assert_allclose(train.std(0), np.ones(features), atol=1e-5)
        # Undone, the rows of all splits are those of the file.
        file = np.loadtxt(raw / f"mfeat-{view}")
        every = np.concatenate([parts[s].read(view).double().numpy() for s in parts])
        classes = np.concatenate([parts[s].read("target").numpy() for s in parts])
        scale = (file - file.mean(0)) / file.std(0)
        again = (every - every.mean(0)) / every.std(0)
        for c in range(10):
            ours, theirs = again[classes == c], scale[20 * c : 20 * c + 20]
            np.testing.assert_allclose(ours[ours[:, 0].argsort()], theirs[theirs[:, 0].argsort()], atol=1e-4)


def test_views_of_a_row_belong_to_one_digit(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for view, features in VIEWS.items():
        np.savetxt(raw / f"mfeat-{view}", np.repeat(np.arange(100.0)[:, None], features, axis=1))
    batch = prepared(raw, tmp_path / "store").rows("test", np.arange(30))
    for view in VIEWS:
        torch.testing.assert_close(batch.inputs[view][:, 0], batch.inputs["fac"][:, 0])
    assert len(batch.inputs["fac"][:, 0].unique()) == 30


def test_tables_with_a_heading_say_the_class_of_every_row(raw: Path, tmp_path: Path) -> None:
    folder = titled(raw, tmp_path)
    values, labels = read_view(folder / "mfeat-mor.csv", 6)
    plain, plain_labels = read_view(raw / "mfeat-mor", 6)
    order = np.random.default_rng(1).permutation(200)
    np.testing.assert_array_equal(values, plain[order])
    np.testing.assert_array_equal(labels, plain_labels[order])
    assert len(prepared(folder, tmp_path / "store").split("train")) == 120


def test_masks_leave_one_of_six_views(raw: Path, tmp_path: Path) -> None:
    data = prepared(raw, tmp_path / "store")
    assert data.mask("test", parse_scenario("random_0.8")).sum(1).tolist() == [5] * 60


def drop_file(folder: Path) -> None:
    (folder / "mfeat-zer.csv").unlink()


def spoil(view: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / f"mfeat-{view}.csv"
        change(pd.read_csv(file)).to_csv(file, index=False)

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_file, r"no .*mfeat-zer \(.csv or without suffix\): set dataset.root"),
        (spoil("kar", lambda f: f.drop(columns="3")), "mfeat-kar.csv has 64 columns, expected 65"),
        (spoil("kar", lambda f: f.assign(label=f.label + 1)), "the class 10 in row .* expected 0 to 9"),
        (spoil("fou", lambda f: f.iloc[1:]), "mfeat-fou.csv has 199 rows, .*mfeat-fac.csv 200"),
        (spoil("fou", lambda f: f.iloc[::-1]), "mfeat-fou.csv and .*mfeat-fac.csv differ in the class of row"),
        (spoil("pix", lambda f: f.assign(**{"5": np.nan})), "mfeat-pix.csv holds no number in row 1"),
        (spoil("pix", lambda f: f.assign(**{"5": "x"})), "mfeat-pix.csv cannot be read as numbers"),
    ],
)
def test_a_bad_file_is_named(raw: Path, tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    damage(titled(raw, folder))
    with pytest.raises(UserError, match=message):
        prepared(folder, tmp_path / "store")


def test_the_real_files_are_2000_digits_of_six_views(tmp_path: Path) -> None:
    root = SHARED / "multi_feature_digits"
    if not root.is_dir():
        pytest.skip("the six-view digits are not here")
    data = prepared(root, tmp_path / "store")
    assert [len(data.split(s)) for s in ("train", "val", "test")] == [1200, 200, 600]
    # A view alone tells the classes apart, by a classifier of another library.
    from sklearn.neighbors import KNeighborsClassifier

    train, test = data.split("train"), data.split("test")
    scores = {}
    for view in VIEWS:
        knn = KNeighborsClassifier(5).fit(train.read(view).numpy(), train.read("target").numpy())
        scores[view] = knn.score(test.read(view).numpy(), test.read("target").numpy())
    assert scores["pix"] > 0.93 and 0.6 < scores["mor"] < scores["pix"]


def test_vector_encoder_is_two_linear_maps_and_hides_cells() -> None:
    torch.manual_seed(0)
    encoder = VectorEncoder((), 5, width=3, hidden=4)
    x = torch.randn(2, 5)
    first, second = encoder.layers[0], encoder.layers[2]
    expected = (x @ first.weight.T + first.bias).clamp(min=0) @ second.weight.T + second.bias
    torch.testing.assert_close(encoder(x), expected[:, None])
    missing = torch.tensor([[True, False, False, False, True], [False] * 5])
    spoiled = torch.where(missing, torch.nan, x)
    torch.testing.assert_close(encoder(spoiled, missing=missing), encoder(torch.where(missing, 0.0, x)))
    assert encoder.tokens == 1 and VectorEncoder((), 5, vector_width=7)(x).shape == (2, 1, 7)
    with pytest.raises(ValueError, match="2 categorical columns"):
        VectorEncoder((2, 3), 5)

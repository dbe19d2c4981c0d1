"""The scikit-learn estimator: its interface, its inputs, and that it does what the stages do."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.special import softmax
from sklearn.base import clone
from sklearn.datasets import load_digits, make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

from datasets.array_inputs import ArrayInputs, ArrayRows, ImageFiles, is_number
from datasets.missingness import parse_scenario
from datasets.new_rows import NewRows
from trainers import run as pipeline
from trainers.estimator import IncompleteClassifierEstimator
from trainers.loading import Run
from trainers.prediction import predict, scenario_masks
from trainers.predictor import load
from utils.errors import UserError

DYMO: dict[str, Any] = {
    "overrides": {"imputer.training.max_epochs": 3, "model.backbone.module.prototype_start": 1},
    "max_epochs": 4,
}


SMALL = IncompleteClassifierEstimator("ModDrop", max_epochs=12)
SMALL_DYMO = IncompleteClassifierEstimator("DyMo", "Mean", max_epochs=12)
# scikit-learn's checks take about 30 s of one core with a plain method. With DyMo, whose fit has two more stages, only
# those that depend on the method.
CHECKS_OF_DYMO = {
    "check_classifiers_train",
    "check_estimators_pickle",
    "check_fit_idempotent",
    "check_methods_sample_order_invariance",
    "check_methods_subset_invariance",
}
# Checks of what a classifier has learned; the others need no more than two epochs.
CHECKS_OF_LEARNING = {"check_classifiers_classes", "check_classifiers_train"}
# check -> why it cannot pass.
EXPECTED_FAILURES: dict[str, str] = {}


def checks() -> list[Any]:
    all_checks = [
        (clone(estimator), check)
        for estimator in (SMALL, SMALL_DYMO)
        for _, check in estimator_checks_generator(estimator, expected_failed_checks=EXPECTED_FAILURES, mark="xfail")
    ]
    names = [(estimator.method, check.func.__name__) for estimator, check in all_checks]
    # Without SCIPY_ARRAY_API in the environment, that one checks nothing.
    chosen = [(m == "ModDrop" and check != "check_array_api_input") or check in CHECKS_OF_DYMO for m, check in names]
    assert {name for method, name in names if method == "DyMo"} >= CHECKS_OF_DYMO
    return [
        pytest.param(
            estimator.set_params(max_epochs=12 if name[1] in CHECKS_OF_LEARNING else 2),
            check,
            id=f"{'-'.join(name)}-{number}",
        )
        for number, ((estimator, check), name, is_chosen) in enumerate(zip(all_checks, names, chosen, strict=True))
        if is_chosen
    ]


@pytest.mark.parametrize(("estimator", "check"), checks())
def test_checks_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(clone(estimator))


def blobs(n: int = 40, seed: int = 0, missing: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N, 4) of three classes with missing cells, of which row 0 is complete."""
    x, y = make_blobs(n, n_features=4, centers=3, random_state=seed)
    hidden = np.random.default_rng(seed).random(x.shape) < missing
    hidden[:10] = False
    return np.where(hidden, np.nan, x), y


def digits() -> tuple[dict[str, Any], np.ndarray]:
    """Digits 0 to 2 as images of 28 x 28 (some None), with two halves of their pixels as tables with gaps."""
    pixels, y = load_digits(return_X_y=True)
    pixels, y = pixels[y < 3][:60], y[y < 3][:60]
    images = np.zeros((60, 28, 28), dtype=np.uint8)
    images[:, 6:22, 6:22] = (pixels.reshape(-1, 8, 8) * 15.9).repeat(2, 1).repeat(2, 2)
    rng = np.random.default_rng(0)
    upper, lower = pixels[:, :32].copy(), pixels[:, 32:].copy()
    upper[rng.random(60) < 0.2] = np.nan
    lower[40:][rng.random((20, 32)) < 0.3] = np.nan
    listed = [None if i % 7 == 3 else image for i, image in enumerate(images)]
    return {"image": listed, "upper": upper, "lower": lower}, y


@pytest.fixture(scope="module")
def fitted() -> tuple[IncompleteClassifierEstimator, dict[str, Any], np.ndarray]:
    """DyMo with MoPoE on an image and two tables, labels are texts."""
    x, y = digits()
    labels = np.array(["zero", "one", "two"])[y]
    return IncompleteClassifierEstimator(**DYMO).fit(x, labels), x, labels


def test_probabilities_are_those_of_the_stages(tmp_path: Path) -> None:
    """The same configuration, run by the stages on the same file, and evaluated as stage test does."""
    x, y = digits()
    estimator = IncompleteClassifierEstimator(**DYMO, output=tmp_path / "estimator").fit(x, y)
    (tmp_path / "stages").mkdir()
    (tmp_path / "estimator" / "arrays.npz").rename(tmp_path / "stages" / "arrays.npz")
    cfg = estimator.config(tmp_path / "stages")
    cfg.stages = ["prepare", "impute", "fit", "gaussian"]
    pipeline.run(cfg)
    run = Run(cfg)
    # The rows of the validation split, as the estimator and as the stages see them.
    split = run.data.split("val")
    masks, cells = scenario_masks(run.data, "val", [parse_scenario("none")])
    logits = predict(run.load_method(), run.data.loader("val"), masks, cells, progress=False)[""]["none"]["logits"]
    numbers = validation_rows(y, share=0.1, seed=0)
    rows = {name: [value[i] for i in numbers] for name, value in x.items()}
    assert len(split) == len(numbers) and split.read("target").tolist() == y[numbers].tolist()
    expected = softmax(logits.astype(np.float64), axis=1)
    np.testing.assert_allclose(estimator.predict_proba(rows), expected, atol=1e-6)


def validation_rows(y: np.ndarray, share: float, seed: int) -> list[int]:
    """The validation split of the data set, drawn by a loop."""
    rng = np.random.default_rng(seed)
    rows: list[int] = []
    for c in range(y.max() + 1):
        of_class = rng.permutation([i for i, label in enumerate(y) if label == c])
        rows += of_class[: int(share * len(of_class) + 0.5)].tolist()
    return sorted(rows)


def test_rows_keep_their_order_and_those_without_content_get_the_class_frequencies(fitted: Any) -> None:
    estimator, x, labels = fitted
    probabilities = estimator.predict_proba(x)
    assert estimator.classes_.tolist() == ["one", "two", "zero"]
    assert (estimator.predict(x) == labels).mean() > 0.6 and np.allclose(probabilities.sum(1), 1)
    order = np.random.default_rng(1).permutation(60)
    shuffled = {name: [value[i] for i in order] for name, value in x.items()}
    np.testing.assert_allclose(estimator.predict_proba(shuffled), probabilities[order], atol=1e-6)
    empty = {"image": [None, x["image"][0]], "upper": np.full((2, 32), np.nan), "lower": np.full((2, 32), np.nan)}
    frequencies = [(labels == c).mean() for c in estimator.classes_]
    np.testing.assert_allclose(estimator.predict_proba(empty)[0], frequencies)
    alone = estimator.predict_proba({"image": [x["image"][0]]})  # inputs that are left out are missing
    np.testing.assert_allclose(estimator.predict_proba(empty)[1], alone[0], atol=1e-6)


def test_masked_arrays_none_and_nan_are_the_same(fitted: Any) -> None:
    estimator, x, _ = fitted
    absent = np.array([image is None for image in x["image"]])
    stacked = np.stack([np.zeros((28, 28), np.uint8) if image is None else image for image in x["image"]])
    mask = np.broadcast_to(absent[:, None, None], stacked.shape)
    floats = np.where(mask, np.nan, stacked / 255)
    lower = np.ma.masked_invalid(x["lower"])
    expected = estimator.predict_proba(x)
    for images in (np.ma.masked_array(stacked, mask), floats, floats[:, None], floats[..., None]):
        given = {"image": images, "upper": x["upper"], "lower": lower}
        np.testing.assert_allclose(estimator.predict_proba(given), expected, atol=1e-5)


def test_a_fitted_estimator_can_be_pickled_copied_and_saved(fitted: Any, tmp_path: Path) -> None:
    estimator, x, _ = fitted
    expected = estimator.predict_proba(x)
    for other in (pickle.loads(pickle.dumps(estimator)), copy.deepcopy(estimator)):
        np.testing.assert_array_equal(other.predict_proba(x), expected)
    estimator.bundle_.save(tmp_path / "model.zip")
    np.testing.assert_allclose(load(tmp_path / "model.zip").predict_proba(estimator.rows(x)), expected)
    assert not hasattr(clone(estimator), "bundle_")
    with pytest.raises(NotFittedError):
        clone(estimator).predict(x)


def test_the_picture_of_a_row_is_in_the_units_of_the_arrays(fitted: Any) -> None:
    estimator, x, _ = fitted
    figure = estimator.explain(x, number=3)
    assert "image – missing" in [text.get_text() for text in figure.texts]
    new = estimator.predictor_.read(estimator.rows(x))
    table = estimator.predictor_.data.modalities[1]
    assert isinstance(new, NewRows)
    cells = estimator.predictor_.cells_of(new.arrays["upper"], table).to_numpy()
    seen = ~np.isnan(x["upper"])
    np.testing.assert_allclose(cells[seen], x["upper"][seen], atol=1e-4)


def test_the_picture_without_selection_shows_recoveries_where_the_method_reads_them() -> None:
    x, y = digits()
    small: dict[str, Any] = {"max_epochs": 1, "batch_size": 30}
    filled = IncompleteClassifierEstimator(
        "Multimodal_CONCAT", "Mean", overrides={"model.use_imputer": "true"}, **small
    ).fit(x, y)
    texts = [text.get_text() for text in filled.explain(x, number=3).texts]
    lacking = [text for text in texts if text.endswith("missing")]
    assert "image – missing" in lacking and texts.count("recovered, used") == len(lacking)
    plain = IncompleteClassifierEstimator("QMF", **small).fit(x, y)
    texts = [text.get_text() for text in plain.explain(x, number=3).texts]
    assert [text for text in texts if text.endswith("missing")] == lacking
    assert not any("recovered" in text for text in texts)


def test_a_data_frame_with_image_paths_levels_and_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(36) % 3
    names: list[Any] = []
    for i in range(36):
        pixels = rng.integers(0, 60, (20, 20, 3)).astype(np.uint8)
        pixels[..., y[i]] += 150
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        names.append(None if i % 5 == 4 else f"{i}.png")
    frame = pd.DataFrame(
        {
            "photo": names,
            "site": np.where(y == 0, "arm", np.where(rng.random(36) < 0.3, None, "leg")),
            "size": np.where(rng.random(36) < 0.2, np.nan, 10.0 * y),
        }
    )
    estimator = IncompleteClassifierEstimator(
        "ModDrop", image_columns=["photo"], image_folder=tmp_path, max_epochs=15, batch_size=8
    ).fit(frame, y)
    assert estimator.feature_names_in_.tolist() == ["photo", "site", "size"] and estimator.n_features_in_ == 3
    assert estimator.inputs_.specs["table"] == {
        "kind": "table", "levels": {"site": ["arm", "leg"]}, "numbers": ["size"],
    }  # fmt: skip
    assert estimator.score(frame, y) > 0.8
    unseen = frame.assign(site="head")
    expected = estimator.predict_proba(frame.assign(site=None))
    np.testing.assert_allclose(estimator.predict_proba(unseen), expected, atol=1e-6)
    with pytest.raises(UserError, match=r"column 'photo': 1 of 29 images cannot be read, the first is gone\.png"):
        estimator.predict(frame.assign(photo=["gone.png", *names[1:]]))


def test_grid_search_and_pipeline() -> None:
    x, y = blobs(60)
    model = IncompleteClassifierEstimator("ModDrop", max_epochs=8)
    grid = {"classifier__overrides": [["dataset.training_defaults.lr=1e-6"], {"model.module.layers": 1}]}
    steps = make_pipeline(StandardScaler(), model)
    steps.steps[-1] = ("classifier", model)
    search = GridSearchCV(steps, grid, cv=2, error_score="raise").fit(x, y)
    assert search.best_params_ == {"classifier__overrides": {"model.module.layers": 1}}
    assert search.best_score_ > 0.8 > search.cv_results_["mean_test_score"][0]


def test_inputs_by_name_are_cross_validated_by_rows() -> None:
    x, y = digits()
    rows = ArrayRows(**x)
    half = rows[np.arange(60) < 30]
    assert half.shape == (30,) and list(half) == list(x) and len(half["image"]) == 30
    np.testing.assert_array_equal(half["lower"], x["lower"][:30])
    model = IncompleteClassifierEstimator("ModDrop", max_epochs=20, batch_size=8)
    scores = cross_val_score(model, rows, y, cv=StratifiedKFold(2), error_score="raise")
    assert scores.min() > 0.6


def test_the_seed_decides_and_the_callers_generators_stay() -> None:
    x, y = blobs(30)
    np.random.seed(5)  # noqa: NPY002
    state = np.random.get_state()[1].tolist()  # noqa: NPY002
    first, again = (IncompleteClassifierEstimator("ModDrop", max_epochs=2).fit(x, y).predict_proba(x) for _ in "ab")
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002
    np.testing.assert_array_equal(first, again)
    other = IncompleteClassifierEstimator("ModDrop", max_epochs=2, random_state=1).fit(x, y).predict_proba(x)
    assert np.abs(other - first).max() > 1e-3
    drawn = IncompleteClassifierEstimator("ModDrop", max_epochs=2, random_state=np.random.RandomState(3))
    assert drawn.fit(x, y).predict_proba(x).shape == (30, 3)


def test_bad_arrays_and_settings_say_what_to_do() -> None:
    x, y = blobs(12)
    model = IncompleteClassifierEstimator("ModDrop", max_epochs=1)
    with pytest.raises(UserError, match=r"'a' has the shape \(12, 5, 20, 20\): give a table"):
        model.fit({"a": np.zeros((12, 5, 20, 20), dtype=np.uint8)}, y)
    with pytest.raises(UserError, match=r"images 'a' have values from 0 to 7: give uint8, or numbers in \[0, 1\]"):
        model.fit({"a": np.full((12, 20, 20), 7.0) * (y > 0)[:, None, None]}, y)
    with pytest.raises(ValueError, match="images 'a' have 8x8 pixels: enlarge them to 16x16"):
        model.fit({"a": np.zeros((12, 8, 8), dtype=np.uint8)}, y)
    with pytest.raises(ValueError, match="X has 12 rows, y has 11 labels"):
        model.fit({"a": x}, y[:-1])
    with pytest.raises(UserError, match="inputs differ in their number of rows"):
        model.fit({"a": x, "b": x[1:]}, y)
    with pytest.raises(ValueError, match="nothing is observed in any row of class 1"):
        model.fit(np.where((y == 1)[:, None], np.nan, x), y)
    with pytest.raises(UserError, match=r"image_columns names 'photo', the data frame has no such column"):
        clone(model).set_params(image_columns=["photo"]).fit(pd.DataFrame(x), y)
    with pytest.raises(UserError, match=r"model\.module\.widht"):
        clone(model).set_params(overrides=["model.module.widht=3"]).fit(x, y)
    for override, instead in (("imputer=Mean", ", use the argument imputer"), ("stages=[fit]", "")):
        with pytest.raises(ValueError, match=rf"overrides: {re.escape(override)} cannot be set there{instead}"):
            clone(model).set_params(overrides=[override]).fit(x, y)
    for name in ("a.b", "target", "two words"):
        with pytest.raises(UserError, match=f"input '{name}': rename it"):
            model.fit({name: x}, y)
    with pytest.raises(UserError, match="a class, level or column is named"):
        model.fit(x, np.where(y, "a", "${b}"))
    with pytest.raises(UserError, match=r"dataset\.validation=1\.0: must be a share"):
        clone(model).set_params(validation_fraction=1.0).fit(x, y)
    model.fit({"a": x, "b": np.zeros((12, 16, 16, 3), dtype=np.uint8)}, y)
    with pytest.raises(UserError, match="unknown input 'c': the model takes a, b"):
        model.predict({"a": x, "c": x})
    with pytest.raises(UserError, match=r"images 'b' have the shape \(3, 20, 20\), in training \(3, 16, 16\)"):
        model.predict({"b": np.zeros((2, 3, 20, 20), dtype=np.uint8)})


def test_columns_of_numbers_and_of_levels() -> None:
    frame = pd.DataFrame(
        {
            "number": [1.5, None, 3.0],
            "whole": [1, 2, 3],
            "truth": [True, False, True],
            "objects": pd.Series([1, None, 2.5], dtype=object),
            "digits": ["1", "2", None],
            "mixed": pd.Series([1, "two", None], dtype=object),
            "category": pd.Categorical([1, 2, 1]),
        }
    )
    assert [is_number(frame[column]) for column in frame] == [True, True, True, True, False, False, False]
    inputs = ArrayInputs({"labs": frame}, ImageFiles())
    assert inputs.specs["labs"]["levels"] == {"digits": ["1", "2"], "mixed": ["1", "two"], "category": ["1", "2"]}
    expected = [[0, 0, 0, 1.5, 1, 1, 1], [1, 1, 1, np.nan, 2, 0, np.nan], [np.nan, np.nan, 0, 3, 3, 1, 2.5]]
    np.testing.assert_array_equal(inputs.arrays({"labs": frame[frame.columns[::-1]]})["labs"], expected)

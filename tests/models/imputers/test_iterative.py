"""IMI against scikit-learn's IterativeImputer, and the whole stage."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer
from torch import Tensor

from datasets.batch import Batch, Modality
from models.imputers.iterative import IMI, Forest
from tests.networks import CELLS, LEVELS, random_table
from tests.tiny_tables import content, tiny_config
from trainers import run as pipeline
from trainers.loading import Run
from utils.errors import UserError

VIEWS = [Modality("img", "image", (1,)), Modality("tabular", "table", (CELLS,), LEVELS)]
TREES = 12


def batch(table: Tensor, missing: Tensor | None = None) -> Batch:
    n = len(table)
    mask = torch.zeros(n, 2, dtype=torch.bool) if missing is None else missing
    return Batch({"img": torch.zeros(n, 1), "tabular": table}, mask, torch.zeros(n).long(), torch.arange(n))


def tables() -> tuple[Tensor, Tensor]:
    """Training and test rows whose columns tell of each other."""
    return tuple(torch.from_numpy(content(n, seed)["tabular"]) for n, seed in ((150, 0), (60, 1)))


@pytest.fixture(scope="module")
def fitted() -> IMI:
    imputer = IMI(VIEWS, max_iter=4, trees=TREES)
    train, _ = tables()
    imputer.fit([batch(train[:70]), batch(train[70:])])
    return imputer


def some_cells(rows: int, seed: int = 0) -> Tensor:
    """(rows, 6) bool, from no cell to all of them."""
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.rand(rows, CELLS, generator=generator).argsort(1).argsort(1)
    return ranks < (torch.arange(rows) % (CELLS + 1))[:, None]


MASKED = torch.tensor([[False, True]])


def test_equals_scikit_learn(fitted: IMI) -> None:
    """Its transform with the models of the complete training table, repeated for every round."""
    train, test = tables()
    cells = some_cells(60)
    actual = fitted.impute(batch(test).inputs, MASKED.expand(60, 2), None, {"tabular": cells})["tabular"]
    holes = torch.where(cells, torch.nan, test).double().numpy()
    blocks = []
    for columns, estimator, strategy in (
        (slice(0, 3), RandomForestClassifier(TREES, random_state=42), "most_frequent"),
        (slice(3, 6), None, "mean"),
    ):
        theirs = IterativeImputer(estimator, max_iter=1, random_state=42, initial_strategy=strategy)
        theirs.fit(train[:, columns].double().numpy())
        theirs.imputation_sequence_, theirs.n_iter_ = theirs.imputation_sequence_ * 4, 4
        blocks.append(theirs.transform(holes[:, columns]))
    expected = torch.from_numpy(np.concatenate(blocks, axis=1)).float()
    assert torch.equal(actual[:, :3], expected[:, :3])
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(actual[~cells], test[~cells])
    # It reads the other columns: better than the start values.
    start = torch.from_numpy(fitted.start["tabular"]).float().expand_as(test)
    partly = cells & ~cells.all(1)[:, None]
    error, guess = ((x - test)[:, 3:][partly[:, 3:]].square().mean() for x in (actual, start))
    assert error < 0.4 * guess
    right, lucky = ((x == test)[:, :3][partly[:, :3]].double().mean() for x in (actual, start))
    assert right > lucky + 0.08


def test_rounds_change_and_then_settle(fitted: IMI) -> None:
    _, test = tables()
    cells = some_cells(60)
    results = []
    for rounds in (1, 100, 400):
        fitted.max_iter = rounds
        results.append(fitted.impute(batch(test).inputs, MASKED.expand(60, 2), None, {"tabular": cells})["tabular"])
    fitted.max_iter = 4
    assert not torch.equal(results[0], results[1])
    torch.testing.assert_close(results[1], results[2])


def test_forest_equals_scikit_learn() -> None:
    """Also where votes are split and classes are no counting numbers."""
    x, y = load_iris(return_X_y=True)
    forest = RandomForestClassifier(9, max_depth=3, random_state=1).fit(x, y * 2 + 5)
    grid = np.random.default_rng(0).uniform(x.min(0), x.max(0), size=(3000, 4))
    assert np.array_equal(Forest.of(forest).predict(grid), forest.predict(grid))
    assert len(set(forest.predict(grid))) == 3


JUNK = st.sampled_from([math.nan, math.inf, -1e30, -3.0, 77.0])


@settings(deadline=None, max_examples=20, derandomize=True)
@given(st.lists(JUNK, min_size=8 * CELLS, max_size=8 * CELLS), st.integers(0, 50), st.booleans())
def test_content_of_missing_cells_is_never_read(values: list[float], seed: int, entry: bool) -> None:
    imputer = _quick()
    table, cells = random_table(8, seed), some_cells(8, seed)
    missing = MASKED.expand(8, 2).clone()
    missing[0] = False
    hidden = {"tabular": cells} if entry else None
    absent = missing[:, 1:] & (cells if entry else torch.ones_like(cells))
    junk = torch.where(absent, torch.tensor(values).view(8, CELLS), table)
    one, other = (imputer.impute(batch(x).inputs, missing, None, hidden)["tabular"] for x in (table, junk))
    assert torch.equal(one, other) and one.isfinite().all()
    assert torch.equal(one[~absent], table[~absent])
    for row in range(8):  # rows do not depend on their batch
        part = slice(row, row + 1)
        cell = {"tabular": cells[part]} if entry else None
        alone = imputer.impute(batch(table[part]).inputs, missing[part], None, cell)["tabular"]
        torch.testing.assert_close(alone, one[part], rtol=1e-6, atol=1e-6)


_QUICK: list[IMI] = []


def _quick() -> IMI:
    if not _QUICK:
        _QUICK.append(IMI(VIEWS, max_iter=2, trees=3, max_rows=60))
        _QUICK[0].fit([batch(tables()[0])])
    return _QUICK[0]


@pytest.mark.parametrize(("levels", "n"), [((4,), 3), ((), 3), ((3, 2), 2), ((3, 2), 3)])
def test_blocks_of_one_column_and_of_none(levels: tuple[int, ...], n: int) -> None:
    """With nothing to predict from, the start values stay."""
    views = [Modality("tabular", "table", (n,), levels)]
    codes = [torch.randint(k, (40, 1), generator=torch.Generator().manual_seed(k)).float() for k in levels]
    table = torch.cat([*codes, torch.randn(40, n - len(levels), generator=torch.Generator().manual_seed(0))], 1)
    imputer = IMI(views, max_iter=2, trees=2)
    missing = torch.zeros(40, 1, dtype=torch.bool)
    imputer.fit([Batch({"tabular": table}, missing, missing[:, 0].long(), torch.arange(40))])
    actual = imputer.impute({"tabular": table}, ~missing)["tabular"]
    assert actual.shape == table.shape and actual.isfinite().all()
    if len(levels) == 1:
        assert (actual[:, 0] == table[:, 0].mode().values).all()
    if n - len(levels) == 1:
        torch.testing.assert_close(actual[:, -1], table[:, -1].mean().expand(40))


def test_state_is_plain_tensors_and_reads_back(fitted: IMI, tmp_path: Path) -> None:
    torch.save(fitted.state_dict(), tmp_path / "imi.ckpt")
    state = torch.load(tmp_path / "imi.ckpt", weights_only=True)
    fresh = IMI(VIEWS, max_iter=4)
    fresh.load_state_dict(state)
    inputs, cells = batch(tables()[1]).inputs, {"tabular": some_cells(60)}
    actual, expected = (m.impute(inputs, MASKED.expand(60, 2), None, cells)["tabular"] for m in (fresh, fitted))
    assert torch.equal(actual, expected)
    with pytest.raises(ValueError, match=r"of \{'tabular': 6\} columns but of \{'tabular': 0\}"):
        fresh.load_state_dict({"m0": torch.zeros(3)})
    del state["tabular.1.root"]
    with pytest.raises(ValueError, match=r"no complete model in tabular\.1"):
        fresh.load_state_dict(state)


def test_what_it_cannot_do_is_refused() -> None:
    missing = torch.tensor([[True, False], [False, True]])
    with pytest.raises(UserError, match="IMI cannot recover 'img', which is missing in 1 rows"):
        _quick().impute(batch(random_table(2)).inputs, missing)
    with pytest.raises(UserError, match="the data set has none"):
        IMI(VIEWS[:1])
    table = random_table(5)
    table[3, 4] = math.nan
    with pytest.raises(UserError, match="row 3, column 4 of 'tabular' is not finite"):
        IMI(VIEWS).fit([batch(table)])


class Own(IMI):
    """A method of a user's."""


def test_a_fitted_method_of_any_name_is_fitted_before_it_recovers(tmp_path: Path) -> None:
    options = ["imputer=IMI", "imputer.name=Own", "imputer.module._target_=tests.models.imputers.test_iterative.Own"]
    options += ["imputer.module.trees=2", "imputer.module.max_rows=30"]
    with pytest.raises(UserError, match=r"no trained Own at .*best\.ckpt: run .*impute"):
        pipeline.run(tiny_config(tmp_path, *options, "stages=[prepare,test]"))
    cfg = tiny_config(tmp_path, *options, "stages=[prepare,impute]")
    pipeline.run(cfg)
    assert Run(cfg).load_imputer().start


def test_quality_is_measured_again_when_recoveries_are_made_otherwise(tmp_path: Path) -> None:
    """The number of rounds is no part of what is fitted."""
    options = ["imputer=IMI", "imputer.module.trees=2", "imputer.module.max_rows=30"]
    values, times = [], set()
    for rounds in (1, 5, 5):
        cfg = tiny_config(tmp_path, *options, f"imputer.module.max_iter={rounds}", "stages=[prepare,impute]")
        pipeline.run(cfg)
        context = Run(cfg)
        quality = pd.read_csv(context.imputer_directory / "quality.csv").set_index(["modality", "metric"])["value"]
        values.append(quality["tabular", "mse_cells"])
        times.add(context.imputer_checkpoint.stat().st_mtime_ns)
    assert len(times) == 1 and values[0] != values[1] == values[2]


def test_stages_from_fitting_to_selection(tmp_path: Path) -> None:
    """Fitted once, kept as a file, skipped when it is there, refused when it is another's."""
    options = ["imputer=IMI", "imputer.module.trees=5", "model.backbone.training.max_epochs=1"]
    cfg = tiny_config(tmp_path, *options, "stages=[prepare,impute,fit,gaussian,test]")
    pipeline.run(cfg)
    context = Run(cfg)
    file = context.imputer_checkpoint
    written = file.stat().st_mtime_ns
    quality = pd.read_csv(context.imputer_directory / "quality.csv").set_index(["modality", "metric"])["value"]
    assert quality["tabular", "mse_cells"] < 0.6 * quality["tabular", "mse"]
    results = pd.read_csv(context.directory / "results.csv")
    assert set(results.scenario) == {"none", "whole_1"} and np.isfinite(results["value"]).all()
    pipeline.run(tiny_config(tmp_path, *options, "stages=[impute]"))
    assert file.stat().st_mtime_ns == written
    torch.save({"state_dict": {"m0": torch.zeros(3)}}, tmp_path / "other.ckpt")
    wrong = tiny_config(tmp_path, *options, f"imputer.checkpoint={tmp_path / 'other.ckpt'}", "stages=[impute]")
    with pytest.raises(UserError, match=r"other\.ckpt does not hold an iterative imputer"):
        pipeline.run(wrong)

"""Table masks: TIP's bit for bit, rankings, names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier

from datasets.missingness import Rows, mask_hash, parse_scenario, parse_scenarios
from datasets.missingness.table import FOREST_SEED, Table, forest_ranking, table_mask
from utils.errors import UserError


@pytest.mark.parametrize(
    ("n", "features", "split", "rate", "total", "rows"),
    [  # docs/reference/datasets.md §14.1
        (88_207, 17, 2, 0.1, 149_951, {0: [4, 14, 15], 3: [6, 7, 16]}),
        (70_565, 17, 0, 0.1, 119_960, {0: [4, 6]}),
        (3_482, 75, 0, 0.1, 26_115, {0: [3, 7, 15, 22, 28, 31, 45, 51, 56]}),
        (3_617, 75, 2, 0.1, 27_127, {0: [6, 16, 37, 41, 45, 50, 51, 57, 67, 69, 72]}),
    ],
)
def test_value_masks_are_those_of_tip(n: int, features: int, split: int, rate: float, total: int, rows: dict) -> None:
    scenario = parse_scenario(f"table_value_{rate}")
    mask = scenario.generate(Rows(n, features, scenario.seed(2025, split)))
    assert mask.shape == (n, features) and mask.dtype == bool and mask.sum() == total
    for row, columns in rows.items():
        assert np.flatnonzero(mask[row]).tolist() == columns


def test_value_masks_at_a_high_rate_may_empty_a_row() -> None:
    mask = table_mask(88_207, 17, "value", 0.9, 2023)
    assert mask.sum() == 1_349_567 and mask.all(1).sum() == 14_708


def test_small_value_masks() -> None:
    small = {2021: ["00111", "00011", "10000", "01001"], 2023: ["00001", "00001", "11011", "10100"]}
    for seed, rows in small.items():
        mask = table_mask(4, 5, "value", 0.4, seed)
        assert ["".join(map(str, row)) for row in mask.astype(int)] == rows


@pytest.mark.parametrize(
    ("features", "rate", "columns"),
    [
        (17, 0.1, [4]),
        (17, 0.3, [3, 4, 6, 9, 11]),
        (17, 0.5, [3, 4, 5, 6, 9, 11, 12, 16]),
        (17, 0.7, [2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 16]),
        (17, 0.9, [c for c in range(17) if c not in (0, 13)]),
        (75, 0.1, [1, 6, 7, 25, 35, 42, 56]),
        (75, 0.3, [1, 3, 4, 6, 7, 9, 22, 25, 34, 35, 36, 42, 46, 47, 56, 65, 68, 70, 71, 72, 73, 74]),
    ],
)
def test_feature_masks_are_those_of_tip_in_every_split(features: int, rate: float, columns: list[int]) -> None:
    scenario = parse_scenario(f"table_feature_{rate}")
    for split in range(3):
        mask = scenario.generate(Rows(5, features, scenario.seed(2025, split)))
        assert [np.flatnonzero(row).tolist() for row in mask] == [columns] * 5


def test_importance_masks_take_the_first_columns_of_the_ranking_or_the_last() -> None:
    """int(N r) columns: 1, 5, 8, 11, 15 of 17 and 7, 22, 37, 52, 67 of 75 (docs/reference/datasets.md §12.3)."""
    for features, counts in ((17, [1, 5, 8, 11, 15]), (75, [7, 22, 37, 52, 67])):
        ranking = np.random.default_rng(0).permutation(features).tolist()
        for rate, k in zip((0.1, 0.3, 0.5, 0.7, 0.9), counts):
            most, least = (Table(rate, s).generate(Rows(3, features, ranking=ranking)) for s in ("MI", "LI"))
            assert [set(np.flatnonzero(row)) for row in most] == [set(ranking[:k])] * 3
            assert [set(np.flatnonzero(row)) for row in least] == [set(ranking[features - k :])] * 3


def test_the_ranking_is_that_of_a_whole_forest() -> None:
    x, y = load_digits(return_X_y=True)
    forest = RandomForestClassifier(random_state=FOREST_SEED).fit(x, y)
    assert forest_ranking(x, y) == np.argsort(-forest.feature_importances_, kind="stable").tolist()


def test_the_forest_puts_what_decides_first() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 4))
    y = (x[:, 2] + 0.3 * x[:, 0] > 0).astype(np.int64)
    assert forest_ranking(x, y)[:2] == [2, 0]
    assert forest_ranking(x, np.stack([y, np.where(x[:, 2] > 0, 1, -1)], 1))[0] == 2


def test_another_seed_gives_other_masks_and_splits_differ() -> None:
    scenario = parse_scenario("table_value_0.5")
    assert [scenario.seed(2025, s) for s in range(3)] == [2021, 2022, 2023]
    assert parse_scenario("table_feature_0.5").seed(2026, 2) == 2023
    assert (
        len({mask_hash(scenario.generate(Rows(9, 7, scenario.seed(b, s)))) for b in (0, 2025) for s in range(3)}) == 6
    )


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("table_value_0.70", "table_value_0.7"),
        ("table_feature_0.25", "table_feature_0.25"),
        ("table_most_important_0.5", "table_MI_0.5"),
        ("table_LI_0.5", "table_LI_0.5"),
        ("table_value_1", "table_value_1"),
        ({"kind": "table", "strategy": "least_important", "rate": 0.1}, "table_LI_0.1"),
    ],
)
def test_names_of_table_scenarios(spec: Any, name: str) -> None:
    scenario = parse_scenario(spec)
    assert (scenario.name, scenario.kind, scenario.slug) == (name, "table", name)
    assert parse_scenario(scenario.name) == scenario and scenario.hides_cells


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("table_valeu_0.5", "unknown strategy 'valeu', known are value, feature"),
        ("table_value_1.1", "the rate 1.1 is outside [0, 1]"),
        ("table_value_", "'' is not a rate; write for example table_value_0.7"),
        ({"kind": "table", "rte": 1}, "unknown key 'rte'"),
    ],
)
def test_bad_table_scenarios_are_named(spec: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_scenarios([spec], 2)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_names_of_the_original_files() -> None:
    stem = "dvm_features_test_noOH_all_views_physical_jittered_50_reordered"
    assert Table(0.3).file_name(stem, "dvm") == f"{stem}_dvm_value_0.3.npy"

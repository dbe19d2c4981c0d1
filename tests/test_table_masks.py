"""Table missingness: TIP's masks bit for bit, names, cells beside modality masks, natural gaps."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier

from datasets.base import MultimodalDataModule
from datasets.batch import Batch, Modality, hide
from datasets.loader import PackedLoader
from datasets.missingness import Rows, mask_hash, parse_scenario, parse_scenarios, save_mask
from datasets.missingness.mask_files import read_tip_npy
from datasets.missingness.table import FOREST_SEED, Table, forest_ranking, table_mask
from models.base import IncompleteClassifier, Prediction
from trainers.evaluate import predict
from utils.errors import UserError

# ------------------------------------------------------------------------------------------------------ golden values


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


# -------------------------------------------------------------------------------------------------------------- names


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


def test_bad_mask_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "m.npy"

    def refused(content: np.ndarray | bytes, message: str) -> None:
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            np.save(file, content)
        with pytest.raises(UserError, match=message):
            read_tip_npy(file, 4, 3)

    refused(np.zeros((4, 2), dtype=bool), "4 rows and 2 columns, the split has 4 and the table 3")
    refused(np.full((4, 3), 0.5), "no matrix of booleans")
    refused(np.zeros(12, dtype=bool), "no matrix of booleans")
    refused(b"True,False\n", "no NumPy array")
    with pytest.raises(UserError, match="does not exist"):
        read_tip_npy(tmp_path / "absent.npy", 4, 3)


# ------------------------------------------------------------------------------------- masks of a data set, and batches


class Tiny(MultimodalDataModule):
    """One image, one table of five columns; some cells of the test split are not there."""

    name = "Tiny"
    modalities = [Modality("img", "image", (1, 2, 2)), Modality("tab", "table", (5,), (3, 2), tuple("abcde"))]
    class_names = ["no", "yes"]
    task = "binary"

    def fill(
        self,
        gaps: np.ndarray | None = None,
        n: int = 40,
        absent: np.ndarray | None = None,
        absent_name: str = "img",
    ) -> Tiny:
        rng = np.random.default_rng(0)
        splits = {}
        for split in ("train", "val", "test"):
            target = rng.integers(0, 2, n)
            table = rng.normal(size=(n, 5)).astype(np.float32)
            table[:, 3] += 4 * target
            splits[split] = {
                "img": rng.integers(0, 256, (n, 1, 2, 2)).astype(np.uint8),
                "tab": table,
                "target": target.astype(np.int64),
            }
        if gaps is not None:
            splits["test"]["tab_missing"] = gaps
        if absent is not None:
            splits["test"][f"{absent_name}_absent"] = absent
        self.store.write(splits, {})
        return self


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return Tiny(str(tmp_path / "store"))


def test_a_table_scenario_marks_rows_with_a_missing_cell(tiny: Tiny) -> None:
    tiny.fill()
    missing, cells = tiny.masks("test", parse_scenario("table_value_0.3"))
    assert np.array_equal(cells["tab"], table_mask(40, 5, "value", 0.3, 2023))
    assert not missing[:, 0].any() and np.array_equal(missing[:, 1], cells["tab"].any(1))
    assert 0 < missing[:, 1].sum() < 40
    assert tiny.masks("test", parse_scenario("whole_1"))[1] == {}
    # The fourth column holds the label.
    assert tiny.column_ranking(tiny.modalities[1])[0] == 3
    most, least = (tiny.masks("val", parse_scenario(f"table_{s}_0.2"))[1]["tab"] for s in ("MI", "LI"))
    assert most[:, 3].all() and most.sum() == 40 and not least[:, 3].any()
    assert json.loads((tiny.store.folder / "train" / "tab_ranking.json").read_text())[0] == 3


def test_an_original_mask_file_is_used_as_it_is(tiny: Tiny, tmp_path: Path) -> None:
    tiny.fill()
    file = tmp_path / "stem_dvm_value_0.3.npy"
    mask = np.random.default_rng(0).random((40, 5)) < 0.3
    np.save(file, mask)
    (scenario,) = parse_scenarios([f"file:{file}"], 2)
    assert scenario.slug == "file_stem_dvm_value_0.3"
    missing, cells = tiny.masks("test", scenario)
    assert np.array_equal(cells["tab"], mask) and np.array_equal(missing[:, 1], mask.any(1))


def test_a_data_set_without_a_table_refuses_table_scenarios(composed) -> None:
    from trainers.config.build import build_data

    data = build_data(composed())
    data.prepare()
    with pytest.raises(UserError, match="hides cells of a table, but PolyMNIST has no table"):
        data.mask("test", parse_scenario("table_value_0.3"))


def natural() -> np.ndarray:
    gaps = np.zeros((40, 5), dtype=bool)
    gaps[:10, 2] = True
    gaps[3, :4] = True
    return gaps


def test_natural_gaps_are_missing_under_every_scenario(tiny: Tiny) -> None:
    gaps = natural()
    tiny.fill(gaps)
    missing, cells = tiny.masks("test", parse_scenario("none"))
    assert np.array_equal(cells["tab"], gaps) and np.array_equal(missing, np.stack([0 * gaps[:, 0], gaps.any(1)], 1))
    missing, cells = tiny.masks("test", parse_scenario("whole_1"))
    assert missing[:, 1].all() and cells["tab"].all() and not missing[:, 0].any()
    missing, cells = tiny.masks("test", parse_scenario("table_value_0.3"))
    assert np.array_equal(cells["tab"], gaps | table_mask(40, 5, "value", 0.3, 2023))
    # The other splits have no gaps.
    assert tiny.masks("val", parse_scenario("none"))[1] == {}


def test_a_row_that_has_only_its_incomplete_table_keeps_it_with_its_gaps(tiny: Tiny) -> None:
    gaps = natural()
    tiny.fill(gaps)
    for name, without in (("whole_0", np.ones(40, bool)), ("nested_0_0.5", None), ("nested_0_1", np.ones(40, bool))):
        missing, cells = tiny.masks("test", parse_scenario(name))
        assert np.array_equal(cells["tab"], gaps) and np.array_equal(missing[:, 1], gaps.any(1)), name
        assert missing[:, 0].sum() == 20 if without is None else np.array_equal(missing[:, 0], without)
    assert missing.all(1).sum() == 10 and not cells["tab"][missing.all(1)].all(1).any()
    gaps[7] = True
    tiny.fill(gaps)
    tiny._splits.clear()
    with pytest.raises(UserError, match=r"'whole_0' leaves nothing in 1 rows of split 'test' \(the first is 7\)"):
        tiny.masks("test", parse_scenario("whole_0"))
    assert tiny.masks("test", parse_scenario("none"))[0][7].tolist() == [False, True]


@pytest.mark.parametrize("with_gaps", [False, True])
def test_a_row_that_the_source_gives_no_image_is_under_a_scenario_of_cells_too(
    tiny: Tiny, caplog: pytest.LogCaptureFixture, with_gaps: bool
) -> None:
    """All its cells but where none would be left: then those of its source."""
    gaps = natural() if with_gaps else np.zeros((40, 5), dtype=bool)
    imageless = np.arange(40) % 3 == 0
    tiny.fill(gaps if with_gaps else None, absent=imageless)
    wanted = gaps | table_mask(40, 5, "value", 0.8, 2023)
    emptied = wanted.all(1) & imageless
    assert emptied.sum() > 2 and (wanted.all(1) & ~imageless).any()
    with caplog.at_level(logging.INFO):
        missing, cells = tiny.masks("test", parse_scenario("table_value_0.8"))
    assert f"{emptied.sum()} rows keep the only modality that they have" in caplog.text
    assert np.array_equal(cells["tab"], np.where(emptied[:, None], gaps, wanted))
    assert np.array_equal(missing, np.stack([imageless, cells["tab"].any(1)], 1))
    # Hidden as a whole, it is kept as a whole, with the gaps of its source.
    missing, cells = tiny.masks("test", parse_scenario("whole_1"))
    assert np.array_equal(missing, np.stack([imageless, ~imageless | gaps.any(1)], 1))
    if with_gaps:
        assert np.array_equal(cells["tab"], np.where(imageless[:, None], gaps, True))


def test_a_table_that_the_source_never_had_has_no_cells(tiny: Tiny) -> None:
    gaps, tableless = natural(), np.arange(40) % 4 == 0
    tiny.fill(gaps, absent=tableless, absent_name="tab")
    for name in ("none", "table_value_0.3"):
        missing, cells = tiny.masks("test", parse_scenario(name))
        assert cells["tab"][tableless].all() and missing[tableless, 1].all() and not missing[:, 0].any()
        assert not cells["tab"][~tableless].all(1).any()
    missing, _ = tiny.masks("test", parse_scenario("whole_0"))
    assert np.array_equal(missing[:, 0], ~tableless)


def test_a_table_alone_keeps_what_cells_it_has(tmp_path: Path) -> None:
    class Alone(Tiny):
        modalities = Tiny.modalities[1:]

    data = Alone(str(tmp_path / "alone")).fill()
    missing, cells = data.masks("test", parse_scenario("table_value_0.1"))
    assert np.array_equal(missing[:, 0], cells["tab"].any(1)) and missing.any()
    with pytest.raises(UserError, match="leaves nothing in"):
        data.masks("test", parse_scenario("table_value_0.7"))


def test_batches_carry_the_cells_of_their_rows(tiny: Tiny) -> None:
    tiny.fill(natural())
    loader = tiny.loader("test", parse_scenario("none"), train=True, batch_size=16)
    assert isinstance(loader, PackedLoader) and not loader.complete
    seen = 0
    for batch in loader:
        rows = batch.index.numpy()
        assert np.array_equal(batch.feature_missing["tab"].numpy(), natural()[rows])
        assert torch.equal(batch.to("cpu").feature_missing["tab"], batch.feature_missing["tab"])
        seen += len(batch)
    assert seen == 40
    assert next(iter(tiny.loader("test"))).feature_missing == {}


def test_only_marked_cells_of_marked_tables_are_hidden() -> None:
    inputs = {"img": torch.full((3, 1, 2, 2), 7.0), "tab": torch.full((3, 4), 7.0)}
    inputs["tab"][1, 0] = float("nan")
    missing = torch.tensor([[False, False], [False, True], [True, True]])
    gone = torch.tensor([[True] * 4, [True, False, True, False], [False, False, False, True]])
    hidden = hide(inputs, missing, {"tab": gone})
    assert hidden["tab"].tolist() == [[7] * 4, [0, 7, 0, 7], [7, 7, 7, 0]]
    assert hidden["img"].flatten(1)[:, 0].tolist() == [7, 7, 0]
    assert hide(inputs, missing)["tab"].tolist() == [[7] * 4, [0] * 4, [0] * 4]


class CellSum(IncompleteClassifier):
    """Logit 1 is the sum of the visible cells: shows which cells a prediction was made from."""

    def forward(self, batch: Batch) -> Prediction:
        shown = batch.observed()
        return Prediction(torch.stack([shown["img"].flatten(1).sum(1), shown["tab"].sum(1)], 1))


def test_predictions_are_made_from_the_visible_cells_of_each_scenario(tiny: Tiny) -> None:
    tiny.fill()
    scenarios = [parse_scenario(s) for s in ("none", "whole_1", "table_value_0.3", "table_feature_0.5")]
    both = {s.name: tiny.masks("test", s) for s in scenarios}
    masks, cells = {k: v[0] for k, v in both.items()}, {k: v[1] for k, v in both.items()}
    loader = tiny.loader("test", batch_size=7)
    out = predict(CellSum(tiny.modalities, 2, "binary"), loader, masks, cells, progress=False)[""]
    table = tiny.split("test").read("tab").numpy()
    expected = {
        "none": table.sum(1),
        "whole_1": np.zeros(40),
        **{s.name: np.where(cells[s.name]["tab"], 0, table).sum(1) for s in scenarios[2:]},
    }
    for name, values in expected.items():
        np.testing.assert_allclose(out[name]["logits"][:, 1], values, atol=1e-5)
        assert np.array_equal(out[name]["missing"], masks[name])


def test_saved_masks_hold_the_cells(tmp_path: Path) -> None:
    scenario = parse_scenario("table_value_0.4")
    cells = {"tab": table_mask(4, 5, "value", 0.4, 2023)}
    cells["tab"][0] = True
    missing = np.stack([np.zeros(4, bool), cells["tab"].any(1)], 1)
    digest = save_mask(tmp_path / scenario.slug, missing, scenario, 2023, ["img", "tab"], cells)
    stored = np.load(tmp_path / "table_value_0.4.npz")
    assert np.array_equal(stored["missing"], missing) and np.array_equal(stored["cells_tab"], cells["tab"])
    about = json.loads((tmp_path / "table_value_0.4.json").read_text())
    assert about["generator"] == "TIP value" and about["seed"] == 2023 and about["sha256_16"] == digest
    assert about["cells"]["tab"] == {
        "shape": [4, 5],
        "realised_rate": cells["tab"].mean(),
        "rows_without_a_cell": 1,
        "sha256_16": mask_hash(cells["tab"]),
    }
    other = {"tab": cells["tab"] ^ np.eye(4, 5, dtype=bool)}
    assert save_mask(tmp_path / "other", missing, scenario, 2023, ["img", "tab"], other) != digest

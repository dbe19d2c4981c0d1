"""Masks of data sets: cells beside modality masks, natural gaps, batches."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.base import MultimodalDataModule
from datasets.batch import Batch, Modality, hide
from datasets.loader import PackedLoader
from datasets.missingness import parse_scenario, parse_scenarios
from datasets.missingness.table import table_mask
from models.base import IncompleteClassifier, Prediction
from trainers.prediction import predict
from utils.errors import UserError


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
    absent = torch.tensor([[True] * 4, [True, False, True, False], [False, False, False, True]])
    hidden = hide(inputs, missing, {"tab": absent})
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
    pair = {s.name: tiny.masks("test", s) for s in scenarios}
    masks, cells = {k: v[0] for k, v in pair.items()}, {k: v[1] for k, v in pair.items()}
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

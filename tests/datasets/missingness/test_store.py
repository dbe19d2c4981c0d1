"""Stored masks: hashes and side-cars."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from datasets.missingness import Rows, mask_hash, parse_scenario, save_mask
from datasets.missingness.table import table_mask

NAMES = [f"m{i}" for i in range(5)]


def test_the_hash_tells_content_and_shape() -> None:
    mask = np.zeros((4, 6), dtype=bool)
    other = mask.copy()
    other[3, 5] = True
    hashes = [mask_hash(mask), mask_hash(other), mask_hash(mask.reshape(6, 4)), mask_hash(np.zeros((4, 5), dtype=bool))]
    assert len(set(hashes)) == 4 and all(len(h) == 16 and int(h, 16) >= 0 for h in hashes)
    assert mask_hash(mask.copy(order="F")) == hashes[0]


def test_a_saved_mask_says_how_it_was_made(tmp_path: Path) -> None:
    scenario = parse_scenario("random_global_0.4")
    mask = scenario.generate(Rows(40, 5, 2027))
    digest = save_mask(tmp_path / "masks" / scenario.slug, mask, scenario, 2027, NAMES)
    assert sorted(f.name for f in (tmp_path / "masks").iterdir()) == ["random_global_0.4.json", "random_global_0.4.npz"]
    assert np.array_equal(np.load(tmp_path / "masks" / "random_global_0.4.npz")["missing"], mask)
    assert json.loads((tmp_path / "masks" / "random_global_0.4.json").read_text()) == {
        "scenario": "random_global_0.4",
        "generator": "global",
        "seed": 2027,
        "shape": [40, 5],
        "modalities": NAMES,
        "realised_rate": mask.mean(),
        "realised_rates": dict(zip(NAMES, mask.mean(0))),
        "sha256_16": digest,
    }
    assert digest == mask_hash(mask)


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

"""Calibration of stage export on data whose rows lack content."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datasets.base import MultimodalDataModule
from datasets.batch import Batch, Modality
from datasets.missingness import parse_scenarios
from datasets.storage import PackedStore
from models.base import Method, Prediction
from trainers.export import on_validation
from utils.calibration import fit_temperature

N = 40


class Pair(MultimodalDataModule):
    """A vector and a table. Rows 0 to 2 have no cell in their table, rows 3 to 6 no vector."""

    name = "Pair"
    modalities = [Modality("vector", "table", (2,)), Modality("table", "table", (3,))]
    class_names = ["a", "b", "c"]


class PerRow(Method):
    """Logits that depend on the row and on its mask."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = torch.randn((N, 4, 3), generator=torch.Generator().manual_seed(0)) * 3

    def forward(self, batch: Batch) -> Prediction:
        return Prediction(self.logits[batch.index, batch.missing.long() @ torch.tensor([1, 2])])


@pytest.fixture
def pair(tmp_path: Path) -> SimpleNamespace:
    rng = np.random.default_rng(0)
    gaps = np.zeros((N, 3), dtype=bool)
    gaps[:3] = True
    arrays: Mapping[str, np.ndarray] = {
        "vector": rng.normal(size=(N, 2)).astype(np.float32),
        "table": rng.normal(size=(N, 3)).astype(np.float32),
        "table_missing": gaps,
        "vector_absent": np.isin(np.arange(N), [3, 4, 5, 6]),
        "target": rng.integers(0, 3, N),
    }
    PackedStore(tmp_path / "store").write({"val": arrays}, {"class_names": Pair.class_names})
    data = Pair(str(tmp_path / "store"))
    scenarios = parse_scenarios(["none", "whole_0", "whole_1"], 2)
    cfg = SimpleNamespace(trainer=SimpleNamespace(enable_progress_bar=False))
    return SimpleNamespace(data=data, scenarios=scenarios, device="cpu", cfg=cfg, target=arrays["target"])


def test_a_row_without_anything_left_is_left_out_of_a_pattern_and_no_other(pair: SimpleNamespace) -> None:
    method = PerRow()
    temperatures, scores = on_validation(pair, method)  # type: ignore[arg-type]
    no_table, no_vector = np.arange(3), np.arange(3, 7)
    together = np.arange(7, N)
    # Column of the logits: 1 = the vector is missing, 2 = the table. Without a vector only the table can be seen.
    expected = {"none": (together, 0), "0": (np.r_[together, no_vector], 1), "1": (np.r_[together, no_table], 2)}
    assert temperatures.rows == {name: len(rows) for name, (rows, _) in expected.items()}
    logits = {name: method.logits[rows, column].numpy() for name, (rows, column) in expected.items()}
    for name, (rows, _) in expected.items():
        assert temperatures.by_pattern[name] == pytest.approx(
            fit_temperature(logits[name], pair.target[rows]), rel=1e-4
        )
    # A scenario that stage test refuses is not scored: whole_0 leaves rows 0 to 2 nothing.
    assert {row["scenario"]: (row["missing_rate"], row["n"]) for row in scores} == {
        "none": (7 / (2 * N), N),
        "whole_1": (N / (2 * N), N),
    }

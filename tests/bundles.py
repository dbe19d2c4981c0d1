"""What a bundle promises, for tests of methods and of data sets: it predicts like the run that it was exported from."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from datasets.missingness import parse_scenario
from datasets.new_rows import NewRows
from trainers.bundle import write_bundle
from trainers.loading import Run
from trainers.prediction import predict, scenario_masks
from trainers.predictor import load

SCENARIO = "random_0.5"


def rows_under(run: Run, scenario: str, split: str = "test") -> NewRows:
    """The rows of a split as new rows that lack what a scenario hides."""
    packed, data = run.data.split(split), run.data
    arrays: dict[str, np.ndarray] = {}
    for m in data.modalities:
        arrays[m.name] = packed.read(m.name).numpy()
        if (counts := packed.counts(m.name)) is not None:
            arrays[f"{m.name}.counts"] = counts.numpy()
    masks, cells = scenario_masks(data, split, [parse_scenario(scenario)])
    for i, name in enumerate(data.modality_names):
        if name in cells[scenario]:
            arrays[f"{name}_missing"] = cells[scenario][name]
        elif masks[scenario][:, i].any():
            arrays[f"{name}_absent"] = masks[scenario][:, i]
    return NewRows([str(name) for name in packed.names()], arrays)


def assert_bundle_predicts_alike(run: Run, folder: Path, scenario: str = SCENARIO) -> None:
    """Export the trained method, load it elsewhere, and compare the logits of the test split."""
    masks, cells = scenario_masks(run.data, "test", [parse_scenario(scenario)])
    expected = predict(run.load_method(), run.data.loader("test"), masks, cells, progress=False)[""][scenario]
    rows = rows_under(run, scenario)
    written = write_bundle(run, folder / "written", None, [], "card", 0.0 if run.uses_selection else None)
    moved = Path(shutil.move(written, folder / "moved"))
    outputs = load(moved).outputs(rows)
    scale = max(1.0, float(np.abs(expected["logits"]).max()))
    np.testing.assert_allclose(outputs["logits"] / scale, expected["logits"] / scale, atol=1e-6, rtol=0)
    assert (outputs["missing"] == expected["missing"]).all()
    shutil.rmtree(moved)

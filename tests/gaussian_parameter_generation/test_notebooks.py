"""Both notebooks run from top to bottom on a tiny trained backbone."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from trainers import run as pipeline

ROOT = Path(__file__).resolve().parents[2]
METRICS = {"COS": "cosine_similarity", "EU": "squared_euclidean"}


@pytest.mark.parametrize("short", METRICS)
def test_notebook_runs(composed, polymnist_root: Path, tmp_path: Path, monkeypatch, short: str) -> None:
    cfg = composed(
        "model.backbone.training.max_epochs=1",
        f"distance_metric={METRICS[short]}",
        "stages=[fit]",
    )
    pipeline.run(cfg)
    overrides = ["dataset=PolyMNIST", f"dataset.root={polymnist_root}", f"paths.output={cfg.paths.output}"]
    monkeypatch.setenv("RUN_OVERRIDES", " ".join([*overrides, f"paths.cache={cfg.paths.cache}"]))
    notebook = nbformat.read(ROOT / "gaussian_parameter_generation" / f"gaussian_{short}.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "notebooks are committed without outputs"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    shown = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in shown)
    assert any("torch.Size([31, 10, 64])" in str(o.get("data", {})) for o in shown)

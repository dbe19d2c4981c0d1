"""Both notebooks run from top to bottom on a tiny trained backbone."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from trainers import run as pipeline
from trainers.config.compose import compose_config

ROOT = Path(__file__).resolve().parents[2]
METRICS = {"COS": "cosine_similarity", "EU": "squared_euclidean"}


@pytest.fixture(scope="module")
def executed(polymnist_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[NotebookNode]]:
    """Cells of each notebook, executed one after the other in one process, which takes seconds to start; the names of
    the first are forgotten before the second begins."""
    folder, cells = tmp_path_factory.mktemp("notebooks"), {}
    data = ["dataset=PolyMNIST", f"dataset.root={polymnist_root}", f"paths.cache={polymnist_root.parent / 'cache'}"]
    data.append(f"paths.output={folder / 'out'}")
    for short, metric in METRICS.items():
        small = ["model.backbone.training.max_epochs=1", "trainer.enable_progress_bar=false", "trainer=cpu"]
        pipeline.run(compose_config(*data, *small, f"distance_metric={metric}", "stages=[prepare,fit]"))
        notebook = nbformat.read(ROOT / "gaussian_parameter_generation" / f"gaussian_{short}.ipynb", as_version=4)
        assert all(not cell.get("outputs") for cell in notebook.cells), "notebooks are committed without outputs"
        for cell in notebook.cells:
            cell["id"] += f"-{short}"
        cells[short] = notebook.cells
    forget = nbformat.v4.new_code_cell("%reset -f")
    together = nbformat.v4.new_notebook(cells=[*cells["COS"], forget, *cells["EU"]], metadata=notebook.metadata)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUN_OVERRIDES", " ".join(data))
        NotebookClient(together, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    return cells


@pytest.mark.parametrize("short", METRICS)
def test_notebook_runs(executed: dict[str, list[NotebookNode]], short: str) -> None:
    shown = [o for cell in executed[short] for o in cell.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in shown)
    assert any("torch.Size([31, 10, 64])" in str(o.get("data", {})) for o in shown)

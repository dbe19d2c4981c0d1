"""The benchmarks run, and what they compare agrees."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.__main__ import main


def test_benchmarks_run_in_a_tiny_setting(tmp_path: Path) -> None:
    table = main(["--tiny", "--out", str(tmp_path / "table.csv"), f"paths.data={tmp_path}", f"paths.output={tmp_path}"])
    assert (tmp_path / "table.csv").exists()
    selection = table[table.what.str.startswith("selection")]
    assert list(selection.rate) == [0.2, 0.4, 0.6, 0.8]
    assert all(", 0 other masks," in text for text in selection.agreement)
    differences = selection.agreement.str.extract(r"difference (\S+)$")[0].astype(float)
    assert (differences < 1e-4).all()
    assert {"Gaussian stage, tensors given", "Gaussian stage, data path included", "training"} <= set(table.what)

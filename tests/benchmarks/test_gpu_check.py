"""The check of a GPU: its dry run, its limits and its script."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.benchmarks import gpu
from tests.benchmarks.gpu_rows import COLUMNS
from tests.makers import SCRIPTS, calls_of
from utils.errors import UserError


def test_the_dry_run_has_rows_of_every_part(tmp_path: Path) -> None:
    assert gpu.main(["--dry", "--out", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "gpu.csv")
    assert tuple(table.columns) == COLUMNS
    assert table[["value", "device", "versions", "commit"]].notna().all(axis=None)
    ends = table[table.what.str.startswith("part ")].set_index("part").detail
    assert list(ends.index) == list(gpu.PARTS) and ends.str.fullmatch(r"done, [1-9]\d* rows").all(), ends
    waits = table[table.unit == "waits"].set_index("what").value
    assert (waits[waits.index.str.contains("training step")] == 0).all() and len(waits) == 6
    assert waits["waits of a batch of stage test, two scenarios"] == 1
    assert waits["waits of stage gaussian, one batch"] == 1 + 3
    selection = table[table.what.str.startswith("selection, cosine")]
    assert selection.detail.str.contains(", 0 other masks,").all() and (selection.ratio > 1).all()
    steps = table[table.part == "steps"].what
    assert {"MoPoE", "ModDrop", "DynamicTransformer"} <= {what.split(", ")[1] for what in steps if ", " in what}


def test_parts_that_fail_or_run_out_of_time_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def measured(check: Any) -> None:
        check.rows.add("a measurement", 1.5, "ms")

    def broken(check: Any) -> None:
        measured(check)
        raise ValueError("what is wrong\nmore of it")

    def slow(check: Any) -> None:
        measured(check)
        time.sleep(60)

    parts = {"broken": (broken, 5.0), "slow": (slow, 0.1), "fine": (measured, 5.0)}  # a tenth of the limits
    monkeypatch.setattr(gpu, "PARTS", parts)
    with caplog.at_level("INFO"):
        assert gpu.main(["--dry", "--out", str(tmp_path)]) == 1
    table = pd.read_csv(tmp_path / "gpu.csv")
    assert list(table.what) == [
        *("a measurement", "part broken"),
        *("a measurement", "part slow"),
        *("a measurement", "part fine"),
    ]
    expected = {
        "broken": "FAILED: ValueError: what is wrong, 1 rows",
        "slow": "OUT OF TIME after its 1 s, 1 rows",
        "fine": "done, 1 rows",
    }
    assert dict(table[table.what.str.startswith("part ")][["part", "detail"]].itertuples(index=False)) == expected
    assert "FAILED: part broken" in caplog.text and "FAILED: part slow" not in caplog.text
    monkeypatch.setattr(gpu, "PARTS", {"fine": (measured, 5.0)})
    assert gpu.main(["--dry", "--out", str(tmp_path), "--seconds", "0.05"]) == 0
    assert list(pd.read_csv(tmp_path / "gpu.csv").detail) == ["NOT RUN: the 0 s of the check are over, 0 rows"]


def test_bad_options_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--parts: unknown 'wait', known are tests, prepare, waits"):
        gpu.main(["--dry", "--out", str(tmp_path / "a"), "--parts=wait"])
    if not gpu.torch.cuda.is_available():
        with pytest.raises(UserError, match="finds no GPU on this machine: add --dry"):
            gpu.main(["--out", str(tmp_path / "a")])
    assert not (tmp_path / "a").exists()


def test_the_script_passes_folders_and_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mnist, output = tmp_path / "mnist", tmp_path / "out"
    mnist.mkdir()
    (call,) = calls_of(tmp_path, "gpu_check.sh", str(mnist), str(output), "--parts=waits")
    assert call == ["-m", "tests.benchmarks.gpu", "--out", str(output), "--parts=waits", f"dataset.mnist={mnist}"]
    monkeypatch.setenv("DRY", "1")
    (call,) = calls_of(tmp_path, "gpu_check.sh")
    assert call[3] == str(tmp_path / "outputs" / "gpu_check") and call[4:] == ["--dry"]


def test_the_script_uses_an_interpreter_and_wheels_as_they_are(tmp_path: Path) -> None:
    python, wheels = tmp_path / "python", tmp_path / "wheels"
    python.write_text('#!/bin/sh\necho "$PYTHONPATH" "$@"\n')
    python.chmod(0o755)
    wheels.mkdir()
    (wheels / "hydra_core-1-py3-none-any.whl").touch()
    command = ["bash", str(SCRIPTS / "gpu_check.sh"), "made-up", str(tmp_path / "out")]
    environment = os.environ | {"PYTHON": str(python), "WHEELS": str(wheels), "PYTHONPATH": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    packages = tmp_path / "out" / "packages"
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f" -m pip install --quiet --no-index --no-deps --target {packages} {wheels}/hydra_core-1-py3-none-any.whl",
        f"{packages} -m tests.benchmarks.gpu --out {tmp_path / 'out'}",
    ]

"""The scripts of the inference stress test: what their commands set."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("kind", "epochs"), [("standin", (8, 5)), ("skin", (8, 5)), ("xray", (12, 8))])
def test_a_model_without_parts_trains_as_long_as_parts_and_fusion_together(
    kind: str, epochs: tuple[int, int], tmp_path: Path
) -> None:
    scripts = tmp_path / "job_scripts"
    scripts.mkdir()
    for name in ("_stress.sh", "fusion_stage_ablation.sh"):
        shutil.copy(ROOT / "job_scripts" / name, scripts)
    (scripts / "_environment.sh").write_text('python() { printf "%q " "$@"; echo; }\n')
    command = ["bash", "job_scripts/fusion_stage_ablation.sh", kind, *([] if kind == "standin" else [str(tmp_path)])]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
    runs = [dict(a.split("=", 1) for a in shlex.split(line)[1:] if "=" in a) for line in found if "--multirun" in line]
    by_name = {run.get("model.name", run["model"]): run for run in runs}
    parts, fused = epochs
    scratch, whole = by_name["MaskedAttention_scratch"], by_name["MaskedAttention"]
    assert whole["model.unimodal.training.max_epochs"] == str(parts) and whole["model.training.max_epochs"] == str(
        fused
    )
    assert whole["model.module.encoder_lr"] == "1e-4" and "model.module.optimizer.lr" not in whole
    assert scratch["model.training.max_epochs"] == scratch["dataset.baselines.max_epochs"] == str(parts + fused)
    assert scratch["model.module.optimizer.lr"] == "2e-3" and scratch["model.module.encoder_lr"] == "null"

"""The scripts of the inference stress test: what their commands set."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.makers import multiruns_of


@pytest.mark.parametrize(("kind", "epochs"), [("standin", (8, 5)), ("skin", (8, 5)), ("xray", (12, 8))])
def test_a_model_without_parts_trains_as_long_as_parts_and_fusion_together(
    kind: str, epochs: tuple[int, int], tmp_path: Path
) -> None:
    arguments = [kind, *([] if kind == "standin" else [str(tmp_path)])]
    runs = multiruns_of(tmp_path, "fusion_stage_ablation.sh", *arguments, sourced=["_stress.sh"])
    by_name = {run.get("model.name", run["model"]): run for run in runs}
    parts, fused = epochs
    scratch, whole = by_name["MaskedAttention_scratch"], by_name["MaskedAttention"]
    assert whole["model.unimodal.training.max_epochs"] == str(parts) and whole["model.training.max_epochs"] == str(
        fused
    )
    assert whole["model.module.encoder_lr"] == "1e-4" and "model.module.optimizer.lr" not in whole
    assert scratch["model.training.max_epochs"] == scratch["dataset.training_defaults.max_epochs"] == str(parts + fused)
    assert scratch["model.module.optimizer.lr"] == "2e-3" and scratch["model.module.encoder_lr"] == "null"

"""Adding a method, a recovery method and a data set, from the text of the guides: two files each, and no edit of a file
that exists."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.test_docs import examples
from trainers.config.compose import CONFIGS

ROOT = CONFIGS.parent
PACKAGES = ("configs", "datasets", "gaussian_parameter_generation", "models", "trainers", "utils")
ADDED = {
    "Mine": ["models/baselines/mine.py", "configs/model/Mine.yaml"],
    "Constant": ["models/imputers/constant.py", "configs/imputer/Constant.yaml"],
    "Animals": ["datasets/animals.py", "configs/dataset/Animals.yaml"],
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the files that the guides show, and no other change."""
    root = tmp_path_factory.mktemp("checkout")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run.py", root / "run.py")
    files = dict(examples("python") + examples("yaml"))
    for path in (path for paths in ADDED.values() for path in paths):
        assert not (ROOT / path).exists()
        (root / path).write_text(files[path])
    rng = np.random.default_rng(0)
    (root / "data" / "animals").mkdir(parents=True)
    for split, n in (("train", 48), ("val", 16), ("test", 16)):
        target = np.arange(n) % 2
        arrays = {
            name: rng.integers(0, 100, (n, channels, 64, 64)) + level[:, None, None, None]
            for name, channels in (("photo", 3), ("sketch", 1))
            for level in [60 * target + rng.integers(0, 90, n)]
        }
        content = {name: array.astype(np.uint8) for name, array in arrays.items()}
        np.savez(root / "data" / "animals" / f"{split}.npz", target=target, **content)
    return root


def run(checkout: Path, *overrides: str) -> None:
    """Run the command line of the copy."""
    small = ["trainer=cpu", "trainer.enable_progress_bar=false", "imputer.quality.judge_epochs=1"]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "run.py", "dataset=Animals", *small, *overrides]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_new_method_on_a_new_data_set_runs_every_stage(checkout: Path) -> None:
    stages = "stages=[prepare,fit,test,report,export]"
    run(checkout, "model=Mine", stages, "model.training.max_epochs=2", "model.training.batch_size=8")
    folder = checkout / "outputs" / "Animals" / "Mine" / "default" / "seed0"
    results = pd.read_csv(folder / "results.csv").query("metric == 'accuracy'").set_index("scenario")["value"]
    assert list(results.index) == ["none", "whole_0", "whole_1"] and results.between(0, 1).all()
    assert (folder / "bundle" / "bundle.json").is_file()


def test_a_new_recovery_method_serves_dymo(checkout: Path) -> None:
    small = ["model.backbone.training.max_epochs=2", "model.backbone.training.batch_size=8"]
    small += ["model.backbone.module.prototype_start=1"]
    run(checkout, "model=DyMo", "imputer=Constant", "stages=[prepare,impute,fit,gaussian,test]", *small)
    quality = pd.read_csv(checkout / "outputs" / "Animals" / "imputer_Constant" / "default" / "seed0" / "quality.csv")
    assert set(quality["modality"]) == {"photo", "sketch"}
    results = pd.read_csv(checkout / "outputs" / "Animals" / "DyMo" / "default" / "seed0" / "results.csv")
    assert {"DyMo", "DyMo/discard", "DyMo/impute_all"} <= set(results["model"])

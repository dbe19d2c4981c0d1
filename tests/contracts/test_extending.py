"""Adding a method, a recovery method, a data set, a metric and a scenario, from the text of the guides.

The first three are two files each, a metric is a line of the configuration, a scenario one file and a line of the
registry. The contracts then cover them without further changes.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra.core.global_hydra import GlobalHydra
from sklearn.metrics import cohen_kappa_score

from tests.campaign.children import in_child
from tests.test_docs import examples
from trainers.config.compose import CONFIGS

ROOT = CONFIGS.parent
PACKAGES = ("configs", "datasets", "gaussian_parameter_generation", "models", "tests", "trainers", "utils")
ADDED = {
    "Mine": ["models/baselines/mine.py", "configs/model/Mine.yaml"],
    "Constant": ["models/imputers/constant.py", "configs/imputer/Constant.yaml"],
    "Animals": ["datasets/animals.py", "configs/dataset/Animals.yaml"],
    "Failure": ["datasets/missingness/failure.py"],
}


def edit(file: Path, pattern: str, replacement: str) -> None:
    """Replace the only match of a pattern in a file."""
    text, n = re.subn(pattern, replacement, file.read_text(), flags=re.M)
    assert n == 1, f"{file.name}: {n} matches of {pattern}"
    file.write_text(text)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the files and lines that the guides show, and no other change."""
    root = tmp_path_factory.mktemp("checkout")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package)  # with what is compiled, which fits files of equal times
    for file in ("run.py", "pyproject.toml"):
        shutil.copy(ROOT / file, root / file)
    files = dict(examples("python") + examples("yaml"))
    for path in (path for paths in ADDED.values() for path in paths):
        assert not (ROOT / path).exists()
        (root / path).write_text(files[path])
    guide = (ROOT / "docs" / "your-method.md").read_text()
    (kind,) = re.findall(r"line\s`(\w+),`", guide)
    (kind_import,) = re.findall(r"`(from datasets\.missingness\.\w+ import \w+)`", guide)
    edit(root / "datasets" / "missingness" / "parse.py", r"^(SCENARIOS: [^)]*)\)", rf"\g<1>    {kind},\n)")
    edit(root / "datasets" / "missingness" / "parse.py", r"^from datasets\.missingness\.base", f"{kind_import}\n\\g<0>")
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


def execute(checkout: Path, *command: str) -> str:
    """Run a command of Python in the copy; its output."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = (sys.executable, *command)
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def run(checkout: Path, *overrides: str) -> None:
    """Run the command line of the copy, in a fork that has the libraries already, and imports this project anew."""
    small = ["trainer=cpu", "trainer.enable_progress_bar=false", "imputer.quality.judge_epochs=1"]

    def command() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
            del sys.modules[name]
        GlobalHydra.instance().clear()
        os.chdir(checkout)
        pytest.MonkeyPatch().syspath_prepend(checkout)  # never undone: the fork ends with the command
        sys.argv = ["run.py", "dataset=Animals", *small, *overrides]
        runpy.run_path(str(checkout / "run.py"), run_name="__main__")

    status, _, text = in_child(command, checkout)
    assert status == 0, text


def test_a_new_method_on_a_new_data_set_runs_every_stage(checkout: Path) -> None:
    stages = "stages=[prepare,fit,test,report,export]"
    small = ["model.training.max_epochs=2", "model.training.batch_size=8"]
    (metric,) = re.findall(r"`(\+metrics\.\S+)`", (ROOT / "docs" / "your-method.md").read_text())
    run(checkout, "model=Mine", stages, *small, metric, "missing.test=[none,whole_0,failure_1_0.25]")
    folder = checkout / "outputs" / "Animals" / "Mine" / "default" / "seed0"
    results = pd.read_csv(folder / "results.csv")
    scenarios = ["none", "whole_0", "failure_1_0.25"]
    assert results.query("metric == 'accuracy'")["scenario"].tolist() == scenarios
    # Predictions of stage test, and the metric by scikit-learn.
    for scenario, value in results.query("metric == 'kappa'")[["scenario", "value"]].itertuples(index=False):
        with np.load(folder / "predictions" / f"{scenario}.npz") as stored:
            expected = cohen_kappa_score(stored["target"], stored["logits"].argmax(1))
        assert value == pytest.approx(expected, abs=1e-6)
        scenarios.remove(scenario)
    assert not scenarios
    (report,) = (checkout / "outputs").rglob("report.html")
    assert "kappa" in report.read_text()
    assert (folder / "bundle" / "bundle.json").is_file()


def test_a_new_recovery_method_serves_dymo(checkout: Path) -> None:
    small = ["model.backbone.training.max_epochs=2", "model.backbone.training.batch_size=8"]
    small += ["model.backbone.module.prototype_start=1"]
    run(checkout, "model=DyMo", "imputer=Constant", "stages=[prepare,impute,fit,gaussian,test]", *small)
    quality = pd.read_csv(checkout / "outputs" / "Animals" / "imputer_Constant" / "default" / "seed0" / "quality.csv")
    assert set(quality["modality"]) == {"photo", "sketch"}
    results = pd.read_csv(checkout / "outputs" / "Animals" / "DyMo" / "default" / "seed0" / "results.csv")
    assert {"DyMo", "DyMo/discard", "DyMo/impute_all"} <= set(results["model"])


# File -> expression that picks some of its tests; each takes what is new into account without a change.
CONTRACTS = {
    "tests/contracts/test_baselines.py": "Mine-CAD or (resume and Mine)",
    "tests/contracts/test_partial_convention.py": "Mine",
    "tests/contracts/test_contracts.py": (
        "(composes and Mine) or (fills and Constant) or lost or class or (presets_fits and Animals)"
    ),
    "tests/datasets/missingness/test_parse.py": "every or bad_scenarios",
    "tests/utils/test_metrics.py": "equal_scikit or unknown",
}


@pytest.mark.slow
def test_the_contracts_cover_what_is_new(checkout: Path) -> None:
    names = " or ".join(f"({Path(file).name} and ({tests}))" for file, tests in CONTRACTS.items())
    output = execute(checkout, "-m", "pytest", "-q", "-rA", "-x", "-p", "no:cacheprovider", *CONTRACTS, "-k", names)
    shown = ["Mine-CAD", "[Mine]", "[Constant]", "[model-Mine]", "presets_fits[Animals]", "test_no_file_is_lost"]
    for name in (*shown, "equal_scikit_learn"):
        assert name in output

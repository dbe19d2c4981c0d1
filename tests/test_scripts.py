"""The job scripts: what their commands set."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.makers import SCRIPTS, calls_of, jobs_of
from trainers.config.compose import CONFIGS, compose_config
from trainers.loading import Run


@pytest.mark.parametrize(("dataset", "epochs"), [("MIMIC", (8, 5)), ("SkinLesions", (8, 5)), ("ChestXray", (12, 8))])
def test_a_model_without_parts_trains_as_long_as_parts_and_fusion_together(
    dataset: str, epochs: tuple[int, int], tmp_path: Path
) -> None:
    where = "demo" if dataset == "MIMIC" else str(tmp_path)
    jobs = jobs_of(tmp_path, "vision_tabular.sh", "fusion_stage", dataset, where)
    assert len(jobs) == 4 * 5 + 1
    configs = [compose_config(*job) for job in jobs if "dataset.fold=0" in job]
    by_name = {cfg.model.name: cfg for cfg in configs if list(cfg.stages) != ["report"]}
    parts, fused = epochs
    assert list(by_name) == ["MaskedAttention", "MaskedAttention_frozen", "MaskedAttention_scratch", "Late"]
    scratch, complete = by_name["MaskedAttention_scratch"], by_name["MaskedAttention"]
    assert complete.model.unimodal.training.max_epochs == parts and complete.model.training.max_epochs == fused
    assert complete.model.module.encoder_lr == 1e-4 and complete.model.module.optimizer.lr == 1e-3
    assert scratch.model.training.max_epochs == scratch.dataset.training_defaults.max_epochs == parts + fused
    assert scratch.model.module.optimizer.lr == 2e-3 and scratch.model.module.encoder_lr is None
    assert scratch.name == "stress_none" and len(scratch.missing.test) == 9


def test_the_tables_of_udml_compare_all_models_in_one_sweep(tmp_path: Path) -> None:
    calls = calls_of(tmp_path, "udml.sh", "CREMAD", "demo", "seed=0,1")
    assert [call[0] for call in calls] == ["run.py", "-m", "-m", "-m", "-m", "run.py"]
    assert "seed=0,1" in calls[0] and "seed=0,1" not in calls[-1], "the report is of all seeds"
    configs = [compose_config(*job) for job in jobs_of(tmp_path, "udml.sh", "CREMAD", "demo")[:-1]]
    assert len({cfg.model.name for cfg in configs}) == len(configs) == 10
    assert {cfg.model.training.max_epochs for cfg in configs} == {100}
    assert {cfg.model.noise.start_epoch for cfg in configs} == {50}
    assert len({tuple(cfg.missing.test) for cfg in configs}) == 1 and len(configs[0].missing.test) == 17


def test_noise_is_combined_with_every_pattern_of_missingness(tmp_path: Path) -> None:
    patterns = ["random_0.6", "random_0.8"]
    options = ["levels=2,11", "where=0", "trained=clean"]
    jobs = jobs_of(tmp_path, "noise_levels.sh", "Digits", f"missing={','.join(patterns)}", *options)
    noises = ["noise_gaussian_2_0", "noise_gaussian_11_0"]
    expected = ["none", *patterns, *(name for n in noises for name in (n, *(f"{n}+{p}" for p in patterns)))]
    assert list(compose_config(*jobs[0]).missing.test) == expected
    (clean, _) = jobs_of(tmp_path, "noise_levels.sh", "Digits", "missing=none", "levels=2", "where=0", "trained=clean")
    assert list(compose_config(*clean).missing.test) == ["none", "noise_gaussian_2_0"]


def test_equal_compute_sets_epochs_of_every_baseline(tmp_path: Path) -> None:
    calls = calls_of(tmp_path, "equal_compute.sh", str(tmp_path))
    *jobs, report = ([word for word in call[1:] if word != "--multirun"] for call in calls)
    configs = {cfg.model.name: cfg for cfg in (compose_config(*job) for job in jobs)}
    baselines = OmegaConf.load(CONFIGS / "experiment" / "baselines.yaml")
    assert len(configs) == len(jobs)
    assert {word for job in jobs for word in job if word.startswith("model=")} == {
        f"model={name}" for name in baselines.hydra.sweeper.params.model.split(",")
    }
    # Epochs times the stored cost of one epoch is what DyMo costs, less the imputer where both use it.
    costs: dict[str, list[float]] = {}
    for file in (SCRIPTS.parent / "docs" / "results" / "six-views").rglob("environment.json"):
        costs.setdefault(file.parts[-4], []).append(json.loads(file.read_text())["cost"]["fit_processor_seconds"])
    for name in costs:
        shared = 22.5 if "MoPoE" in name else 0.0
        own, dymo = (sum(costs[model]) / 5 - shared for model in (name, "DyMo"))
        epochs = configs[name.removesuffix("_MoPoE")].dataset.training_defaults.max_epochs
        assert epochs == pytest.approx(40 * dymo / own, rel=0.05)
    assert configs["MTL"].model.training.max_epochs == 11 and configs["DyMo"].model.backbone.training.max_epochs == 40
    for cfg in configs.values():
        assert cfg.name == f"epochs_{cfg.dataset.training_defaults.max_epochs}" and cfg.dataset.monitor is None
        assert cfg.imputer.training.max_epochs == 100
    assert "MultiFeatureDigits/*/epochs_*/seed*" in compose_config(*report).report.include[0]


def test_the_selection_grid_has_every_cell_once(tmp_path: Path) -> None:
    calls = calls_of(tmp_path, "selection_grid.sh", str(tmp_path))
    configs = [compose_config(*(word for word in call[1:] if word != "--multirun")) for call in calls]
    labels = [(cfg.dataset.name, cfg.model.name) for cfg in configs]
    assert len(set(labels)) == len(labels)
    imputers = ("MoPoE", "MoPoE_short", "MoPoE_ELBO")
    for views in ("PolyMNIST", "PolyMNIST_hard"):
        of_views = {name for dataset, name in labels if dataset == views}
        dymo = {f"DyMo_{i}_{e}{end}" for i in imputers for e in (3, 15, 50) for end in ("", "_uncalibrated")}
        others = {f"{name}_{e}" for name in ("LogitAverage", "ModDrop") for e in (3, 15, 50)}
        assert of_views == dymo | others | {f"DyMo_{i}_15_EU" for i in imputers} | {"MTL_15"}
    # No run is trained into the directory of another one.
    directories: dict[Path, dict[str, Any]] = {}
    for cfg in configs:
        opened = Run(cfg)
        parts = [(opened.fit_directory.path, opened.fit_settings)]
        if opened.needs_imputer_weights:
            parts += [(opened.imputer_directory.path, opened.imputer_settings)]
        for path, settings in parts:
            assert directories.setdefault(path, settings) == settings, path
    for cfg in configs:
        epochs = int(cfg.model.name.split("_EU")[0].removesuffix("_uncalibrated").rsplit("_", 1)[1])
        assert cfg.dataset.training_defaults.max_epochs == epochs and cfg.dataset.train_fraction == 0.1
        assert cfg.dataset.mnist == str(tmp_path) and cfg.name == "selection_grid"
        if cfg.model.name.startswith("DyMo"):
            assert cfg.model.backbone.training.max_epochs == epochs and cfg.model.rules.draws == 3
            assert cfg.imputer.training.max_epochs == (4 if "short" in cfg.model.name else 16)
            assert cfg.imputer.module.class_weight == (0 if "ELBO" in cfg.model.name else 2000)
            assert cfg.model.selection.calibration == ("none" if "uncalibrated" in cfg.model.name else "auto")
            assert (cfg.distance_metric == "squared_euclidean") == ("_EU" in cfg.model.name)


@pytest.mark.parametrize(
    "command",
    [
        ["dymo.sh"],
        ["baselines.sh", "seed=0"],
        ["equal_compute.sh"],
        ["selection_grid.sh"],
        ["noise_levels.sh"],
        ["vision_tabular.sh", "stress", "MIMIC", "demo"],
        ["udml.sh", "CREMAD"],
        ["cmpt_small.sh"],
        ["recovery_methods.sh"],
        ["campaign.sh", "many"],
        ["gpu_check.sh", "nowhere"],
    ],
)
def test_a_script_without_a_data_set_says_how_it_is_used(command: list[str]) -> None:
    process = subprocess.run(["bash", SCRIPTS / command[0], *command[1:]], capture_output=True, text=True)
    assert process.returncode == 2 and f"usage: bash job_scripts/{command[0]}" in process.stderr


@pytest.mark.parametrize("script", ["dymo.sh", "baselines.sh"])
def test_an_absent_folder_is_named(script: str) -> None:
    process = subprocess.run(["bash", SCRIPTS / script, "CelebA", "absent"], capture_output=True, text=True)
    assert process.returncode == 2 and process.stderr == "error: there is no absent\n"

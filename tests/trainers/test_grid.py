"""``missing.train`` as a list: one run per scenario, one report over all."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from omegaconf import DictConfig

from trainers.config.compose import compose_config
from trainers.config.grid import is_grid, run_names, training_parts
from trainers.config.validate import validate
from trainers.run import run
from trainers.sweep import report_once
from utils.errors import UserError

TEST = "missing.test=[none,random_global_0.5,mnar_class_0.4]"


def grid(*overrides: str) -> DictConfig:
    return compose_config("experiment=grid", *overrides)


def test_parts_are_trained_and_validated_under_one_scenario_and_tested_under_all() -> None:
    cfg = grid("missing.train=[none,{kind: random, rate: 0.4},rates_0.5_0_0_0_0]", TEST)
    parts = training_parts(cfg)
    assert is_grid(cfg) and not is_grid(parts[0])
    assert [part.name for part in parts] == ["grid_none", "grid_random_0.4", "grid_rates_0.5_0_0_0_0"]
    assert [part.missing.val for part in parts] == [part.missing.train for part in parts]
    assert all(part.missing.test == ["none", "random_global_0.5", "mnar_class_0.4"] for part in parts)
    assert all(part.stages == ["prepare", "fit", "test"] for part in parts)
    default = training_parts(grid())
    assert [part.missing.test for part in default] == [list(grid().missing.train)] * 3
    fixed = training_parts(grid("missing.train=[none,random_0.4]", "missing.val=none"))
    assert [part.missing.val for part in fixed] == ["none", "none"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["missing.train=[none,random_0.4,whole_none]"], "missing.train lists 'none' twice"),
        (["missing.train=[]", "missing.val=none", "missing.test=[none]"], "missing.train is an empty list"),
        (["missing.train=[none,quux]"], "unknown missing scenario 'quux'"),
        (["missing.train=[none,whole_9]"], "there is no modality 9"),
        (["missing.train=[none,noise_gaussian_4_all]"], "noise on training batches is model.noise"),
        (["model=DyMo", "missing.train=[none,random_0.4]", "stages=[fit,gaussian]"], "from complete training data"),
    ],
)
def test_every_part_is_checked_before_any_training(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        validate(grid(*overrides))


def test_several_processes_are_refused() -> None:
    with pytest.raises(UserError, match=r"missing\.train is a list, which runs in one process"):
        run(grid("trainer=cpu", "trainer.devices=2"))


def test_a_sweep_of_grids_ends_with_one_report_over_their_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[DictConfig] = []
    monkeypatch.setattr("trainers.run.run", reported.append)
    report_once([grid("missing.train=[none,random_0.4]", f"model={model}") for model in ("ModDrop", "MTL")])
    (cfg,) = reported
    folders = [
        f"outputs/Digits/*/grid{swept}_{train}/seed*" for swept in ("", "-*") for train in ("none", "random_0.4")
    ]
    assert cfg.stages == ["report"] and cfg.report.include == folders
    assert run_names(grid("missing.train=none", "missing.test=[none]"), "grid-*") == ["grid-*"]


@pytest.mark.usefixtures("undrawn")
def test_a_grid_trains_each_part_and_reports_the_matrix(tmp_path: Path) -> None:
    cfg = grid(
        *(
            "missing.train=[none,rates_0.5_0_0.3_0_0]",
            TEST,
            "dataset=Digits",
            "trainer=cpu",
            f"paths.output={tmp_path}",
        ),
        *(f"paths.cache={tmp_path}", "model.training.max_epochs=1", "trainer.enable_progress_bar=false"),
        *("trainer.limit_train_batches=2", "trainer.limit_val_batches=1"),
    )
    run(cfg)
    runs = sorted((tmp_path / "Digits").glob("ModDrop/*/seed0/DONE"))
    assert [path.parts[-3] for path in runs] == ["grid_none", "grid_rates_0.5_0_0.3_0_0"]
    table = pd.read_csv(tmp_path / "Digits" / "report" / "grid" / "grid.csv", keep_default_na=False)
    accuracy = table[table["metric"] == "accuracy"]
    assert sorted(zip(accuracy["train"], accuracy["scenario"])) == sorted(
        (train, test) for train in ("none", "rates_0.5_0_0.3_0_0") for test in cfg.missing.test
    )
    rates = accuracy.groupby("scenario")["missing_rate"].first()
    assert rates["none"] == 0 and abs(rates["mnar_class_0.4"] - 0.4) < 0.05
    assert (tmp_path / "Digits" / "report" / "grid" / "figures" / "grid_Digits_ModDrop.png").is_file()

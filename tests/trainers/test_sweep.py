"""Sweeps: failed jobs do not stop others, swept values name runs, and shared parts are made once."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from tests.test_cli import execute
from trainers import run as pipeline
from trainers import sweep, sweep_jobs
from trainers.config.compose import CONFIGS, VERSION_BASE, compose_config, register
from trainers.config.overrides import swept_values
from trainers.sweep import FOLDER, keys_for_the_name
from trainers.sweep_jobs import Jobs
from utils.errors import UserError
from utils.run_directory import RunDirectory

pytestmark = pytest.mark.usefixtures("undrawn")


def tiny(folder: Path) -> list[str]:
    return [
        "--multirun",
        "dataset=MultiFeatureDigits",
        "dataset.demo=true",
        f"paths.data={folder / 'data'}",
        f"paths.cache={folder / 'cache'}",
        f"paths.output={folder / 'out'}",
        "trainer=cpu",
        "trainer.enable_progress_bar=false",
        "missing.test=[none,random_global_0.4]",
        "report.metrics=[accuracy]",
    ]


def test_a_failed_job_is_named_at_the_end_and_the_others_go_on(tmp_path: Path) -> None:
    """Run again with the mistake corrected, the finished job is skipped."""
    chosen = [*tiny(tmp_path), "model=Multimodal_CONCAT,ModDrop", "imputer=Mean", "model.training.max_epochs=1"]
    code, lines = execute([*chosen, "missing.train=random_0.2"], tmp_path / "cwd")
    assert code == 2
    reason = "missing.train=random_0.2: stage impute learns from complete training data"
    assert [line for line in lines if line.startswith("[E] failed")] == [
        f"[E] failed: model=Multimodal_CONCAT: {reason}; set missing.train=none or leave that out"
    ]
    assert "[I] sweep: 1 of 2 jobs finished" in lines
    ended = [re.sub(r" in [\d.]+ (s|min);", ";", line) for line in lines if " failed of " in line]
    assert ended == [
        "[I] sweep: model=Multimodal_CONCAT: failed; 0 done, 0 running, 1 failed of 2",
        "[I] sweep: model=ModDrop: done; 1 done, 0 running, 1 failed of 2",
    ]
    base = tmp_path / "out" / "MultiFeatureDigits"
    assert (base / "ModDrop" / "default" / "seed0" / "DONE").is_file() and not (base / "Multimodal_CONCAT").exists()
    assert set(pd.read_csv(base / "report" / "default" / "summary.csv")["model"]) == {"ModDrop"}
    assert not list((tmp_path / "out" / "multirun").glob(".jobs*"))

    code, lines = execute([*tiny(tmp_path), "model=ModDrop,QMF", "model.training.max_epochs=1"], tmp_path / "cwd2")
    assert code == 2  # ModDrop was trained on other data
    assert any("holds a finished stage 'fit' with other settings" in line for line in lines)
    again = [*chosen[:-3], "model=ModDrop", "seed=0,1", "model.training.max_epochs=1", "missing.train=random_0.2"]
    code, lines = execute(again, tmp_path / "cwd3")
    assert code == 0 and sum("is there and valid, skipped" in line for line in lines) == 2  # fit and test of seed 0
    assert sum("stage report" in line for line in lines) == 2  # begins once and ends once
    assert any("[I] sweep: seed=0: was done before in " in line for line in lines)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_whole_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int) -> None:
    """In a stage of the second of three jobs, whose place the third must not take."""
    begun: list[str] = []

    def stage(run: Any) -> None:
        begun.append(run.cfg.model.name)
        if len(begun) == 2:
            try:
                os.kill(os.getpid(), number)
                time.sleep(5)
            except KeyboardInterrupt:
                raise SystemExit(1)  # as Lightning does  # noqa: B904

    monkeypatch.setitem(pipeline.STAGES, "prepare", stage)
    arguments = ["model=ModDrop,QMF,MUSE", "stages=[prepare]"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it for jobs in the background
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    try:
        status, lines = execute([*tiny(tmp_path), *arguments], tmp_path / "cwd")
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    finally:
        signal.signal(signal.SIGINT, before)
    assert status == code and begun == ["ModDrop", "QMF"]
    assert lines[-1] == ("[E] sweep: interrupted with 1 of 3 jobs finished and 0 failed: the same command continues it")
    assert not list((tmp_path / "out" / "multirun").glob(".jobs*")) and FOLDER not in os.environ


def test_the_time_left_is_that_of_jobs_that_did_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of ten jobs took 100 s, one was done before; two run at once, one of them for 40 s: (7 * 100 - 40) / 2."""
    now = 1000.0
    monkeypatch.setattr(sweep_jobs.time, "time", lambda: now)
    jobs = Jobs(tmp_path / "jobs")
    jobs.begin(jobs=10, parallel=2, named=[], swept=["seed"])
    for number, (seconds, worked, error) in enumerate([(100, True, None), (2, False, None), (100, True, "broken")]):
        jobs.start(number)
        now += seconds
        jobs.end(number, overrides=[f"seed={number}"], error=error, worked=worked, config="")
    assert "running" in jobs.line() and jobs.line().endswith("about 6 min left")  # 7 * 100 / 2
    jobs.start(3)
    now += 40
    assert jobs.line() == "2 done, 1 running, 1 failed of 10, about 6 min left"
    display = sweep_jobs.Display(jobs, ["seed"])
    with mock.patch.object(sweep_jobs.log, "info") as info:
        display.look()
        display.look()
    assert [call.args[1:4] for call in info.call_args_list] == [
        ("seed=0", "done", "2 min"),
        ("seed=1", "was done before", "2.0 s"),
        ("seed=2", "failed", "2 min"),
    ]


@pytest.mark.parametrize(
    ("overrides", "parallel"),
    [
        ([], 1),
        (["hydra/launcher=joblib"], 4),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], 2),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=64"], 6),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=-2"], 3),
        (["hydra/launcher=submitit_local"], 6),
        (["hydra/launcher=submitit_slurm"], None),
    ],
)
def test_jobs_at_once_by_launcher(monkeypatch: pytest.MonkeyPatch, overrides: list[str], parallel: int | None) -> None:
    """Six jobs on four cores."""
    register()
    monkeypatch.setattr(sweep, "cores", lambda: 4)
    with initialize_config_dir(str(CONFIGS), version_base=VERSION_BASE):
        config = compose("config", overrides, return_hydra_config=True)
    assert sweep.jobs_at_once(config, 6) == parallel


@pytest.mark.parametrize(
    ("overrides", "direction", "message"),
    [
        (["model=ModDrop"], None, None),
        (["model=ModDrop", "dataset.monitor=val_accuracy"], "maximize", None),
        (
            ["model=ModDrop", "dataset.monitor=val_accuracy"],
            "minimize",
            "set maximize, since the score is the best val_accuracy",
        ),
        (["model=ModDrop", "dataset.monitor=val_loss"], "minimize", None),
        (["model=ModDrop", "dataset.monitor=null"], "maximize", "the sweeper needs a score"),
        (["model=ModDrop", "stages=[test]"], "maximize", "the sweeper needs a score"),
    ],
)
def test_a_search_for_the_worst_score_is_refused(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], direction: str | None, message: str | None
) -> None:
    options = SimpleNamespace(sweeper={"direction": direction})
    monkeypatch.setattr(sweep.HydraConfig, "get", lambda: options)
    cfg = compose_config(*overrides)
    if message is None:
        sweep.check_search(cfg)
    else:
        with pytest.raises(UserError, match=message):
            sweep.check_search(cfg)


def test_files_of_killed_sweeps_are_removed(tmp_path: Path) -> None:
    host = socket.gethostname()
    names = [f".jobs-{host}-{2**22 + 5}", f".jobs-{host}-{os.getpid()}", ".jobs-elsewhere-4194309"]
    for name in names:
        (tmp_path / name).mkdir()
    sweep.remove_dead(tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(names[1:])


def test_swept_values_tell_runs_apart(tmp_path: Path) -> None:
    swept = ["model=ModDrop", "model.training.max_epochs=1,2", "seed=0"]
    code, lines = execute([*tiny(tmp_path), *swept], tmp_path / "cwd")
    assert code == 0, lines
    base = tmp_path / "out" / "MultiFeatureDigits"
    assert {f.name for f in (base / "ModDrop").iterdir()} == {"default-max_epochs1", "default-max_epochs2"}
    summary = pd.read_csv(base / "report" / "default" / "summary.csv")
    assert set(summary["model"]) == {f"ModDrop [default-max_epochs{n}]" for n in (1, 2)}


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["experiment=baselines", "dataset=Digits"], []),
        (["experiment=benchmark"], []),
        (["experiment=udml/UDML,udml/QMF", "dataset=CREMAD"], []),
        (["seed=0,1", "model=DyMo,ModDrop", "name=a,b", "dataset=Digits,PolyMNIST"], []),
        (["model.recovery_aware=0.0,0.5", "distance_metric=cosine_similarity,squared_euclidean"], []),
        (["dataset=SkinLesions", "model=ModDrop", "dataset.fold=0,1"], []),
        (["model=ModDrop", "model.training.batch_size=32,64", "seed=0,1"], ["model.training.batch_size"]),
        (["missing.train=random_0.2,random_0.4", "model=ModDrop"], ["missing.train"]),
        (["model=DyMo", "imputer=MoPoE,CMVAE"], ["imputer"]),
        (["model=ModDrop", "model.module.optimizer.lr=interval(1e-4,1e-2)"], ["model.module.optimizer.lr"]),
    ],
)
def test_only_keys_that_the_run_directory_does_not_show_enter_the_name(overrides: list[str], named: list[str]) -> None:
    register()
    swept = {o.partition("=")[0] for o in overrides if "," in o}
    plain = [o for o in overrides if o.partition("=")[0] not in swept]
    with initialize_config_dir(str(CONFIGS), version_base=VERSION_BASE):
        config = compose("config", plain, return_hydra_config=True)
        config.hydra.overrides.task = overrides
        values = swept_values(overrides, config.hydra.sweeper.get("params") or {})
        assert set(values) >= swept
        assert keys_for_the_name(config, values) == named


def test_the_benchmark_is_methods_seeds_and_scenarios_with_one_report(tmp_path: Path) -> None:
    register()
    with initialize_config_dir(str(CONFIGS), version_base=VERSION_BASE):
        config = compose("config", ["experiment=benchmark"], return_hydra_config=True)
        values = swept_values([], config.hydra.sweeper.params)
    assert len(values["model"]) >= 14 and len(values["seed"]) == 3
    assert config.dataset.name == "Digits" and len(set(config.missing.test)) == 8
    one = [
        "experiment=benchmark",
        "model=QMF",
        "seed=0",
        "trainer.limit_train_batches=1",
        "model.training.max_epochs=1",
    ]
    overrides = [o for o in tiny(tmp_path) if not o.startswith("missing.test")]
    code, lines = execute([*overrides, *one], tmp_path / "cwd")
    assert code == 0, lines
    summary = pd.read_csv(tmp_path / "out" / "MultiFeatureDigits" / "report" / "benchmark" / "summary.csv")
    assert set(summary["model"]) == {"QMF"} and summary["scenario"].nunique() == 8


def test_a_stage_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    """Against a second holder of the lock, which gets it only after the first has let go."""
    order: list[str] = []
    is_waiting = threading.Event()

    def second() -> None:
        is_waiting.set()
        with RunDirectory(tmp_path).held():
            order.append("second")

    with RunDirectory(tmp_path).held():
        other = threading.Thread(target=second)
        other.start()
        is_waiting.wait()
        other.join(timeout=0.3)
        order.append("first")
    other.join()
    assert order == ["first", "second"]

"""Stage plan: its numbers against those of the run afterwards, and that it leaves nothing behind."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig

from datasets.loader import PackedLoader
from datasets.polymnist import PolyMNIST
from models.baselines.moddrop import ModDrop
from tests.conftest import Composer
from tests.contracts.test_bundles import parts_config
from tests.contracts.test_imputers import SMALL
from tests.makers import make_image_table
from trainers import forecast as module
from trainers import run as pipeline
from trainers.callbacks import EpochOrder, RunCheckpoint
from trainers.config.compose import compose_config
from trainers.cost import limited
from trainers.forecast import disk_space, foresee, size
from trainers.loading import Run
from trainers.timing import typical

STAGES = ["prepare", "impute", "fit", "gaussian", "test", "export", "report"]
DYMO = ["model=DyMo", "imputer=MoPoE", "imputer.latent=16", "imputer.training.max_epochs=1"]
DYMO += ["+imputer.encoder.width=8", "+imputer.decoder.width=8"]
DYMO += ["model.backbone.training.max_epochs=1", "missing.test=[none,whole_12]", "missing.seed=3"]
DYMO += ["report.metrics=[accuracy]", "model.rules.critic_epochs=1"]
# The work is counted in batches and scenarios, whatever a prediction costs.
DYMO += ["model.rules.draws=2", "model.validation=[random_0.4,random_0.8]", "model.backbone.module.layers=1"]
DYMO += ["model.comparators=[discard,impute_all,random,best_subset,threshold,oracle_subset,pool,critic]"]


@contextmanager
def counted_work(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Stage -> what it really does, as ``Forecast.work``; the key ``stage`` names the present one."""
    done: dict[str, Any] = {}

    def count(kind: str) -> None:
        work = done.setdefault(done["stage"], {})
        work[kind] = work.get(kind, 0) + 1

    def counting(owner: type, name: str, kind: str) -> None:
        original = getattr(owner, name)

        def wrapped(self: Any, *arguments: Any, **options: Any) -> Any:
            count(kind)
            return original(self, *arguments, **options)

        patch.setattr(owner, name, wrapped)

    batches = PackedLoader.__iter__

    def counted(loader: PackedLoader) -> Iterator[Any]:
        for batch in batches(loader):
            count("batches")
            yield batch

    with monkeypatch.context() as patch:
        counting(EpochOrder, "on_train_batch_end", "training_batches")
        counting(EpochOrder, "on_validation_batch_end", "validation_batches")
        counting(RunCheckpoint, "_save_checkpoint", "checkpoints")
        patch.setattr(PackedLoader, "__iter__", counted)
        yield done
    for work in done.values():
        if isinstance(work, dict):  # those of training are counted twice
            work["batches"] -= work.get("training_batches", 0) + work.get("validation_batches", 0)
            if not work["batches"]:
                del work["batches"]


class Clock:
    """Stands still but for what the test adds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def files_of(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def packed(composed: Composer) -> DictConfig:
    cfg = composed(*DYMO, "stages=[prepare]")
    pipeline.run(cfg)
    return cfg


def test_time_is_that_of_the_batches_of_all_epochs(
    composed: Composer, packed: DictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """60 training rows of 16 are 4 steps of 2 s, 60 validation rows of 10 are 6 checks of half a second, and 7 epochs;
    60 test rows are 6 batches, of 5 s for each of two scenarios."""
    cfg = composed(
        *("model=ModDrop", "model.training.max_epochs=7", "model.training.batch_size=16", "dataset.test_batch_size=10"),
        "missing.test=[none,whole_12]",
    )
    clock, run = Clock(), Run(cfg)
    method = type(run.build())

    def slowed(name: str, seconds: Callable[..., float]) -> None:
        original = getattr(method, name)

        def slow(self: Any, *arguments: Any) -> Any:
            clock.now += seconds(*arguments)
            return original(self, *arguments)

        monkeypatch.setattr(method, name, slow)

    slowed("training_step", lambda *_: 2.0)
    slowed("validation_step", lambda *_: 0.5)
    slowed("predict_each", lambda _, scenarios: 5.0 * len(scenarios))
    forecast = foresee(run, ["prepare", "fit", "test"], clock)
    assert forecast is not None
    assert forecast.seconds == {"prepare": 0, "fit": 7 * (4 * 2.0 + 6 * 0.5), "test": 6 * 2 * 5.0}
    assert forecast.total_seconds == 77.0 + 60.0
    cfg.trainer.limit_train_batches = 2
    forecast = foresee(Run(cfg), ["fit"], clock)
    assert forecast is not None and forecast.seconds == {"fit": 7 * (2 * 2.0 + 6 * 0.5)}


@pytest.mark.usefixtures("undrawn")
def test_parameters_and_disk_are_those_of_the_run_afterwards(
    packed: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(packed)
    torch.manual_seed(5)
    random.seed(5)
    states = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()  # noqa: NPY002
    before = files_of(packed_store(run))
    forecast = foresee(run, STAGES)
    assert forecast is not None
    assert torch.equal(torch.get_rng_state(), states[0])
    assert repr(np.random.get_state()) == states[1] and random.getstate() == states[2]  # noqa: NPY002
    assert not (tmp_path / "out").exists(), "nothing is written into a run directory"
    assert files_of(packed_store(run)) == before
    assert forecast.finished == ["prepare"] and forecast.memory > 1e7
    assert set(forecast.seconds) == set(STAGES) and all(
        s > 0 for stage, s in forecast.seconds.items() if stage != "prepare"
    )
    assert forecast.unknown == []
    cfg = packed.copy()
    with counted_work(monkeypatch) as done:
        for stage in STAGES:
            cfg.stages = [stage]
            done["stage"] = stage
            pipeline.run(cfg)
    del done["stage"]
    assert forecast.work.pop("report") == {"runs": 1}
    assert forecast.work == done
    trained = Run(cfg)
    for name, network in (("DynamicTransformer", trained.load_model()), ("imputer MoPoE", trained.load_imputer())):
        total = sum(p.numel() for p in network.parameters())
        assert forecast.parameters[name] == (total, total)
    assert forecast.store == sum(len(content) for content in before.values())

    def on_disk(*patterns: str) -> int:
        out = tmp_path / "out" / "PolyMNIST"
        return sum(file.stat().st_size for pattern in patterns for file in out.glob(pattern))

    # Optimiser states and weights decide; epochs and paths differ.
    for name, pattern in (("DynamicTransformer", "DynamicTransformer"), ("imputer MoPoE", "imputer_MoPoE")):
        real = on_disk(f"{pattern}/default/seed0/checkpoints/*.ckpt")
        assert forecast.bytes[f"checkpoints of {name}"] == pytest.approx(real, rel=0.02)
    assert forecast.bytes["Gaussian parameters"] == pytest.approx(
        on_disk("DynamicTransformer/default/seed0/gaussian_cosine.safetensors"), rel=0.02
    )
    assert forecast.bytes["masks"] == on_disk("DyMo/default/seed0/masks/*")
    # Compression depends on the values, which are those of another network.
    predictions = on_disk("DyMo/default/seed0/predictions/**/*.npz")
    assert forecast.bytes["predictions"] == pytest.approx(predictions, rel=0.3)
    again = foresee(trained, STAGES)
    assert again is not None and again.finished == ["prepare", "impute", "fit", "gaussian", "test"]
    assert set(again.work) == {"export", "report"} and again.seconds["impute"] == again.seconds["fit"] == 0
    lines = list(again.lines())
    assert "time: fit 0 s, its output is there and valid" in lines
    assert [line for line in lines if line.startswith("total: about ")]


def packed_store(run: Run) -> Path:
    return run.data.store.folder


def test_data_that_are_not_packed_are_known_from_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of rows and parameters are exact, the store to five per cent; nothing is packed."""
    make_image_table(tmp_path / "parts", per_class=60)
    cfg = parts_config(tmp_path, "model=ModDrop", "stages=[plan]", "model.training.max_epochs=1")
    monkeypatch.setattr(module, "SAMPLE", 20)
    forecast = foresee(Run(cfg), ["prepare", "fit", "test"])
    assert forecast is not None and not forecast.is_packed
    assert not Run(cfg).data.store.folder.exists() and not (tmp_path / "out").exists()
    pipeline.run(cfg)  # the stage itself
    assert not Run(cfg).data.store.folder.exists() and not (tmp_path / "out").exists()
    run = Run(cfg)
    run.data.prepare()
    assert forecast.rows == {split: len(run.data.split(split)) for split in ("train", "val", "test")}
    real = sum(file.stat().st_size for file in run.data.store.folder.rglob("*.npy"))
    assert forecast.store == pytest.approx(real, rel=0.05)
    assert forecast.parameters["ModDrop"][0] == sum(p.numel() for p in run.build().parameters())


@pytest.mark.parametrize("imputer", ["Mean", "Zero", "MMVAEPlus", "CMVAE"])
def test_the_stage_of_every_kind_of_imputer_is_measured(packed: DictConfig, imputer: str) -> None:
    cfg = packed.copy()
    small = ["imputer.quality.judge_epochs=1", *["imputer.width=4"] * (imputer in ("MMVAEPlus", "CMVAE"))]
    cfg.imputer = compose_config("dataset=PolyMNIST", f"imputer={imputer}", *small).imputer
    forecast = foresee(Run(cfg), ["impute"])
    assert forecast is not None and list(forecast.seconds) == ["impute"] and forecast.seconds["impute"] > 0
    assert any("imputer" in name for name in forecast.bytes) == (imputer != "Zero")


@pytest.mark.parametrize("imputer", ["TIP", "IMI"])
def test_imputers_of_tables_are_measured_on_a_sample(tmp_path: Path, imputer: str) -> None:
    make_image_table(tmp_path / "parts", per_class=20)
    cfg = parts_config(tmp_path, "model=ModDrop", f"imputer={imputer}", *SMALL[imputer])
    forecast = foresee(Run(cfg), ["prepare", "impute"])
    assert forecast is not None and list(forecast.seconds) == ["prepare", "impute"]
    assert any(f"imputer {imputer}" in name for name in forecast.bytes)


def test_data_that_cannot_be_packed_in_part_are_said_to_be_packed_first(
    composed: Composer, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(PolyMNIST, "shorten", lambda *_: None)
    cfg = composed("model=Late", "stages=[plan]", f"paths.cache={tmp_path / 'cache'}")
    pipeline.run(cfg)
    assert [m for m in caplog.messages if "PolyMNIST is not packed" in m and "run stages=[prepare] first" in m]
    assert not list((tmp_path / "cache").glob("Poly*"))


def test_a_training_that_may_stop_early_is_said_to_take_up_to_a_time(composed: Composer, packed: DictConfig) -> None:
    cfg = composed("model=ModDrop", "model.training.patience=3", "model.training.max_epochs=4")
    forecast = foresee(Run(cfg), ["fit", "predict"])
    assert forecast is not None and forecast.may_stop_early == {"fit"} and forecast.unknown == ["predict"]
    total = next(line for line in forecast.lines() if line.startswith("total: "))
    assert total.startswith("total: up to about ") and "without predict (early stopping may end fit sooner)" in total
    assert "time: predict not estimated" in list(forecast.lines())


def test_batches_of_a_sample_are_as_large_as_those_of_the_complete_data(
    composed: Composer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten rows per split are packed, one per class; the 60 rows of a split make batches of 32, 32 and 28."""
    cfg = composed("model=ModDrop", "model.training.batch_size=32", f"paths.cache={tmp_path / 'cache'}")
    monkeypatch.setattr(module, "SAMPLE", 1)
    sizes = []
    step = ModDrop.training_step

    def seen(self: Any, batch: Any, *arguments: Any) -> Any:
        sizes.append(len(batch))
        return step(self, batch, *arguments)

    monkeypatch.setattr(ModDrop, "training_step", seen)
    forecast = foresee(Run(cfg), ["prepare", "fit"])
    assert forecast is not None and forecast.rows == {"train": 60, "val": 60, "test": 60}
    assert set(sizes) == {32, 28} and forecast.seconds["prepare"] > 0


def test_plan_comes_before_the_other_stages(packed: DictConfig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    cfg = packed.copy()
    cfg.stages = ["prepare", "fit", "plan"]
    pipeline.run(cfg)
    messages = [i for i, m in enumerate(caplog.messages) if m.startswith("plan: total: ")]
    begun = [i for i, m in enumerate(caplog.messages) if m == "[1/2] stage prepare"]
    assert len(messages) == len(begun) == 1 and messages < begun
    first, heading = (i for i, m in enumerate(caplog.messages) if "prepare, fit of DyMo on cpu" in m)
    assert caplog.messages[first].startswith("plan: timing a few batches") and first < heading < messages[0]


def test_small_parts(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "d").write_bytes(b"12345")
    assert disk_space(tmp_path) == 10
    assert [limited(10, limit) for limit in (None, 3, 30, 0.25, 1.0)] == [10, 3, 10, 2, 10]
    assert typical([0.0, 9.0, 10.0, 12.0]) == 1.5 and typical([0.0, 9.0]) == 9.0 and typical([1.0]) == 0.0
    assert [size(n) for n in (12, 1_234, 999_400, 250_000_000, 3e15)] == [
        "12 B",
        "1.2 kB",
        "999 kB",
        "250 MB",
        "3000.0 TB",
    ]

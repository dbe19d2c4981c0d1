"""The parts of :mod:`tests.benchmarks.gpu`: each takes the check and adds its rows."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pytest
import torch
from pytorch_lightning.callbacks import Timer

from datasets.missingness.random import random_mask
from models.dymo import dynamic_transformer
from models.dymo.prototypes import COSINE
from models.dymo.selection import Scorer, SelectionRule, select
from tests import test_gpu
from tests.benchmarks.__main__ import Bench, alternate
from tests.benchmarks.gpu_steps import loading, steps
from tests.benchmarks.methods import spread
from tests.simulated_device import DEVICE, SimulatedDevice
from trainers import fit
from trainers.config.compose import compose_config
from trainers.loading import open_run
from trainers.prediction import predict
from trainers.run import run
from utils.transfer import to_device

ROOT = Path(__file__).parents[2]
TESTS = ("tests/test_gpu.py", "tests/datasets/test_noise.py")


class _Reports:
    """Outcomes of tests, as a plugin of pytest.

    Args:
        deadline: after which no further test starts.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline, self.outcomes = deadline, list[tuple[str, str]]()

    def pytest_runtest_setup(self) -> None:
        if time.monotonic() > self.deadline:
            pytest.exit("out of time", 2)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.outcomes.append((report.nodeid.rpartition("::")[2], report.outcome))


def tests(check: Any) -> None:
    """The tests marked ``gpu``."""
    reports = _Reports(time.monotonic() + 0.9 * check.seconds)
    files = [str(ROOT / name) for name in TESTS]
    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
    threads = torch.get_num_threads()
    code = int(pytest.main([*options, *files], plugins=[reports]))
    torch.set_num_threads(threads)  # tests use one
    for outcome in ("passed", "failed", "skipped"):
        names = [name for name, result in reports.outcomes if result == outcome]
        detail = ", ".join(names) if outcome == "failed" else "no GPU" if names and outcome == "skipped" else ""
        check.rows.add(f"tests {outcome}", len(names), "tests", detail=detail)
    if code:
        raise RuntimeError(f"pytest ended with status {code}, see its output above")


def prepare(check: Any) -> None:
    """Pack the data."""
    start = time.monotonic()
    check.context.prepare_data()
    split = check.context.data.split("train")
    check.rows.add("stage prepare", time.monotonic() - start, "s", detail=f"{len(split)} training rows")


@contextmanager
def _waits(device: torch.device) -> Iterator[list[Any]]:
    """What the host waits for in the block: on a GPU as PyTorch reports it, else on the simulated device."""
    caught: list[Any] = []
    if device.type != "cuda":
        with SimulatedDevice() as simulated:
            simulated.waits = caught
            yield caught
        return
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        yield caught
        caught += [m for m in messages if "synchroniz" in str(m.message)]


def waits(check: Any) -> None:
    """How often the host waits in a batch of stage test, a training step and a batch of stage gaussian."""
    is_gpu = check.device.type == "cuda"
    device = check.device if is_gpu else DEVICE
    test_gpu.parts_of_dymo(COSINE)
    batch = test_gpu.class_batch(test_gpu.ROWS, 0.3, seed=3)

    def count(what: str, make: Callable[[], Callable[[], Any]]) -> None:
        with _waits(check.device) as caught:
            call = make()
            if is_gpu:
                call()  # loads kernels
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("warn")
            caught.clear()
            try:
                call()
            finally:
                if is_gpu:
                    torch.cuda.set_sync_debug_mode("default")
        check.rows.add(f"waits of {what}", len(caught), "waits")

    def test_batch() -> Callable[[], Any]:
        method = test_gpu.dymo(COSINE, device, ("discard", "impute_all"))
        moved = batch.to(device)
        moved.index = to_device(torch.arange(len(batch)), device, is_remembered=True)
        return lambda: predict(method, [moved], test_gpu.masks(), progress=False)

    def training_step(name: str) -> Callable[[], Any]:
        module, moved = test_gpu.ready(name, device), batch.to(device)
        return lambda: module.training_step(moved, 0).backward()

    def gaussian_batch() -> Callable[[], Any]:
        model, moved = test_gpu.polymnist_model(width=32, projection=32).to(device), batch.to(device)
        return lambda: test_gpu.estimate(model, [moved], progress=False)

    count("a batch of stage test, two scenarios", test_batch)
    for name in test_gpu.METHODS:
        count(f"a training step, {name}", lambda name=name: training_step(name))
    count("stage gaussian, one batch", gaussian_batch)


def _bench(check: Any) -> Bench:
    bench = Bench(check.context, check.is_dry, 32 if check.is_dry else 512, True)
    # In every row the twin waits for a GPU, which makes it slow.
    bench.rates, bench.few = ((0.8,), 48) if check.is_dry else ((0.4, 0.8), bench.few)
    return bench


def _publish(check: Any, bench: Bench) -> None:
    """Rows of the usual benchmarks as those of this file."""
    for row in bench.rows:
        what = row["what"] if row["rate"] is None else f"{row['what']}, rate {row['rate']}"
        forward = row["ratio_to_forward"], row["ratio_to_own_forward"]
        times = [f"{x:.2f} forward passes of {of}" for x, of in zip(forward, ("the twin", "ours")) if x is not None]
        twin = ["ratio: slow twin / ours"] if row["slow_twin_over_ours"] is not None else []
        detail = "; ".join([*twin, *times, *([row["agreement"]] if row["agreement"] else [])])
        check.rows.add(what, row["ours_ms"], "ms", row["slow_twin_over_ours"], detail)
    bench.rows.clear()


def selection(check: Any) -> None:
    """Selection and the whole of DyMo, against forward passes and the slow twin; sizes of the fusion calls."""
    bench = _bench(check)
    try:
        bench.selection(COSINE)
    finally:
        _publish(check, bench)
    model, parameters = bench.backbone(COSINE)
    n = bench.batch if check.is_dry else 8192  # rows, enough for several calls
    batch = bench.data.rows("train", spread(bench.data, "train", n), bench.device)
    missing = torch.from_numpy(random_mask(len(batch), len(model.modalities), 0.8, "exact", 7))
    missing = to_device(missing, bench.device, is_remembered=True)
    scorer = Scorer(model, parameters, SelectionRule())
    with torch.inference_mode():
        tokens = model.encode(batch.inputs)
    times = {}
    for rows in (2**10, 2**12, 2**14, 2**16):
        with patch.object(dynamic_transformer, "rows_per_call", lambda *_, rows=rows: rows):
            times[rows] = alternate(bench.repeats, ours=lambda: select(scorer, tokens, missing))["ours"]
        ratio = times[2**10] / times[rows]
        what = f"selection of {len(batch)} rows, fusion calls of {rows} rows"
        check.rows.add(what, 1e3 * times[rows], "ms", ratio, "ratio: 1024 / this")
    missing = missing[: bench.batch].clone()
    tokens = tokens[: bench.batch]
    seconds = alternate(
        bench.repeats,
        counted=lambda: select(scorer, tokens, missing, is_counted=True),
        padded=lambda: select(scorer, tokens, missing, is_counted=False),
    )
    ratio, detail = seconds["counted"] / seconds["padded"], "ratio: candidates counted on the host / not counted"
    check.rows.add(
        f"selection of {len(missing)} rows, candidates not counted", 1e3 * seconds["padded"], "ms", ratio, detail
    )


def gaussian(check: Any) -> None:
    """Stage gaussian on tensors, against the slow twin."""
    bench = _bench(check)
    try:
        with tempfile.TemporaryDirectory() as folder:
            bench.gaussian(Path(folder), has_files=False)
    finally:
        _publish(check, bench)


def training(check: Any) -> None:
    """Training steps with the data path, against the slow twin."""
    bench = _bench(check)
    try:
        with tempfile.TemporaryDirectory() as folder:
            bench.training(Path(folder))
    finally:
        _publish(check, bench)


def _stage(check: Any, stage: str, *overrides: str) -> pd.DataFrame:
    """Run a stage that trains until its time is over, at the end of an epoch; the rows of its metrics."""
    cfg = compose_config(*check.overrides, f"stages=[{stage}]", *overrides)
    original = fit.checkpoint_callbacks
    timer = Timer(timedelta(seconds=0.75 * check.seconds), interval="epoch", verbose=False)
    start = time.monotonic()
    with patch.object(fit, "checkpoint_callbacks", lambda *a: [*original(*a), timer]):
        run(cfg)
    opened = open_run(*check.overrides)
    directory = opened.fit_directory if stage == "fit" else opened.imputer_directory
    metrics = pd.read_csv(directory / "metrics.csv")
    seconds = (time.monotonic() - start) / len(metrics)
    rows = len(check.context.data.split("train"))
    check.rows.add(
        f"stage {stage}, an epoch", seconds, "s", detail=f"{len(metrics)} epochs, {rows / seconds:.0f} rows/s"
    )
    return metrics


def backbone(check: Any) -> None:
    """Training of the backbone, as published, as far as the time allows."""
    metrics = _stage(check, "fit")
    check.rows.add("stage fit, best val_accuracy", 100 * metrics["val_accuracy"].max(), "%")


def imputer(check: Any) -> None:
    """Training of MoPoE, as published, as far as the time allows."""
    metrics = _stage(check, "impute", "imputer.quality=null")
    check.rows.add("stage impute, best val_loss", metrics["val_loss"].min(), "nats")


def test(check: Any) -> None:
    """Stages gaussian and test of the weights that the time allowed."""
    cfg = compose_config(*check.overrides, "stages=[gaussian]")
    for stage in ("gaussian", "test"):
        cfg.stages, start = [stage], time.monotonic()
        run(cfg)
        check.rows.add(f"stage {stage}", time.monotonic() - start, "s")
    results = pd.read_csv(open_run(*check.overrides).directory / "results.csv")
    chosen = results[(results["metric"] == "accuracy") & (results["model"] == "DyMo")]
    for scenario, value in zip(chosen["scenario"], chosen["value"]):
        check.rows.add(f"accuracy of DyMo, {scenario}", 100 * value, "%", detail="weights of the epochs above")


# Name -> part, and its limit in seconds.
PARTS: dict[str, tuple[Callable[[Any], None], float]] = {
    "tests": (tests, 60),
    "prepare": (prepare, 60),
    "waits": (waits, 20),
    "selection": (selection, 70),
    "gaussian": (gaussian, 30),
    "training": (training, 30),
    "loading": (loading, 20),
    "backbone": (backbone, 60),
    "imputer": (imputer, 45),
    "test": (test, 45),
    "steps": (steps, 100),
}

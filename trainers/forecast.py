"""Stage ``plan``: what a run will take, from a few batches on this device, before anything long begins."""

from __future__ import annotations

import logging
import math
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from pytorch_lightning.utilities.seed import isolate_rng

from trainers.config.build import make_demo_data, store_path
from trainers.config.overrides import swept_values
from trainers.cost import Cost
from trainers.impute import is_measured
from trainers.loading import Run
from trainers.timing import BATCHES, Clock, device_clock
from trainers.trial import Trial
from utils.progress import duration
from utils.started import STARTED

log = logging.getLogger(__name__)
BEGAN = time.perf_counter()  # once everything is imported
QUIET = ("datasets", "models", "trainers.evaluate", "trainers.export", "trainers.programs", "trainers.report")
SAMPLE = 64  # rows per split that are packed where the data are not
START = "start of the program"


@dataclass
class Forecast(Cost):
    """What a run takes, see :class:`trainers.cost.Cost`.

    Attributes:
        stages: in the order of the run.
        rows: split -> number of rows.
        store: bytes of the packed store.
        is_packed: whether the store is there.
        memory: bytes, peak of the measurement.
        finished: stages whose output is there and valid.
        jobs: of the sweep, 1 without one.
    """

    stages: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    store: float = 0.0
    is_packed: bool = True
    memory: float = 0.0
    finished: list[str] = field(default_factory=list)
    jobs: int = 1

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def unknown(self) -> list[str]:
        """Stages without an estimate."""
        return [stage for stage in self.stages if stage not in self.seconds]

    def lines(self) -> Iterator[str]:
        """The plan for the terminal."""
        yield f"rows: {', '.join(f'{n:,} {split}' for split, n in self.rows.items())}"
        for name, (total, trained) in self.parameters.items():
            yield f"parameters: {name} {total:,}, of which {trained:,} are trained"
        yield f"disk: packed store {size(self.store)}{'' if self.is_packed else ' (from a sample of the rows)'}"
        for name, n in self.bytes.items():
            yield f"disk: {name} {size(n)}"
        yield f"memory: at least {size(self.memory)}"
        for stage in [START] * (START in self.seconds) + self.stages:
            yield f"time: {stage} {self._time(stage)}"
        early = [stage for stage in self.stages if stage in self.may_stop_early]
        stops = f" (early stopping may end {' and '.join(early)} sooner)" if early else ""
        without = f" without {' and '.join(self.unknown)}" if self.unknown else ""
        about = f"{'up to ' * bool(early)}about"
        yield f"total: {about} {duration(self.total_seconds)}{without}{stops}, and {size(self.total_bytes)}"
        if self.jobs > 1:
            yield (
                f"sweep: {self.jobs} runs; if all are like this one, {about} "
                f"{duration(self.jobs * self.total_seconds)} one after the other, and "
                f"{size(self.jobs * sum(self.bytes.values()) + self.store)}"
            )

    @property
    def total_bytes(self) -> float:
        return sum(self.bytes.values()) + self.store

    def _time(self, stage: str) -> str:
        if stage in self.finished:
            return "0 s, its output is there and valid"
        if stage not in self.seconds:
            return "not estimated"
        return f"{duration(self.seconds[stage])}{' for all epochs' * (stage in self.may_stop_early)}"


def disk_space(folder: Path) -> int:
    """Bytes of the files of a folder, files with several names counted once."""
    stats = [file.stat() for file in folder.rglob("*") if file.is_file()]
    return sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in stats}.values())


def size(n: float) -> str:
    """Bytes as a reader says them: ``12 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 999.5:
            return f"{n:.{0 if unit == 'B' or n >= 99.5 else 1}f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def plan(run: Run, stages: Sequence[str], *, is_alone: bool = True) -> None:
    """Log the forecast of the stages.

    Args:
        is_alone: whether the stages run in another process, which starts first.
    """
    log.info(
        "plan: timing a few batches of %s of %s on %s with untrained networks, which are not kept",
        *(", ".join(stages), run.label, run.device),
    )
    forecast = foresee(run, stages)
    if forecast is None:
        source = run.data.store.folder
        log.info(
            "plan: %s is not packed, and its rows can only be read all at once: run stages=[prepare] first, which "
            "packs them into %s, then plan again",
            run.cfg.dataset.name,
            source,
        )
        return
    if is_alone and HydraConfig.initialized() and HydraConfig.get().mode == RunMode.RUN:
        forecast.seconds[START] = BEGAN - STARTED
    log.info("plan: stages %s of %s on %s", ", ".join(stages), run.label, run.device)
    for line in forecast.lines():
        log.info("plan: %s", line)


def foresee(run: Run, stages: Sequence[str], clock: Clock = device_clock) -> Forecast | None:
    """Measure a few batches of the stages with untrained parts, on the packed data or else on a sample of their rows.

    Nothing is written but temporary files, and random generators are as before.

    Returns:
        None for data that are not packed and cannot be packed in part.
    """
    if run.cfg.dataset.get("demo"):
        make_demo_data(run.cfg)
    forecast = Forecast(stages=list(stages), jobs=jobs_of_sweep(), is_packed=run.data.is_packed())
    with tempfile.TemporaryDirectory(prefix="plan-") as name, isolate_rng(), quiet_trial():
        cfg, folder = run.cfg.copy(), Path(name)
        # Its own data module: a trial changes batch sizes and the like.
        cfg.dataset.store = str(store_path(cfg) if forecast.is_packed else folder / "store")
        other, has_weights = Run(cfg), False
        if forecast.is_packed:
            forecast.rows = dict((other.data.store.meta() or {})["counts"])
            forecast.rows |= {split: len(other.data.split(split)) for split in forecast.rows}
            forecast.store = disk_space(store_path(cfg))
            forecast.seconds["prepare"] = 0.0
            forecast.finished, has_weights = finished_stages(run, stages)
        elif not _pack_sample(other, forecast):
            return None
        todo = {stage for stage in stages if stage not in forecast.finished} - ({"impute"} if has_weights else set())
        if "impute" in stages and "impute" not in forecast.finished:
            todo.add("quality")
        measure(Trial(other, forecast.rows, todo, folder, clock), forecast)
    forecast.memory = peak_memory()
    return forecast


def _pack_sample(run: Run, forecast: Forecast) -> bool:
    """Pack a sample of the rows, which repeat until the batches of the trial are full; whether that is possible."""
    cfg, data = run.cfg, run.data
    sample = data.pack_sample(SAMPLE)
    if sample is None:
        return False
    forecast.rows = dict(sample.counts)
    if "train" in forecast.rows:
        forecast.rows["train"] = int(forecast.rows["train"] * data.train_fraction)
    forecast.store, forecast.seconds["prepare"] = sample.nbytes, sample.seconds
    sizes = [cfg.dataset.test_batch_size, cfg.gaussian.batch_size, cfg.imputer.training.batch_size]
    runs = [run]
    while runs:
        part = runs.pop()
        runs += part.prerequisites.values()
        sizes.append(part.trainable.training.batch_size)
    data.repeat_rows({split: min(n, BATCHES * max(sizes)) for split, n in forecast.rows.items()})
    return True


def measure(trial: Trial, forecast: Forecast) -> None:
    """Add the cost of the stages to the forecast; what no stage asks for is measured and left out."""
    run, todo = trial.run, trial.stages
    if "impute" in todo:
        trial.untrained_imputer()
    if "quality" in todo:
        trial.quality()
    if {"fit", "gaussian", "test", "export"} & todo:
        model = trial.models()
        method = trial.method(model)
        if "test" in todo and trial.rows.get("test"):
            trial.test(method)
        if "export" in todo:
            trial.export(method, model)
    if "report" in todo:
        trial.report()
    seconds = forecast.seconds | trial.cost.seconds
    given = {
        "impute": run.cfg.imputer.checkpoint,
        "fit": run.checkpoint_path,
        "gaussian": run.trainable.get("gaussian"),
    }
    for stage in forecast.stages:
        if stage in forecast.finished or (given.get(stage) and stage not in seconds):
            seconds[stage] = 0.0
    forecast.seconds = {stage: seconds[stage] for stage in forecast.stages if stage in seconds}
    cost = trial.cost
    forecast.parameters, forecast.bytes, forecast.may_stop_early = cost.parameters, cost.bytes, cost.may_stop_early
    unfinished = [stage for stage in forecast.stages if stage not in forecast.finished]
    forecast.work = {stage: work for stage, work in cost.work.items() if stage in unfinished}


def finished_stages(run: Run, stages: Sequence[str]) -> tuple[list[str], bool]:
    """Stages whose output is there and was made with the settings of the run, and whether the imputer has learned.

    Raises:
        UserError: it was made with others, and ``overwrite`` is off.
    """
    finished = ["prepare"]
    weights: Any = run.imputer_checkpoint if run.needs_imputer_weights else None
    has_learned = bool(run.cfg.imputer.checkpoint) or (
        "impute" in stages and run.imputer_directory.finished("impute", run.imputer_settings, weights)
    )
    if "impute" in stages and has_learned and is_measured(run):
        finished.append("impute")
    if "fit" in stages and not run.checkpoint_path:
        if not run.fit_directory.finished("fit", run.fit_settings, run.checkpoint):
            return finished, has_learned
        finished.append("fit")
    if not run.checkpoint.is_file():
        return finished, has_learned
    is_estimated_here = "gaussian" in stages and not run.trainable.get("gaussian")
    if is_estimated_here and run.fit_directory.finished("gaussian", run.gaussian_settings, run.gaussian):
        finished.append("gaussian")
    needed = [run.gaussian] if run.uses_selection else []
    if run.predicts_with_imputer and weights is not None:
        needed.append(weights)
    can_be_tested = "test" in stages and all(file.is_file() for file in needed)
    if can_be_tested and run.directory.finished("test", run.test_settings, run.directory / "results.csv"):
        finished.append("test")
    return finished, has_learned


def jobs_of_sweep() -> int:
    """Number of runs of the sweep to which this one belongs, 1 without a sweep."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return 1
    return math.prod(map(len, swept_values(sys.argv[1:], HydraConfig.get().sweeper.get("params") or {}).values()))


def peak_memory() -> float:
    """Bytes: of the GPU, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


@contextmanager
def quiet_trial() -> Iterator[None]:
    """Keep remarks on a trial, which the stages themselves repeat where they apply, from the user."""
    loggers = [logging.getLogger(name) for name in QUIET]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)

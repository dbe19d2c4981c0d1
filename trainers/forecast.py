"""Stage ``plan``: what a run will take, from a few batches on this device, before anything long begins."""

from __future__ import annotations

import logging
import math
import resource
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from pytorch_lightning.utilities.seed import isolate_rng

from trainers.config.build import make_demo_data, store_path
from trainers.config.overrides import swept_values
from trainers.loading import Run
from trainers.trial import Clock, Cost, Trial, device_clock
from utils.progress import duration

log = logging.getLogger(__name__)
SAMPLE = 64  # rows per split that are packed where the data are not
MEASURED = ("prepare", "impute", "fit", "gaussian", "test")


@dataclass
class Forecast(Cost):
    """What a run takes, see :class:`trainers.trial.Cost`.

    Attributes:
        rows: split -> number of rows.
        store: bytes of the packed store.
        is_packed: whether the store is there.
        memory: bytes, peak of the measurement.
        finished: stages whose output is there and valid.
        jobs: of the sweep, 1 without one.
    """

    rows: dict[str, int] = field(default_factory=dict)
    store: float = 0.0
    is_packed: bool = True
    memory: float = 0.0
    finished: list[str] = field(default_factory=list)
    jobs: int = 1

    @property
    def total_seconds(self) -> float:
        return sum(seconds for stage, seconds in self.seconds.items() if stage not in self.finished)

    def lines(self) -> Iterator[str]:
        """The plan for the terminal."""
        yield f"rows: {', '.join(f'{n:,} {split}' for split, n in self.rows.items())}"
        for name, (total, trained) in self.parameters.items():
            yield f"parameters: {name} {total:,}, of which {trained:,} are trained"
        yield f"disk: packed store {size(self.store)}{'' if self.is_packed else ' (from a sample of the rows)'}"
        for name, n in self.bytes.items():
            yield f"disk: {name} {size(n)}"
        yield f"memory: at least {size(self.memory)}"
        for stage, seconds in self.seconds.items():
            text = "0 s, its output is there and valid" if stage in self.finished else duration(seconds)
            yield f"time: {stage} {text}"
        yield f"total: {duration(self.total_seconds)} at most, and {size(sum(self.bytes.values()) + self.store)}"
        if self.jobs > 1:
            yield (
                f"sweep: {self.jobs} runs; if all are like this one, {duration(self.jobs * self.total_seconds)} one "
                f"after the other, and {size(self.jobs * sum(self.bytes.values()) + self.store)}"
            )


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


def plan(run: Run, stages: Sequence[str]) -> None:
    """Log the forecast of the stages."""
    forecast = foresee(run, stages)
    if forecast is None:
        source = run.data.store.folder
        log.info(
            "plan: %s is not packed, and a part of it cannot be: stage prepare reads all raw data into %s; run "
            "stages=[prepare] first, then plan again",
            run.cfg.dataset.name,
            source,
        )
        return
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
    forecast = Forecast(jobs=jobs_of_sweep(), is_packed=run.data.is_packed())
    with tempfile.TemporaryDirectory(prefix="plan-") as folder, isolate_rng(), quiet_trial():
        cfg = run.cfg.copy()
        # Its own data module: a trial changes batch sizes and the like.
        cfg.dataset.store = str(store_path(cfg) if forecast.is_packed else Path(folder) / "store")
        other = Run(cfg)
        if forecast.is_packed:
            forecast.rows = dict((other.data.store.meta() or {})["counts"])
            forecast.rows |= {split: len(other.data.split(split)) for split in forecast.rows}
            forecast.store = disk_space(store_path(cfg))
            forecast.seconds["prepare"] = 0.0
            forecast.finished += ["prepare", *finished_stages(run, stages)]
        else:
            start = clock()
            counts = other.data.pack_sample(SAMPLE)
            if counts is None:
                return None
            forecast.rows = counts
            scale = sum(counts.values()) / sum(len(other.data.split(split)) for split in counts)
            forecast.store = scale * disk_space(Path(folder) / "store")
            forecast.seconds["prepare"] = scale * (clock() - start)
        measure(Trial(other, forecast.rows, clock), stages, forecast)
    forecast.memory = peak_memory()
    return forecast


def measure(trial: Trial, stages: Sequence[str], forecast: Forecast) -> None:
    """Add the cost of the stages to the forecast; what no stage asks for is measured and left out."""
    run = trial.run
    if "impute" in stages:
        trial.untrained_imputer()
        trial.quality()
    if {"fit", "gaussian", "test"} & set(stages):
        model = trial.models()
        if "test" in stages and trial.rows.get("test"):
            trial.test(trial.method(model))
        elif "gaussian" in stages and run.uses_selection:
            trial.gaussian(model.eval().to(run.device).as_backbone(str(run.distance_metric)))
    seconds = forecast.seconds | trial.cost.seconds
    forecast.seconds = {stage: seconds[stage] for stage in MEASURED if stage in stages and stage in seconds}
    forecast.parameters, forecast.bytes = trial.cost.parameters, trial.cost.bytes


def finished_stages(run: Run, stages: Sequence[str]) -> list[str]:
    """Stages whose output is there and was made with the settings of the run.

    Raises:
        UserError: it was made with others, and ``overwrite`` is off.
    """
    finished = []
    if "impute" in stages and not run.cfg.imputer.checkpoint:
        weights = run.imputer_checkpoint if run.needs_imputer_weights else None
        if run.imputer_directory.finished("impute", run.imputer_settings, weights):
            finished.append("impute")
    if "fit" not in stages or run.checkpoint_path:
        return finished
    if run.fit_directory.finished("fit", run.fit_settings, run.checkpoint):
        finished.append("fit")
        if "gaussian" in stages and run.fit_directory.finished("gaussian", run.gaussian_settings, run.gaussian):
            finished.append("gaussian")
    return finished


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
    loggers = [logging.getLogger(name) for name in ("datasets", "models", "trainers.evaluate")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)

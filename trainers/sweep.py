"""Sweeps (``--multirun``): a failed job does not stop the others, and the end says what failed and reports once.

Jobs may run in other processes or on other machines, so that they leave what they did as files in a folder below
``hydra.sweep.dir``. Imports PyTorch only for the report.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from trainers.config.overrides import swept_values
from utils.errors import UserError, user_error
from utils.progress import duration

log = logging.getLogger(__name__)
FOLDER = "DYMO_SWEEP"  # environment variable with the folder of the sweep that a job belongs to


def is_job_of_sweep() -> bool:
    """Whether this is one of several jobs."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


class Sweep(Callback):
    """Callback of Hydra, configured as ``hydra.callbacks.sweep``.

    Attributes:
        failed: number of failed jobs of the sweep that has ended in this process.
    """

    failed = 0

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        Sweep.failed = 0
        folder = Path(config.hydra.sweep.dir).resolve() / f".jobs-{os.getpid()}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        swept = swept_values(config.hydra.overrides.task, config.hydra.sweeper.get("params") or {})
        named = keys_for_the_name(config, swept)
        if named:
            log.info(
                "sweep: %s become part of the name of a run, which would be the same for all values", ", ".join(named)
            )
        jobs = math.prod(map(len, swept.values())) if is_grid(config) else None
        sweep = {"jobs": jobs, "start": time.time(), "named": named, "swept": list(swept)}
        (folder / "sweep.json").write_text(json.dumps(sweep))
        os.environ[FOLDER] = str(folder)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        from utils.files import replacing  # imports NumPy, which --help does not wait for

        folder = os.environ.get(FOLDER)
        if not folder or config.hydra.mode != RunMode.MULTIRUN:
            return
        error = None
        if job_return.status == JobStatus.FAILED:
            problem = job_return._return_value
            known = user_error(problem)
            error = repr(problem) if known is None else str(known)
            if known is None:
                log.error("%s", "".join(traceback.format_exception(problem)))
            for line in error.splitlines():
                log.error(line)
            # The sweeper would stop at a failed job; a score that is no number is a failed trial of a search.
            job_return.status, job_return.return_value = JobStatus.COMPLETED, float("nan")
        overrides = list(OmegaConf.to_container(config.hydra.overrides.task))  # type: ignore[arg-type]
        job = {"overrides": overrides, "error": error, "config": OmegaConf.to_yaml(config_of(config))}
        with replacing(Path(folder) / f"job-{config.hydra.job.num}.json") as temporary:
            temporary.write_text(json.dumps(job))
        log.info("sweep: %s", progress(Path(folder)))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        folder = Path(os.environ.pop(FOLDER))
        jobs = read_jobs(folder)
        failed = [job for job in jobs if job["error"]]
        report_once([OmegaConf.create(job["config"]) for job in jobs if not job["error"]])
        log.info("sweep: %d of %d jobs finished", len(jobs) - len(failed), len(jobs))
        swept = json.loads((folder / "sweep.json").read_text())["swept"]
        for job in failed:
            values = " ".join(o for o in job["overrides"] if o.partition("=")[0].lstrip("+") in swept)
            log.error("failed: %s: %s", values, job["error"].splitlines()[0])
        Sweep.failed = len(failed)
        shutil.rmtree(folder, ignore_errors=True)


def is_grid(config: DictConfig) -> bool:
    """Whether the sweeper runs all combinations; others choose values by themselves."""
    return str(config.hydra.sweeper._target_).endswith("BasicSweeper")


def keys_for_the_name(config: DictConfig, swept: Mapping[str, Sequence[str]]) -> list[str]:
    """The swept keys of which several values would share a run directory."""
    loader = GlobalHydra.instance().config_loader()
    fixed = [o for o in config.hydra.overrides.task if o.partition("=")[0].lstrip("+") not in swept]

    def folder(key: str | None = None, value: str | None = None) -> list[Any]:
        values = {k: v[0] for k, v in swept.items()} | ({} if key is None else {key: value})
        overrides = [*fixed, *(f"{'++' if '.' in k else ''}{k}={v}" for k, v in values.items())]
        cfg = loader.load_configuration("config", overrides, run_mode=RunMode.RUN)
        parts = ("dataset.name", "dataset.fold", "model.name", "distance_metric", "name", "seed")
        return [OmegaConf.select(cfg, part) for part in parts] + [cfg.model.get("use_imputer") and cfg.imputer.name]

    first = folder()
    return [key for key, values in swept.items() if len(values) > 1 and folder(key, values[1]) == first]


def name_of_job(cfg: DictConfig) -> str:
    """The name of a run of a sweep: with the swept values that its directory would not show otherwise."""
    named = json.loads((Path(os.environ[FOLDER]) / "sweep.json").read_text())["named"]
    values = dict(o.partition("=")[::2] for o in HydraConfig.get().overrides.task)
    parts = [key.rpartition(".")[2] + re.sub(r"[^\w.+-]+", "_", values[key]).strip("_") for key in named]
    return "-".join([str(cfg.name), *parts])


def read_jobs(folder: Path) -> list[dict[str, Any]]:
    """What the jobs that have ended left, in order."""
    files = sorted(folder.glob("job-*.json"), key=lambda file: int(file.stem.partition("-")[2]))
    return [json.loads(file.read_text()) for file in files]


def progress(folder: Path) -> str:
    """Numbers of ended and failed jobs, and the time that is left at the present pace."""
    sweep, jobs = json.loads((folder / "sweep.json").read_text()), read_jobs(folder)
    failed = sum(job["error"] is not None for job in jobs)
    parts = [f"{len(jobs)} of {sweep['jobs'] or '?'} jobs ended", f"{failed} failed"]
    if sweep["jobs"] and len(jobs) < sweep["jobs"]:
        seconds = (time.time() - sweep["start"]) / len(jobs) * (sweep["jobs"] - len(jobs))
        parts.append(f"about {duration(seconds)} left")
    return ", ".join(parts)


def config_of(config: DictConfig) -> DictConfig:
    """The configuration of a job as it was composed, without Hydra's own."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def report_once(configs: Sequence[DictConfig]) -> None:
    """Run stage ``report`` once for each data set and name among the jobs that asked for it, over all runs of the name,
    with those that have swept values in theirs."""
    groups = {(c.paths.output, c.dataset.name, c.name): c for c in configs if "report" in c.stages}
    for cfg in groups.values():
        from trainers.config.grid import run_names
        from trainers.run import run

        cfg.stages = ["report"]
        if not cfg.report.include:
            runs = Path(cfg.paths.output) / cfg.dataset.name / "*"
            names = [*run_names(cfg, cfg.name), *run_names(cfg, f"{cfg.name}-*")]
            cfg.report.include = [str(runs / name / "seed*") for name in names]
        try:
            run(cfg)
        except UserError as error:
            log.error("report of %s: %s", cfg.dataset.name, error)


def prepare_job(cfg: DictConfig) -> DictConfig:
    """Name a job of a sweep, and leave its report to the end."""
    cfg.name = name_of_job(cfg)
    if list(cfg.stages) != ["report"]:
        cfg.stages = [stage for stage in cfg.stages if stage != "report"]
    return cfg

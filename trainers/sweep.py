"""Sweeps (``--multirun``): a failed job does not stop the others, and the end says what failed and reports once.

Jobs may run in other processes or on other machines, so that they leave what they did as files in a folder below
``hydra.sweep.dir``, see :mod:`trainers.sweep_jobs`. Imports PyTorch only for the report.
"""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import socket
import sys
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
from trainers.sweep_jobs import Display, Jobs, count_lost_jobs_of_submitit, name_in
from utils.errors import UserError, user_error
from utils.interruption import end_children

log = logging.getLogger(__name__)
FOLDER = "DYMO_SWEEP"  # environment variable with the folder of the sweep that a job belongs to
THREADS = "OMP_NUM_THREADS"  # environment variable with the threads of a process


def is_job_of_sweep() -> bool:
    """Whether this is one of several jobs."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


class Sweep(Callback):
    """Callback of Hydra, configured as ``hydra.callbacks.sweep``.

    Attributes:
        failed: number of failed jobs of the sweep that has ended in this process.
        display: of the sweep that runs in this process.
        sets_threads: this process has set :data:`THREADS` for the jobs.
    """

    failed = 0
    display: Display | None = None
    sets_threads = False

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        Sweep.failed = 0
        folder = Path(config.hydra.sweep.dir).resolve() / f".jobs-{socket.gethostname()}-{os.getpid()}"
        remove_dead(folder.parent)
        shutil.rmtree(folder, ignore_errors=True)
        swept = swept_values(config.hydra.overrides.task, config.hydra.sweeper.get("params") or {})
        named = keys_for_the_name(config, swept)
        if named:
            log.info(
                "sweep: %s become part of the name of a run, which would be the same for all values", ", ".join(named)
            )
        total = math.prod(map(len, swept.values())) if is_grid(config) else config.hydra.sweeper.get("n_trials")
        parallel = jobs_at_once(config, total)
        jobs = Jobs(folder)
        jobs.begin(jobs=total, parallel=parallel, named=named, swept=list(swept))
        os.environ[FOLDER] = str(folder)
        if "submitit" in config.hydra.launcher._target_:
            count_lost_jobs_of_submitit(folder)
        if parallel and parallel > 1 and THREADS not in os.environ:
            os.environ[THREADS], Sweep.sets_threads = str(max(1, cores() // parallel)), True
            log.info("sweep: %d jobs at once on %d cores, threads per job: %s", parallel, cores(), os.environ[THREADS])
        Sweep.display = Display(jobs, list(swept))
        Sweep.display.start()

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        if (folder := os.environ.get(FOLDER)) and config.hydra.mode == RunMode.MULTIRUN:
            self.stages_before = stages_begun()
            Jobs(Path(folder)).start(config.hydra.job.num)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
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
            # The sweeper would stop at a failed job; without a score, it is a failed trial of a search.
            job_return.status, job_return.return_value = JobStatus.COMPLETED, None
        Jobs(Path(folder)).end(
            config.hydra.job.num,
            overrides=OmegaConf.to_container(config.hydra.overrides.task),
            error=error,
            worked=stages_begun() > self.stages_before,
            config=OmegaConf.to_yaml(config_of(config)),
        )
        if Sweep.display is not None:  # the job ran in the process of the sweep
            Sweep.display.look()

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        jobs = self.close()
        assert jobs is not None
        ended = jobs.ended()
        failed = [job for job in ended if job["error"]]
        report_once([OmegaConf.create(job["config"]) for job in ended if not job["error"]])
        log.info("sweep: %d of %d jobs finished", len(ended) - len(failed), len(ended))
        for job in failed:
            log.error("failed: %s: %s", name_in(job, jobs.sweep["swept"]), job["error"].splitlines()[0])
        Sweep.failed = len(failed)
        shutil.rmtree(jobs.folder, ignore_errors=True)

    @classmethod
    def close(cls) -> Jobs | None:
        """End the display of this process's sweep, and forget the sweep; its files, None without a sweep."""
        if cls.display is None:
            return None
        jobs, display = cls.display.jobs, cls.display
        cls.display = None
        display.stop()
        os.environ.pop(FOLDER, None)
        if cls.sets_threads:
            os.environ.pop(THREADS, None)
            cls.sets_threads = False
        return jobs

    @classmethod
    def interrupt(cls) -> str | None:
        """End all jobs of this process's sweep; what was done, None without a sweep."""
        if cls.display is None:
            return None
        end_children()
        jobs = cls.close()
        assert jobs is not None
        ended = jobs.ended()
        failed = sum(job["error"] is not None for job in ended)
        sweep = jobs.sweep
        shutil.rmtree(jobs.folder, ignore_errors=True)
        elsewhere = "" if sweep["parallel"] else "; jobs that a cluster has already taken go on (SLURM: scancel)"
        return (
            f"sweep: interrupted with {len(ended) - failed} of {sweep['jobs'] or '?'} jobs finished and {failed} "
            f"failed: the same command continues it{elsewhere}"
        )


def stages_begun() -> int:
    """Number of stages that this process has begun, and not skipped."""
    module = sys.modules.get("utils.run_directory")  # imports PyTorch, which a job does at its time
    return module.RunDirectory.begun if module else 0


def remove_dead(parent: Path) -> None:
    """Remove the folders of sweeps of this machine whose process has ended without doing so."""
    import psutil

    prefix = f".jobs-{socket.gethostname()}-"
    for folder in parent.glob(f"{prefix}*"):
        number = folder.name.removeprefix(prefix)
        if number.isdigit() and not psutil.pid_exists(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def jobs_at_once(config: DictConfig, total: int | None) -> int | None:
    """How many jobs the launcher runs at the same time on this machine; None if it does not run them here."""
    launcher = config.hydra.launcher
    target = str(launcher._target_)
    if "joblib" in target:
        workers = int(launcher.n_jobs or 1)
        workers = workers if workers > 0 else max(1, cores() + 1 + workers)
        return min(workers, total or workers)
    if target.endswith("submitit_launcher.LocalLauncher"):
        return total
    return 1 if target.endswith("BasicLauncher") else None


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
    named = Jobs(Path(os.environ[FOLDER])).sweep["named"]
    values = dict(o.partition("=")[::2] for o in HydraConfig.get().overrides.task)
    parts = [key.rpartition(".")[2] + re.sub(r"[^\w.+-]+", "_", values[key]).strip("_") for key in named]
    return "-".join([str(cfg.name), *parts])


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
    """Name a job of a sweep, and leave its report to the end.

    Raises:
        UserError: a search in the wrong direction.
    """
    check_search(cfg)
    cfg.name = name_of_job(cfg)
    if list(cfg.stages) != ["report"]:
        cfg.stages = [stage for stage in cfg.stages if stage != "report"]
    return cfg


def check_search(cfg: DictConfig) -> None:
    """
    Raises:
        UserError: the sweeper searches for the worst score of stage fit, or there is none.
    """
    direction = HydraConfig.get().sweeper.get("direction")
    if direction is None or OmegaConf.is_list(direction):
        return
    from trainers.plan import Plan

    monitor = Plan(cfg).monitor
    if monitor is None or "fit" not in cfg.stages:
        raise UserError("the sweeper needs a score: stages must have fit, and dataset.monitor be a logged value")
    best = "minimize" if monitor.endswith("loss") else "maximize"
    if str(getattr(direction, "name", direction)) != best:
        raise UserError(f"hydra.sweeper.direction={direction}: set {best}, since the score is the best {monitor}")

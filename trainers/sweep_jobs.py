"""Files by which the jobs of a sweep tell what they do: jobs may run in other processes or on other machines."""

from __future__ import annotations

import functools
import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from utils.progress import duration

log = logging.getLogger(__name__)
PAUSE = 1.0  # seconds between two looks at the files


class Jobs:
    """A folder with ``sweep.json``, and of every job ``<number>.started.json`` and ``<number>.ended.json``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, **sweep: Any) -> None:
        """Write what all jobs read."""
        self.folder.mkdir(parents=True)
        self._write("sweep", {"start": time.time(), "pid": os.getpid(), **sweep})

    @property
    def sweep(self) -> dict[str, Any]:
        """See :meth:`begin`."""
        return json.loads((self.folder / "sweep.json").read_text())

    def start(self, number: int) -> None:
        self._write(f"{number}.started", {"start": time.time()})

    def end(self, number: int, **job: Any) -> None:
        """
        Args:
            job: ``overrides``, ``error`` (None without), ``config``, ``worked`` (False if all of it was done before).
        """
        start = self._read(f"{number}.started")["start"]
        self._write(f"{number}.ended", {"number": number, "seconds": time.time() - start, **job})

    def lose(self, number: int, overrides: list[str], error: str) -> None:
        """Note that a job failed which could not note it itself; does nothing if the job has noted its end."""
        if number in self._numbers("ended"):
            return
        if number not in self._numbers("started"):
            self.start(number)
        self.end(number, overrides=overrides, error=error, worked=False, config="")

    def ended(self) -> list[dict[str, Any]]:
        """What the jobs that have ended left, in order."""
        return [self._read(f"{number}.ended") for number in sorted(self._numbers("ended"))]

    def running(self) -> list[float]:
        """Times at which the jobs that have not ended began."""
        return [
            self._read(f"{number}.started")["start"] for number in self._numbers("started") - self._numbers("ended")
        ]

    def line(self) -> str:
        """Numbers of jobs, and the time left at the present pace; jobs that were done before say nothing about it."""
        sweep, ended, running = self.sweep, self.ended(), self.running()
        failed = sum(job["error"] is not None for job in ended)
        total = sweep["jobs"]
        parts = [f"{len(ended) - failed} done, {len(running)} running, {failed} failed of {total or '?'}"]
        if total and len(ended) < total and (times := [job["seconds"] for job in ended if job["worked"]]):
            mean, now, remaining = sum(times) / len(times), time.time(), total - len(ended)
            work = mean * remaining - sum(min(mean, max(0.0, now - start)) for start in running)
            at_once = max(1, min(remaining, sweep["parallel"] or len(running)))
            parts.append(f"about {duration(work / at_once)} left")
        return ", ".join(parts)

    def _numbers(self, kind: str) -> set[int]:
        return {int(file.name.partition(".")[0]) for file in self.folder.glob(f"*.{kind}.json")}

    def _read(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / f"{name}.json").read_text())

    def _write(self, name: str, content: dict[str, Any]) -> None:
        file = self.folder / f"{name}.json"
        temporary = file.with_suffix(".part")
        temporary.write_text(json.dumps(content))
        temporary.replace(file)


class Display(threading.Thread):
    """Log a line whenever a job ends, wherever it ran.

    Args:
        jobs: of the sweep.
        swept: keys that differ between jobs, which name a job.
    """

    def __init__(self, jobs: Jobs, swept: list[str]) -> None:
        super().__init__(daemon=True)
        self.jobs, self.swept = jobs, swept
        self.shown: set[int] = set()
        self.lock, self.stopped = threading.Lock(), threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(PAUSE):
            try:
                self.look()
            except OSError as error:  # a network disk that is away for a moment must not end the display
                log.debug("sweep: %s", error)

    def look(self) -> None:
        """Show the jobs that have ended since."""
        with self.lock:
            new = [job for job in self.jobs.ended() if job["number"] not in self.shown]
            for job in new:
                self.shown.add(job["number"])
                state = "failed" if job["error"] else "done" if job["worked"] else "was done before"
                log.info(
                    "sweep: %s: %s in %s; %s",
                    name_in(job, self.swept),
                    state,
                    duration(job["seconds"]),
                    self.jobs.line(),
                )

    def stop(self) -> None:
        self.stopped.set()
        self.join()
        self.look()


def name_in(job: dict[str, Any], swept: list[str]) -> str:
    """The overrides of a job that differ between jobs; its number if none does."""
    values = [override for override in job["overrides"] if override.partition("=")[0].lstrip("+") in swept]
    return " ".join(values) or f"job {job['number']}"


def count_lost_jobs_of_submitit(folder: Path) -> None:
    """Let jobs that end without a result, such as killed ones, count as failed: the launcher of submitit would stop at
    the first of them, and neither wait for the other jobs nor report.

    Args:
        folder: of the sweep's :class:`Jobs`.
    """
    from submitit import Job
    from submitit.core.utils import UncompletedJobError

    # Hydra loads launchers from its namespace of plugins only, so that a subclass could not be configured.
    results = getattr(Job.results, "__wrapped__", Job.results)

    @functools.wraps(results)
    def results_of(job: Job[JobReturn]) -> list[JobReturn]:
        try:
            return results(job)
        except UncompletedJobError:
            overrides, _, number, *_ = job.submission().args
            error = f"job {job.job_id} ended without a result ({job.state}), see {job.paths.stderr}"
            Jobs(folder).lose(number, overrides, error)
            # A failed job has no score, see trainers.sweep.
            returned = JobReturn(status=JobStatus.COMPLETED)
            returned.return_value = None
            return [returned]

    Job.results = results_of  # type: ignore[assignment, method-assign]

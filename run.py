"""The only entry point: ``python run.py [overrides]``. Stages, models and data sets are in ``configs/``.

The command line is checked before PyTorch is imported, so that a misspelled word and ``--help`` are answered at once.
"""

from __future__ import annotations

import logging
import os
import sys

import hydra
from omegaconf import DictConfig

from trainers.config.compose import VERSION_BASE, register, with_parts
from trainers.config.help import help_text
from trainers.config.overrides import check_overrides
from trainers.sweep import Sweep, is_job_of_sweep, prepare_job
from utils.errors import UserError, user_error
from utils.interruption import Interruption, interruption, stopped_by_sigterm, undisturbed
from utils.memory import keep_freed_memory, keep_imported
from utils.started import STARTED  # noqa: F401  before the imports that take time

register()


@hydra.main(version_base=VERSION_BASE, config_path="configs", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """One job; with ``--multirun``, one of several.

    Returns:
        Best validation score of stage fit, for sweepers that search.
    """
    if is_job_of_sweep():
        return run_stages(prepare_job(cfg))  # trainers.sweep reports errors, and goes on with the next job
    try:
        return run_stages(cfg)
    except Exception as error:
        if (problem := user_error(error)) is None:
            raise
        fail(problem)
    return None


def run_stages(cfg: DictConfig) -> float | None:
    if "check" in cfg.stages:
        from trainers.check_table import check_table

        check_table(cfg)
    if list(cfg.stages) == ["check"]:
        return None
    with keep_imported("trainers.run"):
        from trainers.run import run

    keep_freed_memory()
    return run(cfg)


def fail(error: UserError) -> None:
    for line in str(error).splitlines():
        logging.getLogger("error").error(line)
    sys.exit(2)


def interrupt(stop: Interruption) -> None:
    """End what this process has started, and say how to go on."""
    with undisturbed():
        logging.getLogger("error").error(Sweep.interrupt() or stop.message)
    sys.exit(stop.status)


if __name__ == "__main__":
    if {"--help", "-h"} & set(sys.argv[1:]):
        try:
            print(help_text(), flush=True)
        except BrokenPipeError:  # python run.py --help | head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it again when it ends
        sys.exit()
    try:
        sys.argv[1:] = with_parts(sys.argv[1:])
        check_overrides(sys.argv[1:])
    except UserError as problem:
        logging.basicConfig(format="[%(levelname).1s] %(message)s")
        fail(problem)
    Sweep.failed = 0
    try:
        with stopped_by_sigterm():
            main()
    except (KeyboardInterrupt, SystemExit) as error:
        if (stop := interruption(error)) is None:
            raise
        interrupt(stop)
    if Sweep.failed:
        sys.exit(2)

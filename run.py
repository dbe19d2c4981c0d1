"""The only entry point: ``python run.py [overrides]``. Stages, models and data sets are in ``configs/``.

The command line is checked before PyTorch is imported, so that a misspelled word and ``--help`` are answered at once.
"""

from __future__ import annotations

import logging
import sys

import hydra
from omegaconf import DictConfig

from trainers.config.compose import VERSION_BASE, register
from trainers.config.help import help_text
from trainers.config.overrides import check_overrides
from utils.errors import UserError

register()


@hydra.main(version_base=VERSION_BASE, config_path="configs", config_name="config")
def main(cfg: DictConfig) -> None:
    """One job; with ``--multirun``, one of several."""
    try:
        if "check" in cfg.stages:
            from trainers.check_table import check_table

            check_table(cfg)
        if list(cfg.stages) != ["check"]:
            from trainers.run import run
            from utils.memory import keep_freed_memory

            keep_freed_memory()
            run(cfg)
    except UserError as error:
        fail(error)


def fail(error: UserError) -> None:
    for line in str(error).splitlines():
        logging.getLogger("error").error(line)
    sys.exit(2)


if __name__ == "__main__":
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text())
        sys.exit()
    try:
        check_overrides(sys.argv[1:])
    except UserError as problem:
        logging.basicConfig(format="[%(levelname).1s] %(message)s")
        fail(problem)
    main()

"""The only entry point: ``python run.py [overrides]``. Stages, models and data sets are in ``configs/``."""

from __future__ import annotations

import logging
import sys

import hydra
from omegaconf import DictConfig

from trainers.config.resolvers import register_resolvers
from trainers.config.validate import check_overrides
from trainers.run import run
from utils.errors import UserError
from utils.memory import keep_freed_memory

register_resolvers()


@hydra.main(version_base=None, config_path="configs", config_name="config")
def main(cfg: DictConfig) -> None:
    """One job; with ``--multirun``, one of several."""
    try:
        keep_freed_memory()
        run(cfg)
    except UserError as error:
        fail(error)


def fail(error: UserError) -> None:
    for line in str(error).splitlines():
        logging.getLogger("error").error(line)
    sys.exit(2)


if __name__ == "__main__":
    try:
        check_overrides(sys.argv[1:])
    except UserError as problem:
        logging.basicConfig(format="[%(levelname).1s] %(message)s")
        fail(problem)
    main()

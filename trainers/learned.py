"""What a method learns from training rows before stage test predicts, in a file of its run directory."""

from __future__ import annotations

import logging
from typing import Any

from datasets.missingness import parse_scenario
from models.base import Learner, Method
from trainers.loading import Run
from utils.errors import UserError
from utils.inputs import KEY as INPUTS
from utils.run_directory import file_hash

log = logging.getLogger(__name__)
STAGE = "learned"  # of its marker


def learn(run: Run, model: Method) -> None:
    """Load what the method learned in an earlier run with the same settings, or let it learn and store it."""
    if (learner := model.learner) is None:
        return
    path, settings = run.directory / learner.file, _settings(run, learner)
    about = {"checkpoint": file_hash(run.checkpoint), INPUTS: run.inputs}
    with run.directory.held():
        if not run.directory.finished(STAGE, settings, path):
            run.directory.begin(STAGE, settings)
            learner.learn(
                run.data.loader(
                    "train",
                    parse_scenario("none"),  # what the source never had is missing
                    batch_size=run.cfg.gaussian.batch_size,
                    device=run.device,
                )
            )
            learner.save(path, about)
            run.directory.finish(STAGE, settings, files=[path.name])
            log.info("test: learned %s", path)
    stored = learner.load(path)
    run.check_inputs(stored, path)
    if stored.get("checkpoint") != about["checkpoint"]:
        raise UserError(
            f"{path} was learned on another checkpoint than {run.checkpoint}: delete it, and stage test learns it again"
        )


def _settings(run: Run, learner: Learner) -> dict[str, Any]:
    """Those of stage test that what is learned depends on."""
    settings = run.test_settings
    names = ("checkpoint", "data", "imputer")
    return {key: settings[key] for key in names if key in settings} | {
        "model": learner.settings,
        "seed": run.cfg.seed,
    }

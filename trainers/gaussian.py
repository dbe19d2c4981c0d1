"""Stage ``gaussian``: class-wise Gaussian parameters of the trained backbone."""

from __future__ import annotations

import logging

from pytorch_lightning.utilities import rank_zero_only

from datasets.missingness import parse_scenario
from gaussian_parameter_generation.estimate import check_split, estimate
from models.dymo.gaussian import GaussianParameters
from trainers.loading import Run
from trainers.processes import join
from utils.inputs import KEY as INPUTS
from utils.run_directory import file_hash
from utils.stopwatch import Stopwatch

log = logging.getLogger(__name__)


def estimate_parameters(run: Run) -> None:
    """``gaussian_<metric>.safetensors`` in the backbone's run directory."""
    cfg = run.cfg
    if run.trainable.gaussian:
        log.info("gaussian: using %s", run.trainable.gaussian)
        return
    check_split(cfg.gaussian.split)
    with run.fit_directory.held():
        _estimate(run)


def _estimate(run: Run) -> None:
    cfg, directory, settings = run.cfg, run.fit_directory, run.gaussian_settings
    if directory.finished("gaussian", settings, run.gaussian):
        log.info("gaussian: %s is there and valid, skipped", run.gaussian)
        return
    watch = Stopwatch()
    # The Student-t is fitted to all distances at once, by one process.
    if cfg.gaussian.student_t:
        rank, world_size = 0, 1
        if getattr(rank_zero_only, "rank", 0):
            return
    else:
        processes = join(cfg)
        rank, world_size = processes.rank, processes.count
    if rank == 0:
        directory.begin("gaussian", settings)
    model = run.load_backbone()
    batches = run.data.loader(
        cfg.gaussian.split,
        parse_scenario("none"),  # what the source never had is missing
        batch_size=cfg.gaussian.batch_size,
        device=run.device,
        rank=rank,
        world_size=world_size,
    )
    parameters = estimate(
        model,
        batches,
        split=cfg.gaussian.split,
        fit_student_t=cfg.gaussian.student_t,
        parallel=world_size > 1,
        progress=bool(cfg.trainer.enable_progress_bar),
    )
    if rank:
        return
    parameters.about = (parameters.about or {}) | {"checkpoint": file_hash(run.checkpoint), INPUTS: run.inputs}
    parameters.save(run.gaussian)
    GaussianParameters.load(run.gaussian)  # nothing is marked as finished that cannot be read
    directory.finish("gaussian", settings, files=[run.gaussian.name], effort=watch.read())
    log.info("gaussian: %s", run.gaussian)

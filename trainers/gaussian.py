"""Stage ``gaussian``: class-wise Gaussian parameters of the trained backbone."""

from __future__ import annotations

import logging

from datasets.missingness import parse_scenario
from gaussian_parameter_generation.estimate import check_split, estimate
from models.dymo.gaussian import GaussianParameters
from trainers.loading import Run
from trainers.processes import Processes, join
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
    processes = join(cfg, "gaussian")
    with run.fit_directory.held(), processes.common_work(is_last=False):
        # The first one decides for all.
        if not processes.share(processes.rank == 0 and _is_finished(run)):
            _estimate(run, processes)


def _is_finished(run: Run) -> bool:
    if not run.fit_directory.finished("gaussian", run.gaussian_settings, run.gaussian):
        return False
    log.info("gaussian: %s is there and valid, skipped", run.gaussian)
    return True


def _estimate(run: Run, processes: Processes) -> None:
    cfg, directory, settings = run.cfg, run.fit_directory, run.gaussian_settings
    watch = Stopwatch()
    rank, world_size = processes.rank, processes.count
    if cfg.gaussian.student_t:  # fitted to all distances at once, by one process
        if rank:
            return
        world_size = 1
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

"""Stage ``gaussian``: class-wise Gaussian parameters of the trained backbone."""

from __future__ import annotations

import logging

from gaussian_parameter_generation.estimate import check_split, estimate
from models.dymo.dynamic_transformer import DynamicTransformer
from trainers.context import Context
from utils.run_directory import file_hash

log = logging.getLogger(__name__)


def run(context: Context) -> None:
    """``gaussian_<metric>.safetensors`` in the backbone's run directory."""
    cfg = context.cfg
    if context.trainable.gaussian:
        log.info("gaussian: using %s", context.trainable.gaussian)
        return
    check_split(cfg.gaussian.split)
    directory, settings = context.trained, context.gaussian_settings
    if directory.finished("gaussian", settings, context.gaussian):
        log.info("gaussian: %s is there and valid, skipped", context.gaussian)
        return
    directory.begin("gaussian", settings)
    model = context.load_model()
    assert isinstance(model, DynamicTransformer)
    batches = context.data.loader(cfg.gaussian.split, batch_size=cfg.gaussian.batch_size, device=context.device)
    parameters = estimate(model, batches, split=cfg.gaussian.split, fit_student_t=cfg.gaussian.student_t)
    parameters.about = (parameters.about or {}) | {"checkpoint": file_hash(context.checkpoint)}
    parameters.save(context.gaussian)
    directory.finish("gaussian", settings)
    log.info("gaussian: %s", context.gaussian)

"""Checks of what is trained: epochs, batch sizes, warm-up, noise."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from trainers.config.build import build_modulation, build_noise
from trainers.config.imputers import imputer_nodes
from trainers.config.stages import fitted_node, trained_nodes
from utils.checks import check_number
from utils.errors import UserError


def check_training(cfg: DictConfig) -> Iterator[str]:
    """Model and imputer exist, and train for a possible length."""
    parts = dict.fromkeys((fitted_node(cfg), "imputer", *imputer_nodes(cfg)))
    for part in parts:
        if OmegaConf.select(cfg, f"{part}.module._target_") is None:
            yield (
                f"{part} has no module: an experiment or recipe made for another one was added, leave it out or "
                f"choose the {part.partition('.')[0]} that it is for"
            )
    for part in parts:
        for key in ("max_epochs", "batch_size", "patience", "accumulate_grad_batches"):
            yield from check_number(cfg, f"{part}.training.{key}", 1, whole=True)
        yield from check_number(cfg, f"{part}.training.gradient_clip_val", 0)
    yield from check_epochs(cfg)


def check_epochs(cfg: DictConfig) -> Iterator[str]:
    """Noise starts, and the warm-up ends, before the training of the model and of its parts does."""
    fitted = fitted_node(cfg)
    start = OmegaConf.select(cfg, f"{fitted}.noise.start_epoch")
    for part in trained_nodes(cfg, fitted):
        epochs = OmegaConf.select(cfg, f"{part}.training.max_epochs")
        if isinstance(start, int) and isinstance(epochs, int) and start >= epochs:
            yield (
                f"{fitted}.noise.start_epoch={start}: training of {part} ends after {epochs} epochs, so that none "
                "has noise; start earlier"
            )
        yield from check_number(cfg, f"{part}.training.warmup_epochs", 0, whole=True)
        training = OmegaConf.select(cfg, f"{part}.training")
        warmup = training.get("warmup_epochs") if training is not None else None
        if warmup and warmup >= training.max_epochs:
            yield (
                f"{part}.training.warmup_epochs={warmup}: none of {training.max_epochs} epochs could be the best, set "
                f"it below {part}.training.max_epochs"
            )


def check_noise_and_modulation(cfg: DictConfig) -> Iterator[str]:
    """``model.noise`` and ``model.modulation`` have keys and values that exist."""
    model = OmegaConf.select(cfg, fitted_node(cfg))
    if OmegaConf.select(model, "module._target_") is None:
        return
    for build in (build_noise, build_modulation):
        try:
            build(model)
        except UserError as error:
            yield from str(error).splitlines()

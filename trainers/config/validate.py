"""Check a configuration before any work starts, and report every problem at once, each with its fix."""

from __future__ import annotations

from omegaconf import DictConfig

from trainers.config.checks import files, method, scenarios, settings, targets, training
from trainers.config.grid import is_grid, training_parts
from utils.errors import UserError

CHECKS = (
    settings.check_stages,
    scenarios.check_scenarios,
    settings.check_settings,
    settings.check_export,
    settings.check_trainer_settings,
    training.check_training,
    method.check_method,
    training.check_noise_and_modulation,
    method.check_hooks,
    method.check_oracle,
    method.check_parts,
    files.check_checkpoints,
    files.check_weights,
    files.check_input_sizes,
    files.check_folders,
    targets.check_targets,
    targets.check_metrics,
)


def validate(cfg: DictConfig) -> None:
    """Check a composed configuration.

    Raises:
        UserError: all problems, one line each.
    """
    if is_grid(cfg):
        parts = [part.copy() for part in training_parts(cfg)]
        for part in parts:
            part.stages = part.stages or cfg.stages  # stage report alone
    else:
        parts = [cfg]
    problems = [problem for part in parts for problem in _problems(part)]
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))


def _problems(cfg: DictConfig) -> list[str]:
    return list(settings.check_structure(cfg)) or [problem for check in CHECKS for problem in check(cfg)]

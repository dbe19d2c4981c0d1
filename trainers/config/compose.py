"""The configuration files: where they are, and how they are composed."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from trainers.config.resolvers import register_resolvers

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
VERSION_BASE = "1.3"  # the version of Hydra whose defaults hold, whichever is installed


def compose_config(*overrides: str, configs: Path = CONFIGS) -> DictConfig:
    """Compose ``config.yaml`` with overrides as on the command line."""
    register_resolvers()
    with initialize_config_dir(str(configs), version_base=VERSION_BASE):
        return compose("config", list(overrides))

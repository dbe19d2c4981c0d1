"""The configuration files: where they are, and how they are composed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from trainers.config.resolvers import register_resolvers

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
VERSION_BASE = "1.3"  # the version of Hydra whose defaults hold, whichever is installed
# One file per data set, of which each block is an option of a group of its own.
BLOCK_FILES = ("recipe/*.yaml", "schedule/*/*.yaml")


def compose_config(*overrides: str, configs: Path = CONFIGS) -> DictConfig:
    """Compose ``config.yaml`` with overrides as on the command line."""
    register(configs)
    with initialize_config_dir(str(configs), version_base=VERSION_BASE):
        return compose("config", list(overrides))


def register(configs: Path = CONFIGS) -> None:
    """Make resolvers and :func:`blocks` known to Hydra, which is needed before it composes anything."""
    register_resolvers()
    for group, name, content in blocks(configs):
        ConfigStore.instance().store(group=group, name=name, node=content)


@cache
def blocks(configs: Path = CONFIGS) -> tuple[tuple[str, str, dict[str, Any]], ...]:
    """Group, name and content of the blocks of recipes and schedules.

    The block ``MAP`` of ``recipe/CAD.yaml`` is what a file ``recipe/CAD/MAP.yaml`` would be, and may have a defaults
    list like one.
    """
    return tuple(_blocks(configs))


def _blocks(configs: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for pattern in BLOCK_FILES:
        for file in sorted(configs.glob(pattern)):
            content: Any = OmegaConf.to_container(OmegaConf.load(file))
            for name, block in content.items():
                yield str(file.relative_to(configs).with_suffix("")), name, block

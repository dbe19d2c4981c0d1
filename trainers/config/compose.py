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
_stored: list[Path] = []  # the folder whose blocks Hydra has now
# Files of which each block is a separate option, one file per data set or study: pattern -> group.
BLOCK_FILES = {"recipe/*.yaml": "recipe", "schedule/*/*.yaml": "schedule", "study/*.yaml": "experiment"}


def compose_config(*overrides: str, configs: Path = CONFIGS) -> DictConfig:
    """Compose ``config.yaml`` with overrides as on the command line."""
    register(configs)
    with initialize_config_dir(str(configs), version_base=VERSION_BASE):
        return compose("config", list(overrides))


def register(configs: Path = CONFIGS) -> None:
    """Make resolvers and :func:`blocks` known to Hydra, which is needed before it composes anything."""
    register_resolvers()
    if _stored == [configs]:  # storing takes as long as a third of a composition
        return
    _stored[:] = [configs]
    for group, name, content in blocks(configs):
        package = "_global_" if group.startswith("experiment/") else None
        ConfigStore.instance().store(group=group, name=name, node=content, package=package)


@cache
def blocks(configs: Path = CONFIGS) -> tuple[tuple[str, str, dict[str, Any]], ...]:
    """Group, name and content of the blocks of recipes, schedules and studies.

    The block ``MAP`` of ``recipe/CAD.yaml`` is what a file ``recipe/CAD/MAP.yaml`` would be, and may have a defaults
    list like one; the block ``QMF`` of ``study/udml.yaml`` is the option ``experiment=udml/QMF``.
    """
    return tuple(_blocks(configs))


def _blocks(configs: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for pattern, group in BLOCK_FILES.items():
        for file in sorted(configs.glob(pattern)):
            folder = file.relative_to(configs / pattern.partition("/")[0]).with_suffix("")
            content: Any = OmegaConf.to_container(OmegaConf.load(file))
            for name, block in content.items():
                yield f"{group}/{folder}", name, block


def group_options(group: str, configs: Path = CONFIGS) -> list[str]:
    """Names of the options that a user can choose from a group."""
    names = [file.stem for file in (configs / group).glob("*.yaml")]
    if group == "experiment":
        names += [f"{path.removeprefix('experiment/')}/{name}" for path, name, _ in blocks(configs) if group in path]
    return sorted(name for name in names if not name.endswith("common"))

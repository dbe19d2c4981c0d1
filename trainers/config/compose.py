"""The configuration files: where they are, and how they are composed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from trainers.config.resolvers import register_resolvers
from utils.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
VERSION_BASE = "1.3"  # the version of Hydra whose defaults hold, whichever is installed
_stored: list[Path] = []  # the folder whose blocks Hydra has now
# Files of which each block is a separate option, one file per data set or study: pattern -> group.
BLOCK_FILES = {"recipe/*.yaml": "recipe", "schedule/*/*.yaml": "schedule", "study/*.yaml": "experiment"}

# imputer.modalities={film: MoPoE, labs: TIP}: an option of imputer= per modality, composed below imputer.parts.
MODALITIES, PARTS = "imputer.modalities", "imputer.parts"
# The parts are composed before the jobs of a sweep exist.
NO_SWEEP = (
    "a sweep cannot choose the imputers of modalities, as the configuration and the recipe of each are composed before "
    "its jobs: run one command per choice, each with another name="
)


def compose_config(*overrides: str, configs: Path = CONFIGS) -> DictConfig:
    """Compose ``config.yaml`` with overrides as on the command line."""
    register(configs)
    overrides = tuple(with_parts(overrides, configs))
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


def with_parts(texts: Sequence[str], configs: Path = CONFIGS) -> list[str]:
    """Overrides with the configuration of each part of ``imputer=Chain``.

    Args:
        texts: overrides, or the command line; those that are added already are not added again.

    Raises:
        UserError: ``imputer.modalities`` is no mapping, is swept, or names two imputers for a modality.
    """
    for text in texts:
        key, _, option = text.lstrip("+").partition("=")
        if key.startswith(f"{MODALITIES}."):
            name = key.removeprefix(f"{MODALITIES}.")
            swept = f"; {NO_SWEEP}" if "," in option else ""
            raise UserError(f"{text}: write {MODALITIES}={{{name}: {option.partition(',')[0]}}}{swept}")
    if not any(text.lstrip("+").startswith(f"{MODALITIES}=") for text in texts):
        return list(texts)
    try:
        overrides = OverridesParser.create().parse_overrides([t for t in texts if "=" in t and not t.startswith("-")])
    except HydraException:  # check_overrides reports it
        return list(texts)
    added = {override.package for override in overrides}
    chosen = {name: option for o in overrides if o.key_or_group == MODALITIES for name, option in _mapping(o).items()}
    new = [(name, option) for name, option in chosen.items() if f"{PARTS}.{name}" not in added]
    if not new:
        return list(texts)
    choices = _choices(overrides, configs)
    dataset, schedule = choices.get("dataset"), choices.get("schedule")
    known = {(group, name) for group, name, _ in blocks(configs)}
    extended = list(texts)
    for name, option in new:
        extended.append(f"+imputer@{PARTS}.{name}={option}")
        for group in (f"recipe/{dataset}", f"schedule/{schedule}/{dataset}"):  # as config.yaml adds them to an imputer
            if (group, option) in known:
                extended.append(f"+{group}@{PARTS}.{name}={option}")
    return extended


def _mapping(override: Override) -> dict[str, str]:
    """Modality -> option of an override of ``imputer.modalities``."""
    text = str(override.input_line).partition("=")[2]
    if override.is_sweep_override():
        raise UserError(f"{MODALITIES}={text}: {NO_SWEEP}")
    mapping: Any = override.value()
    if not isinstance(mapping, dict):
        example = "{film: MoPoE, labs: TIP}"
        raise UserError(f"{MODALITIES}={text}: must name an imputer per modality, such as '{MODALITIES}={example}'")
    names = re.findall(r"[{,]\s*([^,:{}\[\]]+?)\s*:", text)  # the parser keeps the last of equal keys
    twice = [name for name, option in mapping.items() if isinstance(option, list) or names.count(str(name)) > 1]
    if twice:
        raise UserError(f"{MODALITIES}={text}: names several imputers for '{twice[0]}', choose one per modality")
    return {str(name): str(option) for name, option in mapping.items()}


def _choices(overrides: Sequence[Override], configs: Path) -> dict[str, str]:
    """Chosen options of the groups; {} of a sweep over data sets or schedules, or if it does not compose."""
    if any(o.is_sweep_override() and o.key_or_group in ("dataset", "schedule", "experiment") for o in overrides):
        return {}
    groups = [str(o.input_line) for o in overrides if o.key_or_group in ("dataset", "schedule", "experiment")]
    register(configs)
    try:
        with initialize_config_dir(str(configs), version_base=VERSION_BASE):
            cfg = compose("config", groups, return_hydra_config=True)
    except HydraException:  # check_overrides reports it
        return {}
    return {str(group): str(option) for group, option in cfg.hydra.runtime.choices.items()}

"""Check the command line before anything that is slow to import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from trainers.config.compose import CONFIGS, VERSION_BASE, compose_config, group_options, register, with_parts
from utils.checks import nearest
from utils.errors import UserError, first_line

LISTED_GROUPS = ("logger",)  # groups that take several options at once
# Keys of earlier versions, for messages.
RENAMED_KEYS = {"dataset.low": "dataset.train_fraction", "dataset.baselines": "dataset.training_defaults"}


def check_overrides(arguments: Sequence[str], configs: Path = CONFIGS) -> None:
    """Find misspelled keys and options on the command line.

    Hydra would advise to append the key with ``+``, which nothing would read.

    Raises:
        UserError: one line per bad override, with the nearest known spelling.
    """
    texts = with_parts(get_args_parser().parse_args(list(arguments)).overrides, configs)
    try:
        overrides = OverridesParser.create().parse_overrides(texts)
    except HydraException as error:
        raise UserError(f"cannot read the overrides: {first_line(error)}") from None
    hydra_texts = [text for text, o in zip(texts, overrides) if o.key_or_group.startswith("hydra")]
    others = [o for o in overrides if not o.key_or_group.startswith("hydra")]
    of_parts = [o for o in others if o.package and o.key_or_group.partition("/")[0] in ("recipe", "schedule")]
    groups = [o for o in others if o not in of_parts and (configs / o.key_or_group).is_dir()]
    problems = _hydra_problems(hydra_texts, configs)
    chosen: dict[str, str] = {}
    for override in groups:
        problems += _option_problems(override, configs)
        package = f"@{override.package}" if override.package else ""
        group = f"{'+' * override.is_add()}{override.key_or_group}{package}"
        chosen.setdefault(group.lstrip("+"), f"{group}={_options(override)[0]}")
    if not problems:
        chosen |= {str(o.input_line): str(o.input_line) for o in of_parts}
        cfg = compose_config(*chosen.values(), configs=configs)
        problems = [p for o in others if o not in (*groups, *of_parts) and (p := _unknown_key(cfg, o))]
    if problems:
        raise UserError("\n".join(problems))


def swept_values(arguments: Sequence[str], params: Mapping[str, Any]) -> dict[str, list[str]]:
    """Key -> its values as overrides, of the keys that have several, or whose values the sweeper chooses (of an
    interval, its ends). Hydra's own sweeper runs every combination.

    Args:
        arguments: of the command line.
        params: key -> values that the configuration sweeps by itself, as text; those of the command line replace them.
    """
    texts = [f"{key}={value}" for key, value in params.items()]
    texts += get_args_parser().parse_args(list(arguments)).overrides
    last = {override.key_or_group: override for override in OverridesParser.create().parse_overrides(texts)}
    ends = {key: value for key, o in last.items() if isinstance(value := o.value(), IntervalSweep)}
    values = {key: list(o.sweep_string_iterator()) for key, o in last.items() if o.is_discrete_sweep()}
    return values | {key: [str(interval.start), str(interval.end)] for key, interval in ends.items()}


def _options(override: Override) -> list[str]:
    """The options of a group that an override names: several in a sweep or a list."""
    value = override.value()
    if override.is_sweep_override():
        return [str(option) for option in getattr(value, "list", [])]
    return [str(option) for option in value] if isinstance(value, list) else [str(value)]


def _option_problems(override: Override, configs: Path) -> list[str]:
    """Why the options that an override chooses do not exist."""
    group, known = override.key_or_group, group_options(override.key_or_group, configs)
    if isinstance(override.value(), list) and group not in LISTED_GROUPS:
        return [f"{group}={_text(override)}: takes one option, choose one of {', '.join(known)}"]
    problems = []
    for name in _options(override):
        if name == "None":
            problems.append(f"{group}=null: leave it out, or choose one of {', '.join(known)}")
        elif name not in known:
            problems.append(f"{group}={name}: there is no such option{nearest(name, known)}")
    return problems


def _hydra_problems(texts: Sequence[str], configs: Path) -> list[str]:
    """Overrides of Hydra's own configuration (launcher, sweeper, folders) that it would refuse with a traceback."""
    problems = []
    register(configs)
    chosen: list[str] = []  # the options that the values of others may depend on
    for text in sorted(texts, key=lambda text: "/" not in text.partition("=")[0]):
        group, _, name = text.partition("=")
        with initialize_config_dir(str(configs), version_base=VERSION_BASE):
            try:
                compose("config", [*chosen, text], return_hydra_config=True)
            except HydraException as error:
                known = GlobalHydra.instance().config_loader().get_group_options(group.lstrip("+~"))
                what = group.rpartition("/")[2]
                problems.append(
                    f"{text}: there is no such {what}, known are {', '.join(known)}; install the plugin that has it "
                    f"(for example pip install hydra-{name.partition('_')[0]}-{what}), or leave it out"
                    if known
                    else f"{text}: {first_line(error)} python run.py --cfg hydra prints the known keys."
                )
                continue
        if "/" in group:
            chosen.append(text)
    return problems


def _text(override: Override) -> str:
    """The value of an override as it was written."""
    return str(override.input_line).partition("=")[2]


def _unknown_key(cfg: DictConfig, override: Override) -> str | None:
    """Why an override's key would not be read, or None."""
    node: Any = cfg
    parts = override.key_or_group.split(".")
    for depth, part in enumerate(parts):
        known = [str(key) for key in node] if isinstance(node, DictConfig) else []
        if part not in known:
            # A mapping without keys, such as the weights of an imputer, has those of the user.
            is_empty = isinstance(node, DictConfig) and depth > 0 and not known
            is_open = is_empty or (
                isinstance(node, DictConfig) and ("_target_" in node or parts[0] in ("logger", "trainer"))
            )
            if override.is_add() and is_open and depth == len(parts) - 1:
                return None
            if override.is_add() and parts[0] == "metrics" and depth:
                return None
            key, where = ".".join(parts[: depth + 1]), ".".join(parts[:depth]) or "the configuration"
            hint = f"; it is {RENAMED_KEYS[key]} now" if key in RENAMED_KEYS else nearest(part, known)
            if is_empty and depth == len(parts) - 1:
                hint = f"; to add it, write +{override.key_or_group}={_text(override)}"
            return f"unknown key '{override.key_or_group}': {where} has no '{part}'{hint}"
        try:
            node = node[part]
        except OmegaConfBaseException:  # an interpolation or mandatory value: nothing lies below it
            node = None
    return None

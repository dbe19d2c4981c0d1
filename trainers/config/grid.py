"""A grid of training scenarios: ``missing.train`` as a list stands for one run per entry."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from datasets.missingness import Scenario, parse_scenario
from utils.errors import UserError


def is_grid(cfg: DictConfig) -> bool:
    """Whether ``missing.train`` is a list of scenarios."""
    return OmegaConf.is_list(cfg.missing.train)


def training_parts(cfg: DictConfig) -> list[DictConfig]:
    """One configuration per scenario of ``missing.train``, named ``<name>_<scenario>`` and without stage ``report``.

    All are tested under the scenarios of ``missing.test``. Where ``missing.val`` refers to ``missing.train``, each is
    validated under the scenario that it is trained with.

    Raises:
        UserError: a scenario that cannot be read or is listed twice, or no scenario.
    """
    test = OmegaConf.to_container(cfg.missing, resolve=True)["test"]  # type: ignore[index, call-overload]
    parts: dict[str, DictConfig] = {}
    for spec in list(cfg.missing.train):
        scenario = parse_scenario(spec)
        part = cfg.copy()
        part.missing.test, part.missing.train = test, spec
        part.name = _name(cfg.name, scenario)
        part.stages = [stage for stage in cfg.stages if stage != "report"]
        if scenario.slug in parts:
            raise UserError(f"missing.train lists '{scenario.name}' twice: name each scenario once")
        parts[scenario.slug] = part
    if not parts:
        raise UserError("missing.train is an empty list: name at least one scenario, for example none")
    return list(parts.values())


def run_names(cfg: DictConfig, name: str) -> list[str]:
    """Names of the runs that a configuration called ``name`` makes: of a grid, one per scenario."""
    return [_name(name, parse_scenario(spec)) for spec in cfg.missing.train] if is_grid(cfg) else [name]


def _name(name: str, scenario: Scenario) -> str:
    return f"{name}_{scenario.slug}"

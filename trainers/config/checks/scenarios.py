"""Checks of ``missing``: what is missing in training, validation and test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from datasets.missingness import parse_scenario, parse_scenarios
from datasets.missingness.base import Scenario
from utils.errors import UserError


def check_scenarios(cfg: DictConfig) -> Iterator[str]:
    """Scenarios that cannot be read, do not fit the modalities, or name absent files."""
    if not cfg.missing.test:
        yield "missing.test is empty: name at least one scenario, for example none"
    for split in ("test", "train", "val"):
        try:
            scenarios = scenarios_of(cfg, split)
        except UserError as error:
            yield from str(error).splitlines()
            continue
        for scenario in scenarios:
            if split == "train" and scenario.noise is not None:
                yield (
                    f"missing.train={scenario.name}: noise on training batches is model.noise, for example "
                    "model.noise={levels: [4], clean_share: 0}"
                )
            for file in scenario.files if ("test" if split == "test" else "fit") in (cfg.stages or []) else ():
                if not Path(file).is_file():
                    yield f"missing.{split}: mask file {file} does not exist"


def scenarios_of(cfg: DictConfig, split: str) -> list[Scenario]:
    """The scenarios of a split, checked against the modalities of the data set.

    Raises:
        UserError: one cannot be read, or does not fit.
    """
    modalities = list(cfg.dataset.modalities)
    if split == "test":
        return parse_scenarios(list(cfg.missing.test or []), len(modalities), modalities)
    scenario = parse_scenario(cfg.missing[split])
    scenario.check(len(modalities), modalities)
    return [scenario]


def hiding_test_scenarios(cfg: DictConfig) -> list[str]:
    """Names of the test scenarios that hide something; none if they cannot be read."""
    try:
        return [scenario.name for scenario in scenarios_of(cfg, "test") if scenario.hides]
    except UserError:
        return []

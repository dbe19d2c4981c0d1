"""Scenarios from names and mappings. :data:`SCENARIOS` lists the kinds; each is a class in a file of its own."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from datasets.missingness.base import Scenario
from datasets.missingness.correlated import Correlated
from datasets.missingness.file import File
from datasets.missingness.image_text import ImageText
from datasets.missingness.mar import Mar
from datasets.missingness.mnar import Mnar
from datasets.missingness.nested import Nested
from datasets.missingness.none import Complete
from datasets.missingness.patterns import Patterns
from datasets.missingness.random import Random
from datasets.missingness.rates import Rates
from datasets.missingness.segments import Segments
from datasets.missingness.table import Table
from datasets.missingness.whole import Whole, subsets, visited_subsets
from datasets.noise import Noise, parse_noise
from utils.errors import UserError

SCENARIOS: tuple[type[Scenario], ...] = (
    Complete,
    Whole,
    Random,
    Table,
    ImageText,
    Nested,
    File,
    Mar,
    Mnar,
    Rates,
    Correlated,
    Segments,
    Patterns,
)
SUBSETS = re.compile(r"subsets(?:_(\d+))?")  # all patterns, or those that some random orders visit
NOISE_EXAMPLES = {
    "noise_gaussian_4_m0": "nothing; modality `m0` has Gaussian noise of level 4, [see below](#noise)",
    "noise_gaussian_4_all+random_0.4": "as in `random_0.4`; the remaining modalities have Gaussian noise of level 4",
}
NOISE_KEYS = ("operator", "level", "modalities", "missing")
SUBSETS_EXAMPLES = {
    "subsets": "stands for all 2^M − 1 patterns of missing modalities, each as a scenario `whole_...`; only in "
    "`missing.test`",
    "subsets_20": "stands for the patterns that occur when modalities are added in 20 random orders; measures the "
    "[contributions](#measures-of-a-report) of more than 6 modalities; only in `missing.test`",
}
# Kind -> names -> what is missing: the table of docs/missingness.md, and the list in error messages.
EXAMPLES: dict[str, Mapping[str, str]] = {
    **{scenario.kind: scenario.examples for scenario in SCENARIOS},
    "noise": NOISE_EXAMPLES,
    "subsets": SUBSETS_EXAMPLES,
}


def parse_scenario(spec: str | Mapping[str, Any]) -> Scenario:
    """The scenario of a name, or of a mapping (``{kind: random, rate: 0.4, generator: global}``).

    Raises:
        UserError: unknown kind or impossible value; the message names the nearest known kind.
    """
    if isinstance(spec, Mapping):
        return _from_mapping({str(key): value for key, value in spec.items()})
    text = str(spec).strip()
    if SUBSETS.fullmatch(text):
        raise UserError(f"missing scenario '{text}' stands for many patterns: it can be named in missing.test alone")
    if text.startswith("noise_"):
        noise, _, pattern = text.partition("+")
        return with_noise(parse_noise(noise), parse_scenario(pattern or "none"))
    try:
        for kind in SCENARIOS:
            if (scenario := kind.parse(text)) is not None:
                return scenario
    except UserError as error:
        raise UserError(f"missing scenario '{text}': {error}") from None
    guess = difflib.get_close_matches(re.split(r"[_:]", text)[0], EXAMPLES, 1)
    hint = f"did you mean '{guess[0]}'? " if guess else ""
    *names, last = (name for examples in EXAMPLES.values() for name in examples)
    raise UserError(f"unknown missing scenario '{text}': {hint}known are {', '.join(names)} and {last}")


def _from_mapping(spec: Mapping[str, Any]) -> Scenario:
    values = dict(spec)
    name = values.pop("kind", None)
    kinds = {kind.kind: kind for kind in SCENARIOS}
    if name not in (*kinds, "noise"):
        raise UserError(f"missing scenario {spec}: kind must be one of {', '.join(kinds)}, noise")
    if unknown := set(values) - set(NOISE_KEYS if name == "noise" else kinds[name].keys):
        raise UserError(f"missing scenario {spec}: unknown key '{min(unknown)}' for kind {name}")
    if name == "noise":
        where = values.get("modalities", "all")
        where = where if isinstance(where, str | int) else "-".join(map(str, where))
        noise = parse_noise(f"noise_{values.get('operator', 'gaussian')}_{values.get('level')}_{where}")
        return with_noise(noise, parse_scenario(values.get("missing", "none")))
    try:
        return kinds[name].from_mapping(values)
    except UserError as error:
        raise UserError(f"missing scenario {spec}: {error}") from None


def with_noise(noise: Noise, pattern: Scenario) -> Scenario:
    """The pattern of missing data, with noise on what remains.

    Raises:
        UserError: it has noise already.
    """
    if pattern.noise is not None:
        raise UserError(f"missing scenario '{noise.name}+{pattern.name}': one noise at a time, remove the other")
    return replace(pattern, noise=noise)


def parse_scenarios(
    specs: Sequence[str | Mapping[str, Any]], n_modalities: int, names: Sequence[str] | None = None
) -> list[Scenario]:
    """All scenarios of a list, in its order, without duplicates; ``subsets`` is expanded.

    Args:
        n_modalities: each scenario is checked against it.
        names: of the modalities, if known.

    Raises:
        UserError: one line per bad entry, and for each two that would be written under one name.
    """
    scenarios: dict[str, Scenario] = {}  # by slug: the name of their files
    problems = []
    for spec in specs:
        try:
            for scenario in _expanded(spec, n_modalities):
                scenario.check(n_modalities, names)
                first = scenarios.setdefault(scenario.slug, scenario)
                if not first.is_same(scenario):
                    sources = [", ".join(map(str, s.files)) or s.name for s in (first, scenario)]
                    raise UserError(
                        f"missing scenarios '{sources[0]}' and '{sources[1]}' would both be called '{scenario.slug}': "
                        "rename one of the files"
                    )
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return list(scenarios.values())


def _expanded(spec: str | Mapping[str, Any], m: int) -> list[Scenario]:
    """The scenarios that an entry of ``missing.test`` stands for."""
    match = SUBSETS.fullmatch(spec.strip()) if isinstance(spec, str) else None
    if match is None:
        return [parse_scenario(spec)]
    if match[1] is None:
        return subsets(m)
    if int(match[1]) < 2:
        raise UserError(f"missing scenario '{match[0]}': errors of contributions need two orders or more")
    return visited_subsets(m, int(match[1]))


def check_validation(entries: Sequence[Any], modalities: int, key: str) -> Iterator[str]:
    """Scenarios that are simulated on validation data: one message per entry that is none, or that has noise.

    Args:
        modalities: number of modalities.
        key: of the entries in the configuration.
    """
    try:
        scenarios = parse_scenarios(list(entries), modalities)
    except UserError as error:
        yield from str(error).splitlines()
        return
    for scenario in scenarios:
        if scenario.noise is not None:
            yield f"{key}: {scenario.name} has noise, which missing.test alone takes"

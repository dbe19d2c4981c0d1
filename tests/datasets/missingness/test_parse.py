"""Scenarios from names, mappings and lists; refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.missingness import Scenario, parse_scenario, parse_scenarios
from datasets.missingness.base import MISSING_RATE
from datasets.missingness.mask_files import write_dymo_csv
from datasets.missingness.parse import EXAMPLES, SCENARIOS
from datasets.missingness.whole import whole
from utils.errors import UserError

quick = settings(max_examples=40, deadline=None)


columns_of = st.sets(st.integers(0, 14), max_size=5).map(lambda columns: whole(sorted(columns)))

rates_of = st.tuples(st.sampled_from(("exact", "global", "bernoulli")), st.floats(0, 1, exclude_max=True)).map(
    lambda pair: parse_scenario({"kind": "random", "generator": pair[0], "rate": pair[1]})
)


@quick
@given(columns_of | rates_of)
def test_every_name_reads_back(scenario: Scenario) -> None:
    assert parse_scenario(scenario.name) == scenario
    assert set(scenario.slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.-") and scenario.slug


def test_a_list_keeps_its_order_and_drops_duplicates() -> None:
    names = [s.name for s in parse_scenarios(["random_0.4", "none", "whole_1_0", "random_exact_0.4", "01"], 5)]
    assert names == ["random_0.4", "none", "whole_01"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("randm_0.4", "unknown missing scenario 'randm_0.4': did you mean 'random'?"),
        ("hole_12", "did you mean 'whole'?"),
        ("fiel:m.csv", "did you mean 'file'?"),
        ("quux", "known are none, whole_12, random_0.8"),
        ("random_1.2", "the rate 1.2 is outside"),
        ("random_-0.1", "the rate -0.1 is outside"),
        ("random_nan", "the rate nan is outside"),
        ("random_1", "the rate 1 is outside"),
        ("random_", "'' is not a rate"),
        ("random_often", "'often' is not a rate"),
        ("random_globl_0.4", "unknown generator 'globl', known are exact, global, bernoulli"),
        ("random_0.9", "'random_0.9' would leave no modality of 5 in some rows: the highest rate is 0.8"),
        ("random_0.81", "the highest rate is 0.8"),
        ("whole_7", "there is no modality 7, the data set has 0 to 4"),
        ("whole_01234", "leaves nothing present"),
        ("file:", "no file is named"),
        ({"kind": "randm", "rate": 0.4}, "kind must be one of none, whole, random, table, image_text, nested, file"),
        ({"kind": "random", "rte": 0.4}, "unknown key 'rte'"),
        ({"kind": "random"}, "is not a rate"),
        ({"kind": "random", "rate": True}, "is not a rate"),
        ({"kind": "whole", "modalities": [-1]}, "list of column numbers"),
        ({"kind": "whole", "modalities": ["m0"]}, "list of column numbers"),
        ({"rate": 0.4}, "kind must be one of"),
        (None, "unknown missing scenario 'None'"),
    ],
)
def test_bad_scenarios_are_named_in_one_line(spec: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_scenarios([spec], 5)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_every_bad_entry_of_a_list_is_reported() -> None:
    with pytest.raises(UserError) as error:
        parse_scenarios(["random_1.2", "none", "whole_9", "quux"], 5)
    lines = str(error.value).splitlines()
    assert len(lines) == 3 and all(word in line for word, line in zip(("1.2", "modality 9", "quux"), lines))


def test_subsets_name_no_single_scenario() -> None:
    with pytest.raises(UserError, match=r"missing\.test alone"):
        parse_scenario("subsets")


def test_two_files_of_one_name_are_refused_and_one_file_twice_is_not(tmp_path: Path, monkeypatch) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_dymo_csv(tmp_path / folder / "m.csv", np.zeros((2, 5), dtype=bool))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"'a/m\.csv' and 'b/m\.csv' would both be called 'file_m': rename"):
        parse_scenarios(["file:a/m.csv", "none", "file:b/m.csv"], 5)
    with pytest.raises(UserError, match="rename one of the files"):
        parse_scenarios(["file:a/m.csv", "file:a/m"], 5)
    once = parse_scenarios(["file:a/m.csv", f"file:{tmp_path}/b/../a/m.csv"], 5)
    assert [(s.name, s.slug) for s in once] == [("file:m.csv", "file_m")]


def test_every_kind_names_its_examples_and_describes_them_apart() -> None:
    """Kinds are read from the registry: a new one is covered without a change here."""
    names = [name for kind in SCENARIOS for name in kind.examples] + list(EXAMPLES["noise"])
    scenarios = [parse_scenario(name) for name in names]
    assert [scenario.name for scenario in scenarios] == names
    for modalities in ((), ("image", "text", "table")):
        captions = [scenario.caption(modalities) for scenario in scenarios]
        assert all(captions) and len(set(captions)) == len(captions)
    families = [place.family for scenario in scenarios if (place := scenario.place()) and place.axis == MISSING_RATE]
    assert len(set(families)) == len(families) > 10
    for kind in SCENARIOS:
        (pattern,) = {type(parse_scenario(name)) for name in kind.examples}
        assert pattern is kind and next(iter(kind.examples)).startswith(kind.kind)

"""Fixed patterns of missing modalities."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from omegaconf import OmegaConf

from datasets.missingness import Rows, parse_scenario, parse_scenarios
from datasets.missingness.whole import Whole
from utils.errors import UserError

NAMES = [f"m{i}" for i in range(5)]


@pytest.mark.parametrize(
    ("spec", "name", "columns"),
    [
        ("none", "none", ()),
        ("whole_none", "none", ()),
        ("whole_12", "whole_12", (1, 2)),
        ("whole_1_2", "whole_12", (1, 2)),
        ("whole_1_2_3_4", "whole_1234", (1, 2, 3, 4)),
        ("0", "whole_0", (0,)),
        ("21", "whole_12", (1, 2)),
        (12, "whole_12", (1, 2)),
        ("whole_2_10", "whole_2_10", (2, 10)),
        ({"kind": "whole", "modalities": [3, 1]}, "whole_13", (1, 3)),
        ({"kind": "whole", "modalities": []}, "none", ()),
        (OmegaConf.create({"kind": "whole", "modalities": [0]}), "whole_0", (0,)),
        ({"kind": "none"}, "none", ()),
    ],
)
def test_fixed_patterns(spec: Any, name: str, columns: tuple[int, ...]) -> None:
    scenario = parse_scenario(spec)
    assert (scenario.name, scenario.always_missing) == (name, columns)
    mask = scenario.generate(Rows(4, 12))
    assert mask.tolist() == [[i in columns for i in range(12)]] * 4


def test_subsets_stand_for_all_patterns() -> None:
    scenarios = parse_scenarios(["subsets"], 5)
    patterns = {tuple(s.generate(Rows(1, 5))[0].tolist()) for s in scenarios}
    assert len(scenarios) == len(patterns) == 31 and (True,) * 5 not in patterns
    assert scenarios[0].name == "none" and len({s.slug for s in scenarios}) == 31
    expected = {
        tuple(i not in remaining for i in range(5))
        for size in range(1, 6)
        for remaining in combinations(range(5), size)
    }
    assert patterns == expected


def test_a_negative_column_is_not_counted_from_the_end() -> None:
    with pytest.raises(UserError, match="no modality -1"):
        Whole((-1,)).check(5)

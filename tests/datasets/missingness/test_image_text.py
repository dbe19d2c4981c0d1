"""Missing images and texts: MAP's missing tables bit for bit."""

from __future__ import annotations

import random

import numpy as np
import pytest

from datasets.missingness import Rows, parse_scenario
from datasets.missingness.image_text import map_codes
from utils.errors import UserError


@pytest.mark.parametrize(
    ("n", "missing", "image", "text"),
    [  # docs/reference/datasets.md §14.4, rate 0.7
        (15_552, 10_886, 5_443, 5_443),
        (2_608, 1_825, 912, 913),
        (7_799, 5_459, 2_729, 2_730),
        (61_142, 42_799, 21_399, 21_400),
        (6_846, 4_792, 2_396, 2_396),
        (22_716, 15_901, 7_950, 7_951),
    ],
)
def test_missing_tables_have_the_golden_counts(n: int, missing: int, image: int, text: int) -> None:
    kinds = ["image", "text"]
    for side, counts in (("both", [image, text]), ("text", [0, missing]), ("image", [missing, 0])):
        mask = parse_scenario(f"image_text_{side}_0.7").generate(Rows(n, 2, 0, kinds))
        assert mask.sum(0).tolist() == counts and not mask.all(1).any() and (~mask.any(1)).sum() == n - missing


def test_missing_tables_are_those_of_python_s_global_generator() -> None:
    """MAP computes these, as a list, after seeding the global generator with 0 (docs/reference/datasets.md §12.4.1)."""
    for side in ("text", "image", "both"):
        random.seed(0)
        table = [0] * 100
        picked = random.sample(range(100), int(100 * 0.7))
        for i in picked:
            table[i] = 2 if side == "image" else 1
        if side == "both":
            for i in random.sample(picked, int(70 * 0.5)):
                table[i] = 2
        assert map_codes(100, side, 0.7, 0).tolist() == table
    # random.seed(0); random.sample(range(10), 7) is [6, 9, 0, 2, 4, 3, 5] in Python 3.11.
    assert np.flatnonzero(map_codes(10, "text", 0.7, 0)).tolist() == [0, 2, 3, 4, 5, 6, 9]


def test_the_tables_of_map_in_running_order() -> None:
    rows = {"train": 40, "val": 15, "test": 25}
    for side in ("text", "image", "both"):
        rng = random.Random(0)  # the release's generator, seeded once
        earlier: list[int] = []
        for split, n in rows.items():
            k = int(n * 0.7)
            codes = np.zeros(n, dtype=int)
            picked = rng.sample(range(n), k)
            codes[picked] = 2 if side == "image" else 1
            if side == "both":
                codes[rng.sample(picked, int(k * 0.5))] = 2
            expected = np.stack([codes == 2, codes == 1], axis=1)
            scenario = parse_scenario(f"image_text_running_{side}_0.7")
            seed = scenario.seed(2025, list(rows).index(split))
            mask = scenario.generate(Rows(n, 2, seed, ["image", "text"], earlier=earlier))
            assert np.array_equal(mask, expected)
            plain = parse_scenario(f"image_text_{side}_0.7").generate(Rows(n, 2, seed, ["image", "text"]))
            assert np.array_equal(plain, mask) == (split == "train")
            earlier.append(n)
    named = parse_scenario("image_text_running_both_0.7")
    assert named.name == "image_text_running_both_0.7"
    assert named == parse_scenario({"kind": "image_text", "strategy": "both", "rate": 0.7, "order": "running"})
    with pytest.raises(UserError, match="unknown order 'backwards', leave it out or write running"):
        parse_scenario({"kind": "image_text", "rate": 0.7, "order": "backwards"})

"""Missingness protocols: golden masks, properties, names, refusals, mask files."""

from __future__ import annotations

import json
import math
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from datasets.missingness import Rows, Scenario, mask_hash, parse_scenario, parse_scenarios, save_mask, unobserved
from datasets.missingness.mask_files import read_dymo_csv, write_dymo_csv
from datasets.missingness.random import Random, random_mask
from datasets.missingness.whole import Whole, whole
from utils.errors import UserError

NAMES = [f"m{i}" for i in range(5)]
quick = settings(max_examples=40, deadline=None)


def generate(spec: Any, n: int, m: int = 5, seed: int = 2025) -> np.ndarray:
    return parse_scenario(spec).generate(Rows(n, m, seed))


# ------------------------------------------------------------------------------------------------------ golden values


@pytest.mark.parametrize(
    ("k", "first_row", "columns"),
    [  # docs/reference/datasets.md §14.2: default_rng(2025), N = 7,000, M = 5
        (1, "FTFFF", [1393, 1389, 1351, 1472, 1395]),
        (2, "FTTFF", [2762, 2764, 2830, 2792, 2852]),
        (3, "FTTTF", [4232, 4159, 4206, 4167, 4236]),
        (4, "FTTTT", [5634, 5571, 5621, 5578, 5596]),
    ],
)
def test_exact_generator_gives_the_golden_masks(k: int, first_row: str, columns: list[int]) -> None:
    mask = generate(f"random_{k / 5:g}", 7000)
    assert mask.dtype == bool and mask.shape == (7000, 5)
    assert "".join("FT"[int(v)] for v in mask[0]) == first_row
    assert mask.sum(0).tolist() == columns
    assert (mask.sum(1) == k).all() and mask.mean() == k / 5


def test_each_split_has_its_own_seed(composed) -> None:
    """2025, 2026, 2027 for train, val, test (docs/reference/datasets.md §12.2.2)."""
    from trainers.config.build import build_data

    data = build_data(composed())
    data.prepare()
    scenario = parse_scenario("random_0.4")
    for offset, split in enumerate(("train", "val", "test")):
        mask = data.mask(split, scenario)
        draws = np.random.default_rng(2025 + offset).random(mask.shape)
        expected = np.zeros_like(mask)
        for row, values in enumerate(draws):
            expected[row, sorted(range(5), key=lambda i: values[i])[:2]] = True
        assert np.array_equal(mask, expected), split


# --------------------------------------------------------------------------------------------------------- properties


@quick
@given(st.integers(1, 60), st.integers(2, 7), st.data(), st.integers(0, 2**32 - 1))
def test_exact_masks_have_exactly_their_rate_and_are_nested(n: int, m: int, data: st.DataObject, seed: int) -> None:
    counts = sorted(data.draw(st.sets(st.integers(0, m - 1), min_size=1, max_size=3)))
    masks = [random_mask(n, m, k / m, "exact", seed) for k in counts]
    for k, mask in zip(counts, masks):
        assert mask.shape == (n, m) and mask.dtype == bool
        assert (mask.sum(1) == k).all()
    for small, large in pairwise(masks):
        assert (small <= large).all(), "what is missing at a lower rate is missing at a higher one"
    assert np.array_equal(masks[0], random_mask(n, m, counts[0] / m, "exact", seed))


@quick
@given(st.integers(100, 600), st.integers(2, 6), st.floats(0, 0.999), st.integers(0, 2**32 - 1))
def test_global_masks_hit_the_rate_and_keep_one_in_every_row(n: int, m: int, rate: float, seed: int) -> None:
    mask = random_mask(n, m, rate, "global", seed)
    assert mask.shape == (n, m) and (~mask).any(1).all()
    # One modality a row must stay, so nothing above (m - 1) / m can be had.
    assert abs(mask.mean() - min(rate, (m - 1) / m)) <= max(0.005, 1 / (n * m)) + 1e-12


@quick
@given(st.integers(1, 200), st.integers(1, 6), st.floats(0, 0.95), st.integers(0, 2**32 - 1))
def test_bernoulli_masks_never_leave_a_row_empty(n: int, m: int, rate: float, seed: int) -> None:
    mask = random_mask(n, m, rate, "bernoulli", seed)
    assert mask.shape == (n, m) and (~mask).any(1).all()


def test_bernoulli_rate_is_that_of_rows_that_are_not_empty() -> None:
    """E = (r - r^5) / (1 - r^5) = 0.702 at r = 0.8 (docs/reference/datasets.md §12.2.2); 100,000 rows, 5 standard
    errors of a row.
    """
    rate = 0.8
    expected = (rate - rate**5) / (1 - rate**5)
    assert expected == pytest.approx(0.702, abs=1e-3)
    mask = random_mask(100_000, 5, rate, "bernoulli", 0)
    assert abs(mask.mean() - expected) < 5 * mask.mean(1).std() / math.sqrt(len(mask))


def test_global_rows_vary_in_their_number() -> None:
    counts = np.bincount(random_mask(7000, 5, 0.4, "global", 1).sum(1), minlength=6)
    assert (counts[:5] > 0).all() and counts[5] == 0


def test_every_column_is_hit_alike() -> None:
    """Shares of the columns under each generator, 20,000 rows: five standard deviations of a binomial."""
    for generator in ("exact", "global", "bernoulli"):
        shares = random_mask(20_000, 5, 0.4, generator, 3).mean(0)
        assert np.abs(shares - shares.mean()).max() < 5 * math.sqrt(0.24 / 20_000), generator


# -------------------------------------------------------------------------------------------------------------- names


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


@pytest.mark.parametrize(
    ("spec", "name", "rate", "generator"),
    [
        ("random_0.8", "random_0.8", 0.8, "exact"),
        ("random_exact_0.80", "random_0.8", 0.8, "exact"),
        ("random_global_0.25", "random_global_0.25", 0.25, "global"),
        ("random_bernoulli_0.8", "random_bernoulli_0.8", 0.8, "bernoulli"),
        ({"kind": "random", "rate": 0.4, "generator": "global"}, "random_global_0.4", 0.4, "global"),
        ({"kind": "random", "rate": 0}, "random_0", 0.0, "exact"),
        ("random_0.12345678", "random_0.12345678", 0.12345678, "exact"),
    ],
)
def test_random_patterns(spec: Any, name: str, rate: float, generator: str) -> None:
    scenario = parse_scenario(spec)
    assert scenario == Random(rate, generator) and scenario.name == name


columns_of = st.sets(st.integers(0, 14), max_size=5).map(lambda columns: whole(sorted(columns)))
rates_of = st.tuples(st.sampled_from(("exact", "global", "bernoulli")), st.floats(0, 1, exclude_max=True)).map(
    lambda pair: parse_scenario({"kind": "random", "generator": pair[0], "rate": pair[1]})
)


@quick
@given(columns_of | rates_of)
def test_every_name_reads_back(scenario: Scenario) -> None:
    assert parse_scenario(scenario.name) == scenario
    assert set(scenario.slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.-") and scenario.slug


def test_subsets_stand_for_all_patterns() -> None:
    scenarios = parse_scenarios(["subsets"], 5)
    patterns = {tuple(s.generate(Rows(1, 5))[0].tolist()) for s in scenarios}
    assert len(scenarios) == len(patterns) == 31 and (True,) * 5 not in patterns
    assert scenarios[0].name == "none" and len({s.slug for s in scenarios}) == 31
    expected = {tuple(i not in kept for i in range(5)) for size in range(1, 6) for kept in combinations(range(5), size)}
    assert patterns == expected


def test_a_list_keeps_its_order_and_drops_duplicates() -> None:
    names = [s.name for s in parse_scenarios(["random_0.4", "none", "whole_1_0", "random_exact_0.4", "01"], 5)]
    assert names == ["random_0.4", "none", "whole_01"]


# ----------------------------------------------------------------------------------------------------------- refusals


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


def test_a_negative_column_is_not_counted_from_the_end() -> None:
    with pytest.raises(UserError, match="no modality -1"):
        Whole((-1,)).check(5)


# --------------------------------------------------------------------------------------------------------- mask files


def bad_csv(tmp_path: Path, text: str) -> str:
    file = tmp_path / "masks.csv"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        read_dymo_csv(file, 2, 3)
    message = str(error.value)
    assert str(file) in message and "\n" not in message
    return message


def test_bad_mask_files_name_file_and_row(tmp_path: Path) -> None:
    assert "has 3 rows but the split has 2" in bad_csv(tmp_path, "True,False,False\n" * 3)
    assert "has 1 rows but the split has 2" in bad_csv(tmp_path, "True,False,False\n")
    assert "row 2: 2 columns, the data set has 3" in bad_csv(tmp_path, "True,False,False\nTrue,False\n")
    assert "row 2: 'yes' is not True or False" in bad_csv(tmp_path, "True,False,False\nTrue,yes,False\n")
    assert "row 1: 'm0' is not True or False (no header)" in bad_csv(tmp_path, "m0,m1,m2\nTrue,False,False\n")
    assert "row 2: every modality is missing (1 such rows)" in bad_csv(tmp_path, "True,False,0\n1,True,1.0\n")
    with pytest.raises(UserError, match=r"absent\.csv does not exist"):
        read_dymo_csv(tmp_path / "absent.csv", 2, 3)
    (tmp_path / "binary.csv").write_bytes(b"\x93NUMPY\xff\x00")
    with pytest.raises(UserError, match=r"binary\.csv is no text"):
        read_dymo_csv(tmp_path / "binary.csv", 2, 3)


def test_spellings_of_booleans(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("\ufeffTRUE, false,0\r\n\r\n0.0,1,true\r\n", encoding="utf-8")
    assert read_dymo_csv(tmp_path / "m.csv", 2, 3).tolist() == [[True, False, False], [False, True, True]]


def test_a_mask_reads_back_as_it_was_written(tmp_path: Path) -> None:
    mask = generate("random_bernoulli_0.5", 50)
    write_dymo_csv(tmp_path / "m.csv", mask)
    assert (tmp_path / "m.csv").read_text().splitlines()[0] == ",".join(map(str, mask[0].tolist()))
    again = generate(f"file:{tmp_path / 'm.csv'}", 50, seed=7)
    assert np.array_equal(again, mask)


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


def test_the_hash_tells_content_and_shape() -> None:
    mask = np.zeros((4, 6), dtype=bool)
    other = mask.copy()
    other[3, 5] = True
    hashes = [mask_hash(mask), mask_hash(other), mask_hash(mask.reshape(6, 4)), mask_hash(np.zeros((4, 5), dtype=bool))]
    assert len(set(hashes)) == 4 and all(len(h) == 16 and int(h, 16) >= 0 for h in hashes)
    assert mask_hash(mask.copy(order="F")) == hashes[0]


def test_a_saved_mask_says_how_it_was_made(tmp_path: Path) -> None:
    scenario = parse_scenario("random_global_0.4")
    mask = scenario.generate(Rows(40, 5, 2027))
    digest = save_mask(tmp_path / "masks" / scenario.slug, mask, scenario, 2027, NAMES)
    assert sorted(f.name for f in (tmp_path / "masks").iterdir()) == ["random_global_0.4.json", "random_global_0.4.npz"]
    assert np.array_equal(np.load(tmp_path / "masks" / "random_global_0.4.npz")["missing"], mask)
    assert json.loads((tmp_path / "masks" / "random_global_0.4.json").read_text()) == {
        "scenario": "random_global_0.4",
        "generator": "global",
        "seed": 2027,
        "shape": [40, 5],
        "modalities": NAMES,
        "realised_rate": mask.mean(),
        "sha256_16": digest,
    }
    assert digest == mask_hash(mask)


@pytest.mark.parametrize(("rate", "m", "share"), [(0.5, 5, "0.4"), (0.4, 5, None), (0.5, 2, None), (0.3, 3, "0.333")])
def test_a_rate_that_cannot_be_had_is_remarked_on(rate: float, m: int, share: str | None) -> None:
    scenario = parse_scenario(f"random_{rate}")
    remark = scenario.remark(m)
    assert (remark is None) == (share is None)
    mask = scenario.generate(Rows(50, m, 1))
    assert mask.mean() == pytest.approx(float(share or rate), abs=1e-3)
    assert share is None or f"a rate of {share}," in str(remark)
    assert parse_scenario(f"random_global_{rate}").remark(m) is None


@pytest.mark.parametrize(
    ("name", "m", "rate"),
    [
        ("random_0.2", 6, 1 / 6),
        ("random_global_0.8", 2, 0.5),
        ("random_global_0.8", 6, 0.8),
        ("random_bernoulli_0.8", 2, (0.8 - 0.64) / (1 - 0.64)),
        ("random_bernoulli_0.3", 5, (0.3 - 0.3**5) / (1 - 0.3**5)),
    ],
)
def test_the_realised_rate_is_the_one_expected_of_so_many_modalities(name: str, m: int, rate: float) -> None:
    scenario = parse_scenario(name)
    mask = scenario.generate(Rows(20_000, m, 5))
    assert scenario.expected_rate(m) == pytest.approx(rate)
    assert scenario.realised_rate(mask) == pytest.approx(mask.mean()) == pytest.approx(rate, abs=0.006)
    has_remark = abs(rate - scenario.named_rate) > 0.01
    assert (scenario.remark(m) is not None) == has_remark
    assert (scenario.remark(m, scenario.realised_rate(mask)) is not None) == has_remark
    assert not has_remark or f"'{name}' has a rate of {rate:.3g}" in str(scenario.remark(m))


def test_the_realised_rate_is_of_what_the_name_speaks_of() -> None:
    kinds = ("image", "text")
    for name, rate in (("image_text_text_0.6", 0.6), ("image_text_image_0.6", 0.6), ("image_text_both_0.6", 0.6)):
        scenario = parse_scenario(name)
        mask = scenario.generate(Rows(100, 2, 0, kinds))
        assert scenario.realised_rate(mask, kinds=kinds) == scenario.realised_rate(mask) == pytest.approx(rate)
    # The data lack more images than the scenario hides texts: the kinds say which column is meant.
    mask = np.zeros((10, 2), dtype=bool)
    mask[:5, 0], mask[5:7, 1] = True, True
    assert parse_scenario("image_text_text_0.2").realised_rate(mask, kinds=kinds) == pytest.approx(0.2)
    assert parse_scenario("nested_1_0.2").realised_rate(mask) == pytest.approx(0.2)
    assert "rate of 0.5, not 0.2" in str(parse_scenario("nested_0_0.2").remark(2, 0.5))
    table = parse_scenario("table_feature_0.4")
    cells = {"table": table.generate(Rows(10, 13))}
    mask = np.stack([np.zeros(10, bool), cells["table"].any(1)], 1)
    assert table.realised_rate(mask, cells) == pytest.approx(5 / 13)  # int(0.4 * 13) columns
    assert "rate of 0.385, not 0.4" in str(table.remark(2, 5 / 13))
    # A table of which some cells are observed is no missing modality.
    mask, cells = np.array([[0, 1], [0, 1], [1, 1], [0, 0]], bool), {"table": np.zeros((4, 3), bool)}
    cells["table"][[0, 2], 1:], cells["table"][1] = True, True
    assert unobserved(mask, cells, ["image", "table"]).tolist() == [
        [False, False],
        [False, True],
        [True, False],
        [False] * 2,
    ]
    noisy = parse_scenario("noise_gaussian_4_all+random_0.2")
    assert noisy.named_rate == 0.2 and noisy.expected_rate(6) == pytest.approx(1 / 6)
    assert parse_scenario("none").remark(3) is None and parse_scenario("whole_0").remark(3) is None


# -------------------------------------------------------------------------------------------- nested (stress tests)


@pytest.mark.parametrize(
    ("n", "rows"),
    [  # docs/reference/datasets.md §14.3: seed 42, no natural missingness
        (8, {0.25: [0, 2], 0.5: [0, 2, 4, 6], 0.75: [0, 1, 2, 4, 5, 6]}),
        (
            20,
            {
                0.25: [0, 3, 7, 11, 14],
                0.5: [0, 3, 4, 5, 7, 11, 12, 14, 16, 19],
                0.75: [0, 3, 4, 5, 6, 7, 10, 11, 12, 14, 15, 16, 17, 18, 19],
            },
        ),
    ],
)
def test_nested_masks_are_the_published_ones_on_every_split(n: int, rows: dict[float, list[int]]) -> None:
    for (rate, expected), column, split in zip(rows.items(), (0, 1, 1), range(3)):
        scenario = parse_scenario(f"nested_{column}_{rate}")
        mask = scenario.generate(Rows(n, 2, scenario.seed(2025, split)))
        assert np.flatnonzero(mask[:, column]).tolist() == expected and not mask[:, 1 - column].any()
    assert parse_scenario("nested_0_0.5").seed(2026, 0) == 43


@quick
@given(st.integers(1, 80), st.integers(2, 4), st.data(), st.integers(0, 2**32 - 1))
def test_nested_masks_count_what_was_never_there_and_keep_the_last_of_a_row(
    n: int, m: int, data: st.DataObject, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    column, share = data.draw(st.integers(0, m - 1)), data.draw(st.sampled_from([0.0, 0.1, 0.6]))
    rates = sorted(data.draw(st.sets(st.integers(0, 100), min_size=2, max_size=4)))
    absent = rng.random((n, m)) < share
    absent[absent.all(1), column] = False
    before = absent.copy()
    scenarios = [parse_scenario({"kind": "nested", "modality": column, "rate": rate / 100}) for rate in rates]
    masks = [s.generate(Rows(n, m, seed, absent=absent)) for s in scenarios]
    only = ~absent[:, column] & np.delete(absent, column, 1).all(1)
    natural = absent[:, column]
    for rate, mask in zip(rates, masks):
        whole_mask = mask | absent
        assert not whole_mask.all(1).any() and not np.delete(mask, column, 1).any()
        assert not (mask[:, column] & natural).any(), "what was never there is not drawn again"
        wanted = n * rate // 100
        assert whole_mask[:, column].sum() == min(max(wanted, natural.sum()), n - only.sum())
    for small, large in pairwise(masks):
        assert (small <= large).all()
    if share == 0:  # the reference's way: k ones before zeros, shuffled
        for rate, mask in zip(rates, masks):
            ones = (np.arange(n) < n * rate // 100).astype(int)
            np.random.RandomState(seed).shuffle(ones)
            assert np.array_equal(mask[:, column], ones == 1)
    assert np.array_equal(absent, before)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("nested_0", "'' is not a rate"),
        ("nested_x_0.5", "'x' is no column number"),
        ("nested_0_1.5", r"outside \[0, 1\]"),
        ("nested_5_0.5", "there is no modality 5"),
        ({"kind": "nested", "rate": 0.5}, "no column number"),
        ({"kind": "nested", "modality": 0, "rate": 0.5, "seed": 1}, "unknown key 'seed'"),
    ],
)
def test_impossible_nested_scenarios_are_refused(spec: Any, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        parse_scenarios([spec], 5)


def test_nested_scenarios_need_a_second_modality() -> None:
    with pytest.raises(UserError, match="one modality, which must stay"):
        parse_scenarios(["nested_0_0.5"], 1)
    assert parse_scenario("nested_1_1").name == parse_scenario("nested_01_1.0").name == "nested_1_1"


# ------------------------------------------------------------------------------------------------------------- hashes


@pytest.mark.parametrize(
    ("name", "digest", "protocol"),
    [  # recorded before each kind of scenario was a class: 40 rows of the test split, seeds of missing.seed=2025
        ("whole_12", "2714fd6808413127", "whole"),
        ("random_0.4", "237034a38c1f7160", "exact"),
        ("random_global_0.4", "0980174bf7fd59b9", "global"),
        ("random_bernoulli_0.4", "66d205648ed1d7ad", "bernoulli"),
        ("table_value_0.3", "145cfe99e0cc4eed", "TIP value"),
        ("table_feature_0.3", "ca9417fd06734388", "TIP feature"),
        ("table_MI_0.3", "c7d40d3725bbea1b", "TIP MI"),
        ("table_LI_0.3", "8c876aeace26e888", "TIP LI"),
        ("image_text_both_0.7", "c2f3d2fc196c10ab", "MAP both"),
        ("image_text_text_0.7", "5c3739ac136b0190", "MAP text"),
        ("image_text_image_0.7", "3c9d14e4042dccd9", "MAP image"),
        ("image_text_running_both_0.7", "d543a72d653ceec3", "MAP both"),
        ("nested_1_0.25", "76c9639c35dda9ee", "Resilient-VT"),
        ("noise_gaussian_4_all+random_0.4", "237034a38c1f7160", "exact"),
    ],
)
def test_masks_have_their_golden_hashes(name: str, digest: str, protocol: str) -> None:
    scenario = parse_scenario(name)
    m = 7 if scenario.hides_cells else 2 if "image_text" in name else 5
    absent = np.zeros((40, m), dtype=bool)
    absent[3, 0], absent[5, 1:] = True, True
    ranking = [3, 1, 0, 2, 6, 5, 4]
    rows = Rows(40, m, scenario.seed(2025, 2), ("image", "text"), absent, (13, 8), ranking)
    assert (mask_hash(scenario.generate(rows)), scenario.protocol) == (digest, protocol)


# ----------------------------------------------------------------------------------------------------------- captions


@pytest.mark.parametrize(
    ("name", "caption", "named_caption"),
    [
        ("none", "complete", "complete"),
        ("whole_2", "modality 2 missing", "table missing"),
        ("whole_12", "modality 1 and modality 2 missing", "only image"),
        ("random_0.8", "80 % of modalities", "80 % of modalities"),
        ("random_bernoulli_0.25", "25 % of modalities (Bernoulli)", "25 % of modalities (Bernoulli)"),
        ("table_value_0.3", "30 % of table cells", "30 % of table cells"),
        ("table_MI_0.3", "30 % most important columns", "30 % most important columns"),
        ("image_text_both_0.7", "text or image missing in 70 %", "text or image missing in 70 %"),
        ("nested_0_0.25", "modality 0 missing in 25 %", "image missing in 25 %"),
        ("file:masks.csv", "mask file masks.csv", "mask file masks.csv"),
        ("noise_motion_blur_4_all", "motion blur of level 4 on all modalities", None),
        ("noise_gaussian_4_m0+whole_2", "modality 2 missing, Gaussian noise of level 4 on m0", None),
    ],
)
def test_captions(name: str, caption: str, named_caption: str | None) -> None:
    scenario = parse_scenario(name)
    assert scenario.caption() == caption
    assert named_caption in (None, scenario.caption(["image", "text", "table"]))
    assert parse_scenario("whole_01").caption(["a", "b", "c", "d"]) == "a and b missing"

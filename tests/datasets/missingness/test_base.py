"""What all kinds of scenario share: golden hashes, realised rates, captions."""

from __future__ import annotations

import numpy as np
import pytest

from datasets.missingness import Rows, mask_hash, parse_scenario, unobserved


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

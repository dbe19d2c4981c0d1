"""Scores of content and classes, on which masks depend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from datasets.missingness import parse_scenario
from datasets.missingness.content import SplitContent, normal_scores
from tests.datasets.missingness.all_kinds import AllKinds, all_kinds
from utils.errors import UserError


def content_of(data: AllKinds, split: str = "test") -> SplitContent:
    gaps = data.source_gaps(split)
    return data._content(split, gaps)


def test_normal_scores_are_quantiles_of_ranks() -> None:
    scores = normal_scores(np.array([5.0, -1e30, np.nan, np.inf, 5.0]))
    np.testing.assert_allclose(scores, [0, stats.norm.ppf(1 / 8), 0, stats.norm.ppf(7 / 8), 0], atol=1e-15)
    many = normal_scores(np.random.default_rng(0).lognormal(0, 9, 5000))
    assert abs(many.mean()) < 1e-9 and many.std() == pytest.approx(1, abs=0.01)


def test_every_kind_has_one_score_per_row(tmp_path: Path) -> None:
    data = all_kinds(tmp_path / "store")
    content, packed = content_of(data), data.split("test")
    arrays = {m.name: packed.read(m.name).numpy() for m in data.modalities}
    clip, counts = arrays["clip"].astype(float), packed.counts("clip").numpy()
    expected = {
        0: [row.mean() for row in arrays["photo"].astype(float)],
        2: [sum(code != 69 for code in row) for row in arrays["word"]],
        3: [sum(token != 0 for token in row) for row in arrays["note"]],
        4: [row.astype(float).mean() for row in arrays["sound"]],
        5: [np.mean([part.mean() for part in row[:count]]) for row, count in zip(clip, counts)],
    }
    for number, values in expected.items():
        np.testing.assert_allclose(content.scores(number), normal_scores(np.array(values)), atol=1e-12)
    columns = [normal_scores(column.astype(float)) for column in arrays["lab"].T]
    for name, column in zip(data.modalities[1].columns, columns):
        np.testing.assert_array_equal(content.scores(1, name), column)
    np.testing.assert_allclose(content.scores(1), normal_scores(np.mean(columns, 0)))
    np.testing.assert_array_equal(content.class_scores, normal_scores(packed.read("target").numpy().astype(float)))
    assert content_of(data) is content and content_of(data, "val") is not content


def test_content_that_the_source_lacks_never_counts(tmp_path: Path) -> None:
    """Whatever it is: NaN, 1e30 or anything else."""
    n = 60
    absent = np.arange(n) % 5 == 0
    cells = np.zeros((n, 4), dtype=bool)
    cells[::3, 1], cells[1] = True, True
    rng = np.random.default_rng(1)
    table = rng.normal(size=(n, 4)).astype(np.float32)
    sound = rng.normal(size=(n, 1, 3, 4)).astype(np.float32)
    scores = []
    for number, junk in enumerate((0.0, np.nan, 1e30, -np.inf)):
        table[cells], sound[absent] = junk, junk
        changes = {"lab": table, "lab_missing": cells, "sound": sound, "sound_absent": absent}
        content = content_of(all_kinds(tmp_path / str(number), n, changes))
        scores.append([content.scores(4), content.scores(1, "age"), content.scores(1)])
        assert not content.scores(4)[absent].any() and not content.scores(1, "age")[cells[:, 1]].any()
        assert content.scores(1)[1] == 0  # no cell at all
    for other in scores[1:]:
        np.testing.assert_array_equal(other, scores[0])


def test_unusable_content_is_named(tmp_path: Path) -> None:
    n = 30
    sound = np.random.default_rng(0).normal(size=(n, 1, 3, 4)).astype(np.float32)
    table = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    sound[7, 0, 1], table[[3, 9], 2], table[:, 3] = np.nan, np.nan, 1
    content = content_of(all_kinds(tmp_path, n, {"sound": sound, "lab": table, "target": np.ones(n, dtype=int)}))
    for arguments, message in (
        ((4,), r"row 7 of 'sound' holds NaN but is observed \(1 such rows\)"),
        ((1, "dose"), r"row 3 of 'lab', column 'dose' holds NaN but is observed \(2 such rows\)"),
        ((1, "flag"), "lab, column 'flag' is the same in all rows"),
        ((1, "weight"), "table 'lab' has no column 'weight', its columns are site, age, dose, flag"),
        ((0, "age"), "'photo' is of kind image and has no column 'age'"),
    ):
        with pytest.raises(UserError, match=message):
            content.scores(*arguments)
    with pytest.raises(UserError, match="all rows have the same class"):
        content.class_scores  # noqa: B018


def test_several_labels_count_the_positive_ones(tmp_path: Path) -> None:
    target = np.array([[1, 1, 0], [0, -1, 0], [1, -1, 0]], dtype=np.float32)
    content = content_of(all_kinds(tmp_path, 3, {"target": target}))
    np.testing.assert_array_equal(content.class_scores, normal_scores(np.array([2.0, 0, 1])))


def test_errors_name_the_scenario(tmp_path: Path) -> None:
    data = all_kinds(tmp_path, 30, {"target": np.ones(30, dtype=int)})
    with pytest.raises(UserError, match=r"missing scenario 'mar_1-bmi_0\.4': table 'lab' has no column 'bmi'"):
        data.mask("test", parse_scenario("mar_1-bmi_0.4"))
    with pytest.raises(UserError, match=r"missing scenario 'mnar_class_0\.4': all rows have the same class"):
        data.mask("test", parse_scenario("mnar_class_0.4"))

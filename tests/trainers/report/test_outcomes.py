"""Confusion matrix, reliability and risk against coverage: against scikit-learn, torchmetrics' bins and loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix as of_scikit_learn

from tests.trainers.report.runs import write_run
from trainers.report.outcomes import confusion_matrix, outcome_jobs, reliability, risk_coverage
from trainers.report.runs import gather
from trainers.report.tables import summarise
from utils.metrics import classification_metrics


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(80, 4)).astype(np.float32) * 2
    logits[40:50] = logits[40]  # equal confidences
    return logits, rng.integers(3, size=80)  # class 3 is predicted only


def test_confusion_matrix_equals_scikit_learn(rows) -> None:
    logits, target = rows
    expected = of_scikit_learn(target, logits.argmax(1), labels=range(4))
    np.testing.assert_array_equal(confusion_matrix(logits, target), expected)


def test_bins_of_reliability_give_the_expected_calibration_error(rows) -> None:
    logits, target = rows
    number, confidence, right = reliability(logits, target).T
    ece = classification_metrics("multiclass", 4, ["ece"])
    ece.update(torch.from_numpy(logits), torch.from_numpy(target))
    assert number.sum() == 80 and right.sum() == (logits.argmax(1) == target).sum()
    assert np.abs(confidence - right).sum() / 80 == pytest.approx(float(ece.compute()["ece"]), abs=1e-6)
    labels = np.array([[1, -1, 0], [-1, -1, 1]])
    cells = reliability(np.array([[2.0, 9, -3], [9, 9, 0.1]]), labels)
    assert cells.sum(0) == pytest.approx([3, sum(1 / (1 + np.exp(-x)) for x in (2.0, -3, 0.1)), 2])


def test_risk_at_each_coverage_equals_a_loop_over_random_orders_of_ties(rows) -> None:
    logits, target = rows
    confidence = torch.from_numpy(logits).double().softmax(1).max(1).values.numpy().round(12)
    is_wrong = logits.argmax(1) != target
    mean = {c: is_wrong[confidence == c].mean() for c in confidence}
    ordered = sorted(confidence, reverse=True)
    expected = [np.mean([mean[c] for c in ordered[: int(np.ceil(80 * k / 20))]]) for k in range(1, 21)]
    np.testing.assert_allclose(risk_coverage(logits, target, np.arange(1, 21) / 20), expected, atol=1e-12)
    saturated = np.array([[900.0, 0, 0], [800, 0, 0], [60, 0, 0], [50, 0, 0]])
    assert (
        risk_coverage(saturated, np.array([0, 0, 0, 1]), np.array([0.75, 1]))[0] == 0
    )  # of probability 1, still ordered


def test_figures_are_drawn_of_complete_data_and_the_highest_rate(tmp_path) -> None:
    runs, _ = gather([write_run(tmp_path, "DyMo", seed, n=20, scenarios=("none", "random_0.4")) for seed in range(2)])
    summary = summarise(runs[0].frame)
    figures = {name: draw() for _, name, draw in outcome_jobs(runs, summary, {})}
    assert list(figures) == ["reliability", "risk_coverage", "confusion_DyMo", "classes_DyMo"]
    assert [len(figure.axes) for figure in figures.values()] == [2, 2, 3, 1]
    every = {name: figures[name].axes[0].lines[0].get_markevery() for name in ("reliability", "risk_coverage")}
    assert every == {"reliability": None, "risk_coverage": 0.1}  # few points have a marker each
    texts = [text.get_text() for text in figures["confusion_DyMo"].axes[1].texts]
    assert len(texts) == 100 and "digit 3" in str(figures["confusion_DyMo"].axes[0].get_xticklabels())

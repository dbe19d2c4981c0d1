"""Metrics against scikit-learn and against a loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    matthews_corrcoef,
    precision_score,
    recall_score,
    roc_auc_score,
)
from torch import Tensor

from tests import slow_twin as twin
from utils.metrics import METRICS, LabelMetrics, classification_metrics


def predictions(n: int, classes: int, seed: int, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Logits that lean to the target, every class present."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(n) % classes
    logits = scale * torch.randn(n, classes, generator=generator)
    logits[torch.arange(n), target] += 1.0
    return logits, target


def computed(logits: Tensor, target: Tensor, *names: str, classes: int, task: str = "multiclass") -> dict[str, float]:
    metrics = classification_metrics(task, classes, names or METRICS)
    for start in range(0, len(target), 37):
        metrics.update(logits[start : start + 37], target[start : start + 37])
    return {k: float(v) for k, v in metrics.compute().items()}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [3, 10])
def test_multiclass_metrics_equal_scikit_learn(classes: int, seed: int) -> None:
    logits, target = predictions(200, classes, seed)
    probabilities = logits.double().softmax(1).numpy()
    found = computed(logits, target, classes=classes)
    assert set(found) == {"accuracy", "auroc", "f1_macro", "ece", "recall_macro", "mcc", "gmean"}
    guess = probabilities.argmax(1)
    assert found["recall_macro"] == pytest.approx(balanced_accuracy_score(target, guess), abs=1e-6)
    assert found["mcc"] == pytest.approx(matthews_corrcoef(target, guess), abs=1e-6)
    recalls = recall_score(target, guess, average=None)
    assert found["gmean"] == pytest.approx(np.prod(recalls) ** (1 / classes), abs=1e-6)
    assert found["accuracy"] == pytest.approx(accuracy_score(target, guess), abs=1e-6)
    assert found["f1_macro"] == pytest.approx(f1_score(target, guess, average="macro"), abs=1e-6)
    auroc = roc_auc_score(target, probabilities, multi_class="ovr", average="macro")
    assert found["auroc"] == pytest.approx(auroc, abs=1e-6)
    assert found["ece"] == pytest.approx(twin.calibration_error(probabilities.tolist(), target.tolist(), 15), abs=1e-5)


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_two_classes_equal_scikit_learn(task: str) -> None:
    logits, target = predictions(150, 2, 4)
    target[:30] = 0
    probabilities = logits.double().softmax(1).numpy()
    found = computed(logits, target, classes=2, task=task)
    assert found["accuracy"] == pytest.approx(accuracy_score(target, probabilities[:, 1] > 0.5), abs=1e-6)
    assert found["auroc"] == pytest.approx(roc_auc_score(target, probabilities[:, 1]), abs=1e-6)
    assert found["f1_macro"] == pytest.approx(f1_score(target, probabilities.argmax(1), average="macro"), abs=1e-6)
    assert found["ece"] == pytest.approx(twin.calibration_error(probabilities.tolist(), target.tolist(), 15), abs=1e-5)


def test_class_that_never_occurs_does_not_count_in_f1() -> None:
    logits, target = predictions(60, 3, 5)
    wider = torch.cat([logits, torch.full((60, 1), -50.0)], dim=1)
    expected = f1_score(target, logits.argmax(1), average="macro")
    assert computed(wider, target, "f1_macro", classes=4)["f1_macro"] == pytest.approx(expected, abs=1e-6)


def test_balanced_metrics_leave_out_a_class_that_never_occurs_though_it_is_said() -> None:
    logits, target = predictions(60, 3, 5)
    logits = torch.cat([logits, logits[:, :1] + 0.1 * torch.arange(-30, 30)[:, None]], dim=1)
    guess = logits.argmax(1).numpy()
    found = computed(logits, target, "recall_macro", "gmean", "mcc", classes=4)
    recalls = [(guess[target == c] == c).mean() for c in range(3)]
    assert (guess == 3).any() and found["recall_macro"] == pytest.approx(np.mean(recalls), abs=1e-6)
    assert found["gmean"] == pytest.approx(np.prod(recalls) ** (1 / 3), abs=1e-6)
    assert found["mcc"] == pytest.approx(matthews_corrcoef(target, guess), abs=1e-6)


def test_metrics_do_not_depend_on_batches_or_precision() -> None:
    logits, target = predictions(111, 4, 6)
    logits = logits.half().float()
    whole = classification_metrics("multiclass", 4)
    whole.update(logits.half(), target)
    expected = {k: float(v) for k, v in whole.compute().items()}
    assert computed(logits, target, classes=4) == pytest.approx(expected, abs=1e-6)


def test_calibration_error_by_hand() -> None:
    """Confidence 0.9 with accuracy 0.5, confidence 0.4 with accuracy 1: (0.4 * 2 + 0.6) / 3."""
    probabilities = torch.tensor([[0.9, 0.05, 0.05], [0.9, 0.05, 0.05], [0.3, 0.4, 0.3]])
    found = computed(probabilities.log(), torch.tensor([0, 1, 1]), "ece", classes=3)
    assert found["ece"] == pytest.approx((0.4 * 2 + 0.6) / 3, abs=1e-6)


def test_saturated_confidence_belongs_to_the_last_bin() -> None:
    """Two of confidence 1 (one right) and two of 0.95 (right): |0.975 - 0.75| in one bin."""
    logits = torch.tensor([[200.0, 0, 0], [200.0, 0, 0], [0.95, 0.03, 0.02], [0.95, 0.03, 0.02]])
    logits[2:] = logits[2:].log()
    assert computed(logits, torch.tensor([0, 1, 0, 0]), "ece", classes=3)["ece"] == pytest.approx(0.225, abs=1e-5)


def test_unknown_name_and_task_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown metric 'brier', known are accuracy"):
        classification_metrics("multiclass", 3, ("accuracy", "brier"))
    with pytest.raises(ValueError, match="ranking"):
        classification_metrics("ranking", 3)


def test_several_labels_equal_scikit_learn_on_the_labelled_cells() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(120, 4, generator=generator)
    target = (logits + torch.randn(120, 4, generator=generator) > 0).float()
    target[torch.rand(120, 4, generator=generator) < 0.3] = -1
    found = computed(logits, target, classes=4, task="multilabel")
    labelled = [(target[:, c] >= 0).numpy() for c in range(4)]
    columns = [(target[:, c].numpy()[k], logits[:, c].numpy()[k]) for c, k in enumerate(labelled)]
    hits = torch.cat([torch.tensor((x > 0) == (y > 0)) for y, x in columns])
    assert found["accuracy"] == pytest.approx(float(hits.float().mean()), abs=1e-6)
    auroc = sum(roc_auc_score(y, x) for y, x in columns) / 4
    assert found["auroc"] == pytest.approx(auroc, abs=1e-6)
    each = [f1_score(y, x > 0) for y, x in columns]
    assert found["f1_macro"] == pytest.approx(sum(each) / 4, abs=1e-6)
    support = [y.sum() for y, _ in columns]
    assert found["f1_weighted"] == pytest.approx(sum(f * n for f, n in zip(each, support)) / sum(support), abs=1e-6)
    pooled = f1_score(*(torch.cat([torch.tensor(part[i] > 0) for part in columns]) for i in (0, 1)))
    assert found["f1_micro"] == pytest.approx(pooled, abs=1e-6)
    rows = []
    for said, true in zip((logits > 0).tolist(), target.tolist()):
        cells = [(s, t) for s, t in zip(said, true) if t >= 0]
        rows.append(f1_score([t for _, t in cells], [float(s) for s, _ in cells], zero_division=0) if cells else 0.0)
    assert found["f1_samples"] == pytest.approx(sum(rows) / 120, abs=1e-6)


MEASURES = {
    "auroc": lambda y, x: roc_auc_score(y, x),
    "accuracy": lambda y, x: accuracy_score(y, x > 0),
    "recall": lambda y, x: recall_score(y, x > 0, zero_division=0),
    "precision": lambda y, x: precision_score(y, x > 0, zero_division=0),
    "f1": lambda y, x: f1_score(y, x > 0, zero_division=0),
    "mcc": lambda y, x: matthews_corrcoef(y, x > 0),
    "gmean": lambda y, x: (recall_score(y, x > 0) * recall_score(y, x > 0, pos_label=0)) ** 0.5,
}


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(2, 5), st.floats(0, 0.9), st.floats(0.05, 0.95), st.integers(0, 2**32 - 1))
def test_measures_of_each_label_and_their_averages_equal_scikit_learn_on_masked_arrays(
    n: int, labels: int, unlabelled: float, rate: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, labels)).astype(np.float32)
    target = (rng.random((n, labels)) < rate).astype(np.float32)
    target[rng.random((n, labels)) < unlabelled] = -1
    masked = np.ma.masked_less(target, 0)
    metrics = classification_metrics("multilabel", labels)
    assert isinstance(metrics, LabelMetrics)
    for rows in np.array_split(np.arange(n), 2):
        metrics.update(torch.from_numpy(logits[rows]), torch.from_numpy(target[rows]))
    found, each = metrics.compute(), metrics.per_label()
    columns = [(masked[:, c].compressed(), logits[target[:, c] >= 0, c]) for c in range(labels)]
    positives = np.array([y.sum() for y, _ in columns])
    assert each["positives"].tolist() == positives.tolist() and each["n"].tolist() == [len(y) for y, _ in columns]
    pooled = [np.concatenate(part) for part in zip(*columns)]
    for measure, score in MEASURES.items():
        expected = np.array([score(y, x) if 0 < y.sum() < len(y) else np.nan for y, x in columns])
        np.testing.assert_allclose(each[measure], expected, atol=1e-6)
        there = ~np.isnan(expected)
        if there.any():
            macro = found["auroc" if measure == "auroc" else f"{measure}_macro"]
            assert float(macro) == pytest.approx(expected[there].mean(), abs=1e-6)
            weighted = np.average(expected[there], weights=positives[there])
            assert float(found[f"{measure}_weighted"]) == pytest.approx(weighted, abs=1e-6)
        else:
            assert math.isnan(found[f"{measure}_weighted"])
        if 0 < pooled[0].sum() < len(pooled[0]):
            micro = found["accuracy" if measure == "accuracy" else f"{measure}_micro"]
            assert float(micro) == pytest.approx(score(*pooled), abs=1e-6)
    if not 0 < pooled[0].sum() < len(pooled[0]):
        assert math.isnan(found["auroc_micro"])


def test_metrics_of_several_labels_by_name() -> None:
    """The three of validation are those among all, and nothing else is computed."""
    some = classification_metrics("multilabel", 2, ("accuracy", "auroc", "f1_macro"))
    every = classification_metrics("multilabel", 2)
    for metrics in (some, every):
        metrics.update(torch.tensor([[1.0, -1], [-1, 1], [2, 2]]), torch.tensor([[1.0, -1], [0, 1], [0, 0]]))
    found = every.compute()
    assert {k: float(v) for k, v in some.compute().items()} == {
        k: float(found[k]) for k in ("accuracy", "auroc", "f1_macro")
    }
    assert set(some) == {"counts", "auroc"} and set(found) <= set(METRICS)
    # Label 0: right, right, wrong; label 1: unlabelled, right, wrong.
    assert float(found["accuracy"]) == pytest.approx(3 / 5) and float(found["accuracy_macro"]) == pytest.approx(
        (2 / 3 + 1 / 2) / 2
    )


@pytest.mark.parametrize("scale", [30.0, 100.0])
def test_auroc_orders_confident_rows_as_scikit_learn_orders_their_logits(scale: float) -> None:
    generator = torch.Generator().manual_seed(6)
    logits = scale * torch.randn(300, 4, generator=generator)
    target = torch.randint(0, 4, (300,), generator=generator)
    odds = [logits[:, c].double() - logits[:, [k for k in range(4) if k != c]].double().logsumexp(1) for c in range(4)]
    expected = np.mean([roc_auc_score(target == c, odds[c]) for c in range(4)])
    assert computed(logits, target, "auroc", classes=4)["auroc"] == pytest.approx(expected, abs=1e-6)
    if scale == 30:  # in double few probabilities round to 1
        rounded = roc_auc_score(target, logits.double().softmax(1), multi_class="ovr")
        assert computed(logits, target, "auroc", classes=4)["auroc"] == pytest.approx(rounded, abs=5e-3)
    pair, either = logits[:, :2], target % 2
    expected = roc_auc_score(either, pair[:, 1].double() - pair[:, 0].double())
    assert computed(pair, either, "auroc", classes=2, task="binary")["auroc"] == pytest.approx(expected, abs=1e-6)
    labels = torch.randint(-1, 2, (300, 4), generator=generator).float()
    found = computed(logits, labels, "auroc", "auroc_micro", classes=4, task="multilabel")
    each = [roc_auc_score(y[y >= 0], x[y >= 0]) for y, x in zip(labels.T, logits.T)]
    assert found["auroc"] == pytest.approx(np.mean(each), abs=1e-6)
    there = labels >= 0
    assert found["auroc_micro"] == pytest.approx(roc_auc_score(labels[there], logits[there]), abs=1e-6)

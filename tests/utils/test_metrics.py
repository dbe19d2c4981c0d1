"""Metrics against scikit-learn and against a loop."""

from __future__ import annotations

import math
import resource
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    log_loss,
    matthews_corrcoef,
    precision_score,
    recall_score,
    roc_auc_score,
)
from torch import Tensor
from torchmetrics.classification import BinaryCalibrationError, MulticlassAveragePrecision

from tests import slow_twin as twin
from utils.metrics import (
    METRICS,
    LabelMetrics,
    classification_metrics,
    metric_names,
    undefined_monitor,
)
from utils.ranking import binary_auroc, log_odds


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
    actual = computed(logits, target, classes=classes)
    assert set(actual) == set(metric_names("multiclass"))
    guess = probabilities.argmax(1)
    assert actual["recall_macro"] == pytest.approx(balanced_accuracy_score(target, guess), abs=1e-6)
    assert actual["mcc"] == pytest.approx(matthews_corrcoef(target, guess), abs=1e-6)
    recalls = recall_score(target, guess, average=None)
    assert actual["gmean"] == pytest.approx(np.prod(recalls) ** (1 / classes), abs=1e-6)
    assert actual["accuracy"] == pytest.approx(accuracy_score(target, guess), abs=1e-6)
    assert actual["f1_macro"] == pytest.approx(f1_score(target, guess, average="macro"), abs=1e-6)
    auroc = roc_auc_score(target, probabilities, multi_class="ovr", average="macro")
    assert actual["auroc"] == pytest.approx(auroc, abs=1e-6)
    assert actual["ece"] == pytest.approx(twin.calibration_error(probabilities.tolist(), target.tolist(), 15), abs=1e-5)
    precision = average_precision_score(np.eye(classes)[target], probabilities)
    assert actual["average_precision"] == pytest.approx(precision, abs=1e-6)
    of_torchmetrics = MulticlassAveragePrecision(classes)(torch.from_numpy(probabilities), target)
    assert actual["average_precision"] == pytest.approx(float(of_torchmetrics), abs=1e-5)
    assert actual["nll"] == pytest.approx(log_loss(target, probabilities), abs=1e-6)
    assert actual["brier"] == pytest.approx(brier_score_loss(target, probabilities), abs=1e-6)
    assert actual["classwise_ece"] == pytest.approx(of_each_class(probabilities, np.eye(classes)[target]), abs=1e-6)


def of_each_class(probabilities: np.ndarray, outcomes: np.ndarray) -> float:
    """Mean calibration error of the probabilities (N, C) of classes with labelled cells (>= 0), from torchmetrics."""
    error, values = BinaryCalibrationError(n_bins=15), []
    for column, outcome in zip(torch.from_numpy(probabilities).float().T, torch.from_numpy(outcomes).long().T):
        is_labelled = outcome >= 0
        values.append(float(error(column[is_labelled].clamp(max=1 - 2.0**-24), outcome[is_labelled])))
    return float(np.mean(values))


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_two_classes_equal_scikit_learn(task: str) -> None:
    logits, target = predictions(150, 2, 4)
    target[:30] = 0
    probabilities = logits.double().softmax(1).numpy()
    actual = computed(logits, target, classes=2, task=task)
    assert actual["accuracy"] == pytest.approx(accuracy_score(target, probabilities[:, 1] > 0.5), abs=1e-6)
    assert actual["auroc"] == pytest.approx(roc_auc_score(target, probabilities[:, 1]), abs=1e-6)
    assert actual["f1_macro"] == pytest.approx(f1_score(target, probabilities.argmax(1), average="macro"), abs=1e-6)
    assert actual["average_precision"] == pytest.approx(average_precision_score(target, probabilities[:, 1]), abs=1e-6)
    assert actual["nll"] == pytest.approx(log_loss(target, probabilities), abs=1e-6)
    assert actual["brier"] == pytest.approx(brier_score_loss(target, probabilities[:, 1]), abs=1e-6)
    assert actual["ece"] == pytest.approx(twin.calibration_error(probabilities.tolist(), target.tolist(), 15), abs=1e-5)


def test_class_that_never_occurs_does_not_count_in_f1() -> None:
    logits, target = predictions(60, 3, 5)
    wider = torch.cat([logits, torch.full((60, 1), -50.0)], dim=1)
    expected = f1_score(target, logits.argmax(1), average="macro")
    assert computed(wider, target, "f1_macro", classes=4)["f1_macro"] == pytest.approx(expected, abs=1e-6)


def test_balanced_metrics_leave_out_a_class_that_never_occurs_though_it_is_said() -> None:
    logits, target = predictions(60, 3, 5)
    logits = torch.cat([logits, logits[:, :1] + 0.1 * torch.arange(-30, 30)[:, None]], dim=1)
    guess = logits.argmax(1).numpy()
    actual = computed(logits, target, "recall_macro", "gmean", "mcc", classes=4)
    recalls = [(guess[target == c] == c).mean() for c in range(3)]
    assert (guess == 3).any() and actual["recall_macro"] == pytest.approx(np.mean(recalls), abs=1e-6)
    assert actual["gmean"] == pytest.approx(np.prod(recalls) ** (1 / 3), abs=1e-6)
    assert actual["mcc"] == pytest.approx(matthews_corrcoef(target, guess), abs=1e-6)


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
    actual = computed(probabilities.log(), torch.tensor([0, 1, 1]), "ece", classes=3)
    assert actual["ece"] == pytest.approx((0.4 * 2 + 0.6) / 3, abs=1e-6)


def test_saturated_confidence_belongs_to_the_last_bin() -> None:
    """Two of confidence 1 (one right) and two of 0.95 (right): |0.975 - 0.75| in one bin."""
    logits = torch.tensor([[200.0, 0, 0], [200.0, 0, 0], [0.95, 0.03, 0.02], [0.95, 0.03, 0.02]])
    logits[2:] = logits[2:].log()
    assert computed(logits, torch.tensor([0, 1, 0, 0]), "ece", classes=3)["ece"] == pytest.approx(0.225, abs=1e-5)


def test_unknown_name_and_task_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown metric 'kappa', known are accuracy"):
        classification_metrics("multiclass", 3, ("accuracy", "kappa"))
    with pytest.raises(ValueError, match="ranking"):
        classification_metrics("ranking", 3)


def test_several_labels_equal_scikit_learn_on_the_labelled_cells() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(120, 4, generator=generator)
    target = (logits + torch.randn(120, 4, generator=generator) > 0).float()
    target[torch.rand(120, 4, generator=generator) < 0.3] = -1
    actual = computed(logits, target, classes=4, task="multilabel")
    labelled = [(target[:, c] >= 0).numpy() for c in range(4)]
    columns = [(target[:, c].numpy()[k], logits[:, c].numpy()[k]) for c, k in enumerate(labelled)]
    hits = torch.cat([torch.tensor((x > 0) == (y > 0)) for y, x in columns])
    assert actual["accuracy"] == pytest.approx(float(hits.float().mean()), abs=1e-6)
    auroc = sum(roc_auc_score(y, x) for y, x in columns) / 4
    assert actual["auroc"] == pytest.approx(auroc, abs=1e-6)
    parts = [f1_score(y, x > 0) for y, x in columns]
    assert actual["f1_macro"] == pytest.approx(sum(parts) / 4, abs=1e-6)
    support = [y.sum() for y, _ in columns]
    assert actual["f1_weighted"] == pytest.approx(sum(f * n for f, n in zip(parts, support)) / sum(support), abs=1e-6)
    pooled = f1_score(*(torch.cat([torch.tensor(part[i] > 0) for part in columns]) for i in (0, 1)))
    assert actual["f1_micro"] == pytest.approx(pooled, abs=1e-6)
    rows = []
    for messages, true in zip((logits > 0).tolist(), target.tolist()):
        cells = [(s, t) for s, t in zip(messages, true) if t >= 0]
        if cells:  # a row without a labelled cell says nothing
            rows.append(f1_score([t for _, t in cells], [float(s) for s, _ in cells], zero_division=0))
    assert len(rows) < 120 and actual["f1_samples"] == pytest.approx(np.mean(rows), abs=1e-6)
    truth, probability = (torch.cat([torch.tensor(part[i]) for part in columns]).double() for i in (0, 1))
    probability = probability.sigmoid()
    assert actual["nll"] == pytest.approx(log_loss(truth, probability), abs=1e-6)
    assert actual["brier"] == pytest.approx(brier_score_loss(truth, probability), abs=1e-6)
    errors = of_each_class(logits.sigmoid().numpy(), target.numpy())
    assert actual["classwise_ece"] == pytest.approx(errors, abs=1e-6)


MEASURES = {
    "auroc": lambda y, x: roc_auc_score(y, x),
    "average_precision": lambda y, x: average_precision_score(y, x),
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
    actual, parts = metrics.compute(), metrics.per_label()
    columns = [(masked[:, c].compressed(), logits[target[:, c] >= 0, c]) for c in range(labels)]
    positives = np.array([y.sum() for y, _ in columns])
    assert parts["positives"].tolist() == positives.tolist() and parts["n"].tolist() == [len(y) for y, _ in columns]
    pooled = [np.concatenate(part) for part in zip(*columns)]
    for measure, score in MEASURES.items():
        expected = np.array([score(y, x) if 0 < y.sum() < len(y) else np.nan for y, x in columns])
        np.testing.assert_allclose(parts[measure], expected, atol=1e-6)
        present = ~np.isnan(expected)
        if present.any():
            macro = actual[measure if measure in ("auroc", "average_precision") else f"{measure}_macro"]
            assert float(macro) == pytest.approx(expected[present].mean(), abs=1e-6)
            weighted = np.average(expected[present], weights=positives[present])
            assert float(actual[f"{measure}_weighted"]) == pytest.approx(weighted, abs=1e-6)
        else:
            assert math.isnan(actual[f"{measure}_weighted"])
        if 0 < pooled[0].sum() < len(pooled[0]):
            micro = actual["accuracy" if measure == "accuracy" else f"{measure}_micro"]
            assert float(micro) == pytest.approx(score(*pooled), abs=1e-6)
    if not 0 < pooled[0].sum() < len(pooled[0]):
        assert math.isnan(actual["auroc_micro"]) and math.isnan(actual["average_precision_micro"])


def test_metrics_of_several_labels_by_name() -> None:
    """The three of validation are those among all, and nothing else is computed."""
    some = classification_metrics("multilabel", 2, ("accuracy", "auroc", "f1_macro"))
    every = classification_metrics("multilabel", 2)
    for metrics in (some, every):
        metrics.update(torch.tensor([[1.0, -1], [-1, 1], [2, 2]]), torch.tensor([[1.0, -1], [0, 1], [0, 0]]))
    actual = every.compute()
    assert {k: float(v) for k, v in some.compute().items()} == {
        k: float(actual[k]) for k in ("accuracy", "auroc", "f1_macro")
    }
    assert set(some) == {"counts", "auroc"} and set(actual) <= set(METRICS)
    # Label 0: right, right, wrong; label 1: unlabelled, right, wrong.
    assert float(actual["accuracy"]) == pytest.approx(3 / 5) and float(actual["accuracy_macro"]) == pytest.approx(
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
    actual = computed(logits, labels, "auroc", "auroc_micro", classes=4, task="multilabel")
    parts = [roc_auc_score(y[y >= 0], x[y >= 0]) for y, x in zip(labels.T, logits.T)]
    assert actual["auroc"] == pytest.approx(np.mean(parts), abs=1e-6)
    present = labels >= 0
    assert actual["auroc_micro"] == pytest.approx(roc_auc_score(labels[present], logits[present]), abs=1e-6)


# ------------------------------------------------------------------------------------------------- degenerate input


def of_scikit_learn(logits: Tensor, target: Tensor) -> dict[str, float]:
    """Every metric of one label but ece, from scikit-learn and torchmetrics; NaN where they define none."""
    guess, truth = logits.argmax(1).numpy(), target.numpy()
    odds = logits.double().numpy()
    classes = [1] if odds.shape[1] == 2 else range(odds.shape[1])
    scores = [odds[:, c] - np.log(np.exp(np.delete(odds, c, axis=1)).sum(1)) for c in classes]
    if len(classes) == 1:
        scores = [odds[:, 1] - odds[:, 0]]  # keeps ties, which the logarithm of an exponential would break
    pairs = [(truth == c, score) for c, score in zip(classes, scores) if 0 < (truth == c).sum() < len(truth)]
    recalls = recall_score(truth, guess, labels=np.unique(truth), average=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "accuracy": accuracy_score(truth, guess),
            "auroc": np.mean([roc_auc_score(y, x) for y, x in pairs]) if pairs else np.nan,
            "f1_macro": f1_score(truth, guess, average="macro"),
            "recall_macro": balanced_accuracy_score(truth, guess),
            "mcc": matthews_corrcoef(truth, guess),
            "gmean": np.prod(recalls) ** (1 / len(recalls)),
            "average_precision": np.mean([average_precision_score(y, x) for y, x in pairs]) if pairs else np.nan,
            "nll": -log_softmax(odds, axis=1)[np.arange(len(truth)), truth].mean(),  # log_loss clips
            "brier": brier_score_loss(truth, logits.double().softmax(1), labels=range(odds.shape[1]))
            if odds.shape[1] > 2
            else brier_score_loss(truth, logits.double().softmax(1)[:, 1], labels=[0, 1]),
            "classwise_ece": of_each_class(logits.softmax(1).numpy(), np.eye(odds.shape[1])[truth]),
        }


def degenerate(case: str, classes: int) -> tuple[Tensor, Tensor]:
    logits, target = predictions(60, classes, 11)
    last = classes - 1
    if case in ("absent from target", "absent from both"):
        target = torch.where(target == last, 0, target)
    if case in ("absent from prediction", "absent from both"):
        logits[:, last] -= 100
    if case == "one class, right":
        target, logits = torch.zeros_like(target), logits + 100 * torch.eye(classes)[0]
    if case == "one class, predicted never":
        target, logits = torch.zeros_like(target), logits - 100 * torch.eye(classes)[0]
    if case == "one class, predicted at times":
        target = torch.full_like(target, last)
    if case == "constant":
        logits = logits[:1].expand(60, -1)
    if case == "ties":
        logits = logits.round()
        logits[:, 0] += 0.25  # no tie within a row, whose first class would depend on the library
        logits[:, 1] -= 0.25
        logits = logits + 2.0**-10 * torch.arange(classes)
    return (logits[:1], target[:1]) if case == "one row" else (logits, target)


DEGENERATE = (
    *("absent from target", "absent from prediction", "absent from both", "one class, right", "constant", "ties"),
    *("one class, predicted never", "one class, predicted at times", "one row"),
)


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_degenerate_input_equals_scikit_learn(case: str, classes: int) -> None:
    logits, target = degenerate(case, classes)
    values = computed(logits, target, classes=classes, task="binary" if classes == 2 else "multiclass")
    expected = of_scikit_learn(logits, target)
    assert {n: values[n] for n in expected} == pytest.approx(expected, rel=1e-6, abs=1e-6, nan_ok=True)
    confidences = logits.double().softmax(1)
    error = twin.calibration_error(confidences.tolist(), target.tolist(), 15)
    assert values["ece"] == pytest.approx(error, abs=1e-5)


def test_auroc_leaves_out_a_class_that_the_split_does_not_have() -> None:
    """Class c is in the training split alone (the classes that occur order their rows perfectly, then 3 of 4 pairs)."""
    target = torch.tensor([0, 0, 1, 1])
    perfect = torch.tensor([[4.0, 0, 1], [3.0, 0, 2], [0, 3.0, 0], [0, 4.0, 2]])
    assert computed(perfect, target, "auroc", classes=3)["auroc"] == 1.0
    three_of_four = torch.tensor([[4.0, 0, -9], [1.0, 2, -9], [2.0, 1.5, -9], [0, 4.0, -9]])
    assert computed(three_of_four, target, "auroc", classes=3)["auroc"] == 0.75
    assert math.isnan(computed(perfect, torch.zeros_like(target), "auroc", classes=3)["auroc"])


def test_all_labels_unlabelled_or_of_one_class() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    nothing = computed(logits, torch.full((5, 3), -1.0), classes=3, task="multilabel")
    assert len(nothing) > 15 and all(math.isnan(value) for value in nothing.values())
    one = computed(logits, torch.ones(5, 3), classes=3, task="multilabel")
    messages = (logits > 0).numpy()
    assert (
        one["accuracy"] == pytest.approx(messages.mean()) and math.isnan(one["auroc"]) and math.isnan(one["f1_macro"])
    )
    assert one["f1_micro"] == pytest.approx(f1_score(np.ones(15), messages.ravel()))
    assert one["f1_samples"] == pytest.approx(f1_score(np.ones((5, 3)), messages, average="samples", zero_division=0))
    assert one["mcc_micro"] == matthews_corrcoef(np.ones(15), messages.ravel()) == 0
    assert math.isnan(one["average_precision"]) and math.isnan(one["classwise_ece"])
    assert one["nll"] == pytest.approx(log_loss(np.ones(15), logits.sigmoid().flatten(), labels=[0, 1]), abs=1e-6)


def test_scores_that_are_zero_in_the_first_batch_are_kept_apart() -> None:
    """Metrics of a collection that agree after one update must not be taken for the same."""
    metrics = classification_metrics("multiclass", 3, ("nll", "brier"))
    metrics.update(1e4 * torch.eye(3), torch.arange(3))
    metrics.update(torch.zeros(1, 3), torch.tensor([0]))
    values = metrics.compute()
    assert float(values["nll"]) == pytest.approx(math.log(3) / 4) and float(values["brier"]) == pytest.approx(1 / 6)


def test_a_wrong_row_of_certainty_has_a_finite_negative_log_likelihood() -> None:
    values = computed(torch.tensor([[200.0, 0.0]]), torch.tensor([1]), "nll", "brier", classes=2, task="binary")
    assert values == {"nll": pytest.approx(200), "brier": pytest.approx(1)}


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(1, 8), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_binary_auroc_with_ties_equals_scikit_learn(n: int, levels: int, rate: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, positive = rng.integers(levels, size=n).astype(float), rng.random(n) < rate
    value = float(binary_auroc(torch.from_numpy(scores), torch.from_numpy(positive)))
    if 0 < positive.sum() < n:
        assert value == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
    else:
        assert math.isnan(value)


def test_log_odds_equal_the_logsumexp_of_the_others() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = 30 * torch.randn(50, 7, generator=generator, dtype=torch.float64)
    logits[:5] = 2000 * torch.randn(5, 7, generator=generator, dtype=torch.float64)
    others = [torch.cat([logits[:, :c], logits[:, c + 1 :]], 1).logsumexp(1) for c in range(7)]
    expected = logits - torch.stack(others, 1)
    for cells in (1, 70, 2**20):
        torch.testing.assert_close(log_odds(logits, cells), expected, rtol=1e-13, atol=1e-13)
    swapped = log_odds(logits[:, [0, 3, 2, 1, 6, 5, 4]])[:, [0, 3, 2, 1, 6, 5, 4]]
    assert torch.equal(swapped, log_odds(logits))  # the same others in another order are a tie


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.integers(2, 3), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_a_monitor_is_undefined_exactly_where_its_metric_is(
    n: int, labels: int, unlabelled: float, rate: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    target = (rng.random((n, labels)) < rate).astype(np.float32)
    target[rng.random((n, labels)) < unlabelled] = -1
    one_label = torch.from_numpy(rng.integers(3, size=n) * (rng.random(n) < rate))
    for task, classes, truth in (("multilabel", labels, torch.from_numpy(target)), ("multiclass", 3, one_label)):
        logits = torch.from_numpy(rng.normal(size=(n, classes)).astype(np.float32))
        values = computed(logits, truth, classes=classes, task=task)
        assert set(values) == set(metric_names(task))
        for name, value in values.items():
            assert (undefined_monitor(f"val_{name}", task, truth) is not None) == math.isnan(value), name
    assert undefined_monitor("val_loss", "multiclass", one_label[:0]) is None


# N and C of the test split: DVM has the most of both; MIMIC-CXR has the most rows of several labels.
@pytest.mark.parametrize(("task", "rows", "classes"), [("multiclass", 88_207, 286), ("multilabel", 377_110, 14)])
def test_every_metric_runs_at_the_published_size_in_bounded_memory(task: str, rows: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, classes, generator=generator)
    target = torch.randint(0, classes, (rows,), generator=generator)
    if task == "multilabel":
        target = torch.randint(-1, 2, (rows, classes), generator=generator).float()
    metrics = classification_metrics(task, classes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    metrics.update(logits, target)
    values = {name: float(value) for name, value in metrics.compute().items()}
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20  # GiB
    assert grown < 2 and all(math.isfinite(value) for value in values.values())
    assert values["auroc"] == pytest.approx(0.5, abs=0.01)
    chance = 0.5 if task == "multilabel" else 1 / classes
    assert values["accuracy"] == pytest.approx(chance, abs=0.005)
